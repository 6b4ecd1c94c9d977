"""One text request on its way: prepared by the worker, in line, started, streamed, and given up at any point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from enum import Enum, auto

import msgspec

from adapters.errors import (
    AdapterError,
    Busy,
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    Timeout,
    Unavailable,
)
from adapters.llama_cpp.diagnosis import diagnosis
from adapters.llama_cpp.line import Line, Turn, take_turn
from adapters.llama_cpp.messages import (
    CacheReport,
    Cancel,
    ChatPrompt,
    Delta,
    Prepare,
    Prepared,
    Prompt,
    Refused,
    Start,
    TextPrompt,
)
from adapters.llama_cpp.output import OutputParser
from adapters.llama_cpp.process import Answer, Worker
from adapters.llama_cpp.queue import Entry
from adapters.llama_cpp.splitting import Splitter
from adapters.types import (
    CacheDiagnosis,
    Caller,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    ImagePart,
    Message,
    Started,
    TextDelta,
    Timings,
    Usage,
)

PREPARE_TIMEOUT_S = 60.0
LAGGING_DELTAS_MAX = 64
BYTES_PER_TOKEN_GUESS = 4
IMAGE_TOKENS_GUESS = 512


class Counters(msgspec.Struct):
    """What happened since the start; only ever grows."""

    requests: int = 0
    rejected: int = 0
    cancelled: int = 0
    failed: int = 0
    restarts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    embedded_tokens: int = 0


class Engine(msgspec.Struct, frozen=True):
    """What requests of one model share: the worker, the line for its slots and the line for its tokenisers."""

    worker: Worker
    places: Line
    preparing: Line
    counters: Counters


def refused(answer: Refused) -> AdapterError:
    """The error a worker's refusal stands for."""
    match answer.code:
        case "model_unavailable" | "overloaded" | "insufficient_storage":
            return ModelUnavailable(answer.message, code=answer.code, param=answer.param, retry_after_s=1.0)
        case "internal_error" | "engine_failed":
            return EngineFailed(answer.message, param=answer.param)
    return InvalidRequest(answer.message, code=answer.code, param=answer.param)


def size_tokens(prompt: Prompt) -> int:
    """A guess at the length of a prompt that has not been tokenised."""
    if isinstance(prompt, ChatPrompt):
        size = sum(len(message.text) + _image_bytes(message) for message in prompt.messages)
        return (size + sum(len(tool.parameters) for tool in prompt.tools)) // BYTES_PER_TOKEN_GUESS
    if isinstance(prompt, TextPrompt):
        return len(prompt.text) // BYTES_PER_TOKEN_GUESS
    return len(prompt.tokens)


def _image_bytes(message: Message) -> int:
    """As many bytes as the tokens of a message's images would have as text."""
    parts = message.content if isinstance(message.content, tuple) else ()
    return sum(isinstance(part, ImagePart) for part in parts) * IMAGE_TOKENS_GUESS * BYTES_PER_TOKEN_GUESS


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """The same output in one delta for each choice."""
    groups: dict[tuple[int, int], list[Delta]] = {}
    for delta in deltas:
        groups.setdefault((delta.id, delta.choice), []).append(delta)
    return [
        msgspec.structs.replace(
            group[0],
            text="".join([delta.text for delta in group]),
            finish=group[-1].finish,
            stop_sequence=group[-1].stop_sequence,
            logprobs=tuple(one for delta in group for one in delta.logprobs),
        )
        for group in groups.values()
    ]


class _Stage(Enum):
    PREPARING = auto()
    PREPARED = auto()
    QUEUED = auto()
    RUNNING = auto()
    OVER = auto()


class _Part:
    """One prompt of a request, known to the worker under its own id until it is over.

    Giving it up sends `Cancel`; a waiting part leaves the line at once, a running one keeps its slots until the worker
    says that they are free.
    """

    def __init__(self, request: TextGeneration, offset: int, choices: int) -> None:
        self.id = request.engine.worker.register(self)
        self.stage = _Stage.PREPARING
        self.cancelled = False
        self.offset = offset
        self.prompt_tokens = 0
        self.max_tokens = 0
        self.thinking = False
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.cached_tokens: int | None = None
        self.cache: CacheReport | None = None
        self.message_ends: tuple[int, ...] = ()
        self.queue_us = 0
        self.prefill_us = 0
        self.decode_us = 0
        self._request = request
        self._engine = request.engine
        self._choices = choices
        self._unfinished = choices
        self._entry: Entry | None = None

    def join(self, caller: Caller, committed: bool) -> None:
        entry = Entry(
            tenant=caller.tenant,
            owner=self,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            choices=self._choices,
            weight=caller.weight,
            priority=caller.priority,
            committed=committed,
        )
        self._entry = entry
        self.stage = _Stage.QUEUED
        self._engine.places.join(entry)

    def cancel(self) -> None:
        if self.stage is _Stage.OVER or self.cancelled:
            return
        self.cancelled = True
        self._engine.worker.send(Cancel(self.id))
        if self.stage is _Stage.QUEUED and self._entry is not None:
            self._engine.places.leave(self._entry)

    # The line

    def granted(self, entry: Entry) -> None:
        self.stage = _Stage.RUNNING
        self.queue_us = round((entry.started_s - entry.joined_s) * 1e6)
        self._engine.worker.send(Start(self.id))
        self._request.part_started()

    def evicted(self, entry: Entry, error: AdapterError) -> None:
        self._request.fail(error)

    # The worker

    def delta(self, delta: Delta) -> None:
        queue, counters, entry = self._engine.places.queue, self._engine.counters, self._entry
        if entry is None or self.stage is not _Stage.RUNNING:
            return
        if delta.tokens:
            self.completion_tokens += delta.tokens
            self.reasoning_tokens += delta.reasoning_tokens
            counters.completion_tokens += delta.tokens
            queue.served(entry, delta.tokens)
        if delta.cached_tokens >= 0:
            self._prefilled(entry, delta)
        if not self.cancelled:
            self._request.arrived(delta)
        if delta.finish is not None:
            self.decode_us = max(self.decode_us, delta.decode_us)
            self._unfinished -= 1
            if self._unfinished:
                self._engine.places.shrink(entry, self._unfinished)
            else:
                self._over(finished=True)

    def _prefilled(self, entry: Entry, delta: Delta) -> None:
        """The choices share one prompt: what the first of them did not compute was cached."""
        self.prefill_us = max(self.prefill_us, delta.prefill_us)
        if delta.cache is not None:
            self.cache = delta.cache
        if self.cached_tokens is None:
            self.cached_tokens = delta.cached_tokens
            self._engine.counters.prompt_tokens += self.prompt_tokens
            self._engine.counters.cached_tokens += delta.cached_tokens
            self._engine.places.queue.prefilled(entry, delta.cached_tokens)

    def answer(self, answer: Answer) -> None:
        if isinstance(answer, Prepared):
            if self.stage is _Stage.PREPARING:
                self.prompt_tokens = answer.prompt_tokens
                self.max_tokens = answer.max_tokens
                self.thinking = answer.thinking
                self.message_ends = answer.message_ends
                self.stage = _Stage.PREPARED
                self._request.part_prepared()
            return
        was = self.stage
        self._over()
        if was is _Stage.PREPARING:
            self._request.part_prepared()
        if isinstance(answer, Refused):
            self._request.fail(refused(answer))

    def lost(self, reason: str) -> None:
        was = self.stage
        self._over()
        if was is _Stage.PREPARING:
            self._request.part_prepared()
        if was is _Stage.RUNNING:
            self._request.fail(EngineFailed("The engine died while it worked on this request.", retry_after_s=1.0))
        else:
            error = self._engine.worker.unavailable()
            self._request.fail(error or ModelLoading("The engine was restarted.", retry_after_s=1.0))

    def _over(self, finished: bool = False) -> None:
        self.stage = _Stage.OVER
        self._engine.worker.forget(self.id)
        if self._entry is not None:
            (self._engine.places.finished if finished else self._engine.places.leave)(self._entry)


class TextGeneration:
    """One request of one or more prompts. `events` is its whole life; closing it at any point gives the work up.

    All prompts are prepared at once, then they take turns in the line: the next one joins when the one before is
    granted its slots, so that a request never holds more than one waiting place.
    """

    def __init__(
        self,
        engine: Engine,
        caller: Caller,
        prompts: Sequence[Prompt],
        generation: Generation,
        *,
        echo: bool = False,
        new_parser: Callable[[bool], OutputParser] | None = None,
    ) -> None:
        self.engine = engine
        self._caller = caller
        self._prompts = prompts
        self._generation = generation
        self._echo = echo
        self._new_parser = new_parser
        self._choices: dict[int, Splitter] = {}
        self._parts: list[_Part] = []
        self._offsets: dict[int, int] = {}
        self._preparing = 0
        self._preparing_entry: Entry | None = None
        self._joined = 0
        self._arrived: list[Delta] = []
        self._lagging_max = LAGGING_DELTAS_MAX + 2 * len(prompts) * generation.n
        self._waiter: asyncio.Future[None] | None = None
        self._error: AdapterError | None = None
        self._begun = False
        self._given_up = False

    async def events(self) -> AsyncGenerator[Event, None]:
        self.engine.counters.requests += 1
        unfinished = len(self._prompts) * self._generation.n
        try:
            await self._prepare()
            self._join_next()
            started = False
            while unfinished:
                arrived = await self._next_deltas()
                if not started:
                    started = True
                    yield self._started()
                for delta in arrived:
                    choice = self._offsets[delta.id] + delta.choice
                    if self._new_parser is not None:
                        for event in self._split(choice, delta):
                            yield event
                    else:
                        if delta.text or delta.logprobs:
                            yield TextDelta(choice, delta.text, delta.logprobs)
                        if delta.finish is not None:
                            yield ChoiceFinished(choice, delta.finish, stop_sequence=delta.stop_sequence)
                    unfinished -= delta.finish is not None
            yield self._finished()
        except Busy:
            self.engine.counters.rejected += 1
            raise
        except EngineFailed:
            self.engine.counters.failed += 1
            raise
        finally:
            self._give_up()

    def _split(self, choice: int, delta: Delta) -> Iterator[Event]:
        splitting = self._choices.get(choice)
        if splitting is None:
            assert self._new_parser is not None
            thinking = any(part.thinking for part in self._parts if part.id == delta.id)
            splitting = self._choices[choice] = Splitter(choice, self._new_parser(thinking))
        return splitting.push(delta)

    async def _prepare(self) -> None:
        """Have all prompts tokenised and checked, as one entry of the line for the tokenisers."""
        size = sum(map(size_tokens, self._prompts))
        turn = Turn()
        caller = self._caller
        entry = Entry(tenant=caller.tenant, owner=turn, prompt_tokens=size, max_tokens=0, weight=caller.weight)
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await take_turn(self.engine.preparing, entry, turn)
                self._preparing_entry = entry
                self._send_prompts()
                while self._preparing and self._error is None:
                    await self._wait()
        except TimeoutError:
            raise Timeout("The prompt could not be prepared in time.") from None
        if self._error is not None:
            raise self._error

    def _send_prompts(self) -> None:
        caller, n = self._caller, self._generation.n
        for index, prompt in enumerate(self._prompts):
            part = _Part(self, index * n, n)
            self._parts.append(part)
            self._offsets[part.id] = part.offset
            self._preparing += 1
            key, explain = caller.session_key, caller.explain_cache
            self.engine.worker.send(Prepare(part.id, caller.tenant, prompt, self._generation, key, self._echo, explain))

    def _join_next(self) -> None:
        """Put the next prompt in line. Only the first can be refused: the others take the place just given up."""
        part = self._parts[self._joined]
        self._joined += 1
        try:
            part.join(self._caller, committed=self._joined > 1)
        except Busy as error:
            self.fail(error)

    # Called by the parts, on the event loop between awaits.

    def part_prepared(self) -> None:
        """A part is no longer in preparation; the last one gives the tokenisers' place back."""
        self._preparing -= 1
        if self._preparing == 0:
            self._leave_preparation()
            self._wake()

    def _leave_preparation(self) -> None:
        if self._preparing_entry is not None:
            self.engine.preparing.leave(self._preparing_entry)

    def part_started(self) -> None:
        if self._joined < len(self._parts) and not self._given_up:
            self._join_next()

    def arrived(self, delta: Delta) -> None:
        """Keep a delta for the consumer; one that lags gets the text of a choice in one piece."""
        if self._begun and not delta.text and delta.finish is None and not delta.logprobs:
            return
        self._begun = True
        self._arrived.append(delta)
        if len(self._arrived) > self._lagging_max:
            self._arrived = merged(self._arrived)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: AdapterError) -> None:
        """The first failure of a part is the failure of the request; one that has begun cannot be tried again."""
        if self._error is None:
            if self._begun and isinstance(error, Unavailable):
                error = EngineFailed("The engine stopped while it worked on this request.", retry_after_s=1.0)
            self._error = error
            self._wake()

    # Waiting and leaving.

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _next_deltas(self) -> list[Delta]:
        """What came since the last call; an error is raised once everything before it was handed out."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            await self._wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    def _give_up(self) -> None:
        """Runs when the consumer is gone, the request failed or ended: plain calls, so nothing can interrupt it."""
        self._given_up = True
        if not self._preparing:
            self._leave_preparation()
        left = [part for part in self._parts if part.stage is not _Stage.OVER]
        if left and self._error is None:
            self.engine.counters.cancelled += 1
        for part in left:
            part.cancel()

    def _started(self) -> Started:
        return Started(
            prompt_tokens=sum(part.prompt_tokens for part in self._parts),
            cached_tokens=sum(part.cached_tokens or 0 for part in self._parts),
            queue_us=self._parts[0].queue_us,
            prefill_us=max(part.prefill_us for part in self._parts),
            cache=self._diagnosis(),
        )

    def _diagnosis(self) -> CacheDiagnosis | None:
        """What happened to the first prompt, of which alone it can be said when the answer begins."""
        part = self._parts[0]
        return diagnosis(part.cache, self._prompts[0], part.message_ends, part.prefill_us) if part.cache else None

    def _finished(self) -> Finished:
        parts = self._parts
        return Finished(
            Usage(
                prompt_tokens=sum(part.prompt_tokens for part in parts),
                completion_tokens=sum(part.completion_tokens for part in parts),
                cached_tokens=sum(part.cached_tokens or 0 for part in parts),
                reasoning_tokens=sum(part.reasoning_tokens for part in parts),
            ),
            Timings(
                queue_us=parts[0].queue_us,
                prefill_us=max(part.prefill_us for part in parts),
                decode_us=max(part.decode_us for part in parts),
            ),
        )
