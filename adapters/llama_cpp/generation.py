"""One text request on its way: prepared by the worker, in line, started, streamed, and given up at any point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence

import msgspec

from adapters.diverting import Take
from adapters.errors import (
    AdapterError,
    Busy,
    EngineFailed,
    ModelLoading,
    Timeout,
    Unavailable,
)
from adapters.llama_cpp.diagnosis import diagnosis
from adapters.llama_cpp.line import Turn, take_turn
from adapters.llama_cpp.messages import (
    ChatPrompt,
    Delta,
    Prepare,
    Prompt,
    TextPrompt,
)
from adapters.llama_cpp.output import OutputParser
from adapters.llama_cpp.part import Engine, Part, Stage
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


class TextGeneration:
    """One request of one or more prompts, read as the stream of its events; closing it at any point gives the work up.

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
        self._parts: list[Part] = []
        self._offsets: dict[int, int] = {}
        self._preparing = 0
        self._preparing_entry: Entry | None = None
        self._joined = 0
        self._granted = False
        self._arrived: list[Delta] = []
        self._lagging_max = LAGGING_DELTAS_MAX + 2 * len(prompts) * generation.n
        self._waiter: asyncio.Future[None] | None = None
        self._take: Take | None = None
        self._declined: list[Event] = []
        self._error: AdapterError | None = None
        self._begun = False
        self._given_up = False
        self._life = self._events()

    def __aiter__(self) -> TextGeneration:
        return self

    def __anext__(self) -> Awaitable[Event]:
        return self._life.__anext__()

    def aclose(self) -> Awaitable[None]:
        return self._life.aclose()

    def divert(self, take: Take) -> None:
        """As `Direct` says."""
        self._take = take

    async def _events(self) -> AsyncGenerator[Event, None]:
        self.engine.counters.requests += 1
        unfinished = len(self._prompts) * self._generation.n
        try:
            arrived = await self._first_deltas()
            yield self._started()
            while True:
                declined, self._declined = self._declined, []
                for event in declined:
                    yield event
                for delta in arrived:
                    for event in self._told(delta):
                        yield event
                    unfinished -= delta.finish is not None
                if not unfinished:
                    break
                arrived = await self._next_deltas()
            yield self._finished()
        except Busy:
            self.engine.counters.rejected += 1
            raise
        except EngineFailed:
            self.engine.counters.failed += 1
            raise
        finally:
            self._give_up()

    async def _first_deltas(self) -> list[Delta]:
        """The first output. Who waits in line when the engine dies gets in line again once it is back; who was at work
        may be what it died of."""
        try:
            return await self._in_turn()
        except ModelLoading:
            if self._granted:
                raise
        self._leave_preparation()
        self._parts, self._offsets, self._error = [], {}, None
        self._preparing = self._joined = 0
        await self.engine.enter(self._caller.tenant)
        return await self._in_turn()

    async def _in_turn(self) -> list[Delta]:
        await self._prepare()
        self._join_next()
        return await self._next_deltas()

    def _told(self, delta: Delta) -> Iterable[Event]:
        """What a delta tells, as events."""
        choice = self._offsets[delta.id] + delta.choice
        if self._new_parser is not None:
            return self._split(choice, delta)
        text = (TextDelta(choice, delta.text, delta.logprobs),) if delta.text or delta.logprobs else ()
        if delta.finish is None:
            return text
        return *text, ChoiceFinished(choice, delta.finish, stop_sequence=delta.stop_sequence)

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
            part = Part(self, index * n, n)
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
            endless = self._generation.ignore_eos and not self._generation.stop
            part.join(self._caller, endless=endless, committed=self._joined > 1)
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
        self._granted = True
        if self._joined < len(self._parts) and not self._given_up:
            self._join_next()

    def arrived(self, delta: Delta) -> None:
        """Keep a delta for the consumer; one that lags gets the text of a choice in one piece."""
        if delta.finish is None and self._begun:
            if not delta.text and not delta.logprobs:
                return
            take, waiter = self._take, self._waiter
            if take is not None and waiter is not None and not waiter.done():
                self._offer(delta, take, waiter)
                return
        self._begun = True
        self._arrived.append(delta)
        if len(self._arrived) > self._lagging_max:
            self._arrived = merged(self._arrived)
        self._wake()

    def _offer(self, delta: Delta, take: Take, waiter: asyncio.Future[None]) -> None:
        """Send what a delta tells the short way, as far as it is open. What goes wrong there is this request's alone:
        the connection to the worker, which calls this, has others to serve."""
        try:
            events = iter(self._told(delta))
            for event in events:
                if not take(event):
                    self._declined = [event, *events]
                    waiter.set_result(None)
                    return
        except Exception as error:
            waiter.set_exception(error)

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
        while not self._arrived and not self._declined:
            if self._error is not None:
                raise self._error
            await self._wait()
        arrived, self._arrived = self._arrived, []
        return arrived

    def _give_up(self) -> None:
        """Runs when the consumer is gone, the request failed or ended: plain calls, so nothing can interrupt it."""
        self._given_up = True
        self._take = None
        if not self._preparing:
            self._leave_preparation()
        left = [part for part in self._parts if part.stage is not Stage.OVER]
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
