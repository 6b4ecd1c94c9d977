"""One request behind its guardrails: what may go to the model, and what of the answer may go to the client."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from adapters.errors import AdapterError, InvalidRequest
from adapters.said import TEXTS_MAX, Ending, Piece, Place, Sort, saying, too_many
from adapters.types import (
    ChoiceFinished,
    CompletionRequest,
    Event,
    Finished,
    Inbound,
    ReasoningDelta,
    Started,
    TextDelta,
    Usage,
)
from gateway import errors
from gateway.auth import Principal
from gateway.catalog import Target
from gateway.config_guardrails import Stage
from gateway.errors import GatewayError
from gateway.guardrails import GuardrailFailed, Span, masked
from gateway.guardrails.frames import Frames
from gateway.guardrails.rules import OUTCOMES, Duty, Found, Guardrails, Rule
from gateway.guardrails.texts import R, Request, Tokens, texts_of, token_ids, with_texts
from gateway.guardrails.watch import Watch

Detokenize = Callable[[list[int]], Awaitable[str]]


def guarding(all: Guardrails, principal: Principal, target: Target, request_id: str) -> Guarding | None:
    """What looks at one request and its answer; None where nothing applies."""
    rules = all.applying(principal, target)
    return Guarding(all, rules, principal, request_id) if rules else None


class Checked(NamedTuple):
    """What came of looking at a whole answer: the texts that are others now, by their numbers, and the choices that are
    blocked."""

    texts: dict[int, str]
    blocked: set[int]


class Guarding:
    """The guardrails that apply to one request."""

    def __init__(self, all: Guardrails, rules: tuple[Rule, ...], principal: Principal, request_id: str) -> None:
        self._all = all
        self._rules = rules
        self._who = Found(
            guardrail="",
            stage="before",
            outcome="",
            kinds="",
            request_id=request_id,
            key_id=principal.key_id,
            tenant=principal.tenant,
        )

    async def check(self, request: R, detokenize: Detokenize) -> R:
        """The request as it may go on; raises `content_blocked`, or what keeps it from being looked at."""
        rules = [rule for rule in self._rules if "before" in rule.config.stages]
        if not rules:
            return request
        spelled = await self._spelled(request, detokenize, rules)
        if spelled is None:
            return request
        texts = await self._checked(rules, texts_of(request, spelled.__getitem__))
        return with_texts(request, texts, spelled.__getitem__)

    @property
    def watches(self) -> bool:
        """Whether anything looks at the answer."""
        return bool(self._watching)

    async def check_said(self, inbound: Inbound, places: Sequence[Place]) -> Inbound:
        """The same for a request that is passed on, whose texts are in these places."""
        rules = [rule for rule in self._rules if "before" in rule.config.stages]
        return saying(inbound, places, await self._checked(rules, [(place.text, place.sort) for place in places]))

    async def _checked(self, rules: Sequence[Rule], sorted_texts: Sequence[tuple[str, Sort]]) -> list[str]:
        """The texts as they may go on."""
        if len(sorted_texts) > TEXTS_MAX:
            raise too_many()
        texts, sorts = [text for text, _ in sorted_texts], [sort for _, sort in sorted_texts]
        for rule in rules:
            texts = await self._checked_by(rule, texts, sorts)
        return texts

    async def _checked_by(self, rule: Rule, texts: list[str], sorts: Sequence[Sort]) -> list[str]:
        try:
            found = await self._all.run(rule, "before", texts)
        except GuardrailFailed as reason:
            self._all.failed(rule, "before", self._who, reason)
            return texts
        spans = [span for one in found for span in one]
        action = rule.config.action
        replaced: list[str | None] = list(texts)
        if spans and action == "mask":
            replaced = [_masked(*one) for one in zip(texts, sorts, found, strict=True)]
        if spans and (action == "block" or None in replaced):
            self._all.note(rule, "before", "blocked", self._who, spans)
            raise errors.error("content_blocked", f"The request was blocked by the guardrail '{rule.name}'.")
        self._all.note(rule, "before", OUTCOMES[action] if spans else "passed", self._who, spans)
        return [text for text in replaced if text is not None]

    async def _spelled(
        self, request: Request, detokenize: Detokenize, rules: Sequence[Rule]
    ) -> dict[Tokens, str] | None:
        """What the token ids of a request say. None where nobody can tell and nothing has to be known."""
        try:
            return {ids: await detokenize(list(ids)) for ids in token_ids(request)}
        except AdapterError:
            if all(rule.open for rule in rules):
                return None
            param = "prompt" if isinstance(request, CompletionRequest) else "input"
            raise InvalidRequest(
                "Send text: guardrails apply, and token ids cannot be read here.", param=param
            ) from None

    async def check_answer(self, found: Sequence[Piece]) -> Checked:
        """What may be shown of a whole answer; raises `guardrail_unavailable`."""
        numbers = [at for at, one in enumerate(found) if one.part == "said"]
        checked = Checked({at: found[at].place.text for at in numbers}, set())
        for rule, stage in self._watching:
            await self._check_answer_by(rule, stage, found, checked)
        changed = {at: text for at, text in checked.texts.items() if text != found[at].place.text}
        return Checked(changed, checked.blocked)

    async def _check_answer_by(self, rule: Rule, stage: Stage, found: Sequence[Piece], checked: Checked) -> None:
        numbers = [at for at in checked.texts if found[at].choice not in checked.blocked]
        try:
            looked_at = await self._all.run(rule, stage, [checked.texts[at] for at in numbers])
        except GuardrailFailed as reason:
            self._all.failed(rule, stage, self._who, reason)
            return
        spans = [span for one in looked_at for span in one]
        action = rule.config.action
        for at, of_one in zip(numbers, looked_at, strict=True):
            text = _masked(checked.texts[at], found[at].place.sort, of_one) if action == "mask" else None
            if text is not None:
                checked.texts[at] = text
            elif of_one and action != "log":
                checked.blocked.add(found[at].choice)
        self._all.note(rule, stage, OUTCOMES[action] if spans else "passed", self._who, spans)

    def frames(self, choices: int, ending: Ending) -> Frames:
        """What looks at a stream that is passed on."""
        return Frames(self._duties(), choices, ending)

    def watch(self, events: AsyncIterator[Event], choices: int) -> AsyncIterator[Event]:
        """The answer as it may go on to the client; raises `guardrail_unavailable` too."""
        return Watched(self._duties(), events, choices) if self._watching else events

    def _duties(self) -> list[Duty]:
        return [Duty(self._all, rule, stage, self._who) for rule, stage in self._watching]

    @property
    def _watching(self) -> list[tuple[Rule, Stage]]:
        return [(rule, stage) for stage in _WATCHING for rule in self._rules if stage in rule.config.stages]


_WATCHING: tuple[Stage, ...] = ("during", "after")


def _masked(text: str, sort: Sort, spans: Sequence[Span]) -> str | None:
    """The text without what was found; None where that is not possible."""
    if not spans:
        return text
    result = masked(text, spans)
    if sort == "json":
        try:
            msgspec.json.decode(result)
        except (msgspec.DecodeError, RecursionError):
            return None
    return None if sort == "fixed" else result


class Watched:
    """The events of an answer behind guardrails.

    A choice that is blocked ends with the reason `content_filter`. When all choices have ended, nothing more is
    generated, and the usage is that of what was sent.
    """

    def __init__(self, duties: Sequence[Duty], events: AsyncIterator[Event], choices: int) -> None:
        self._events = events
        self._watches = [Watch(duty) for duty in duties]
        self._left = choices
        self._ready: deque[Event] = deque()
        self._usage = Usage()
        self._blocked = False
        self._ended = False

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> Event:
        try:
            while not self._ready:
                if self._ended:
                    raise StopAsyncIteration
                await self._pass(await anext(self._events))
        except GatewayError:
            await self.aclose()
            raise
        except BaseException:
            self._end()
            raise
        return self._counted(self._ready.popleft())

    async def _pass(self, event: Event) -> None:
        batch = [event]
        for watch in self._watches:
            passed: list[Event] = []
            for one in batch:
                await watch.feed(one, passed)
            batch = passed
            self._blocked = self._blocked or bool(watch.blocked)
        self._left -= sum(isinstance(one, ChoiceFinished) for one in batch)
        self._ready += batch
        if isinstance(event, Finished):
            self._end()
        elif self._blocked and self._left <= 0:
            # What is still being generated would be thrown away.
            self._ready.append(Finished(Usage()))
            await self.aclose()

    def _counted(self, event: Event) -> Event:
        """The event, with what was sent up to it as the usage of an answer of which some was not."""
        usage = self._usage
        if isinstance(event, Started):
            self._usage = Usage(event.prompt_tokens, cached_tokens=event.cached_tokens)
        elif isinstance(event, Finished):
            return Finished(usage, event.timings, estimated=True) if self._blocked else event
        elif not isinstance(event, ChoiceFinished):
            tokens = (len(event.logprobs) if isinstance(event, TextDelta) else 0) or 1
            thought = tokens if isinstance(event, ReasoningDelta) else 0
            self._usage = replace(
                usage,
                completion_tokens=usage.completion_tokens + tokens,
                reasoning_tokens=usage.reasoning_tokens + thought,
            )
        return event

    def _end(self) -> None:
        """Count what each guardrail did, once."""
        if self._ended:
            return
        self._ended = True
        for watch in self._watches:
            watch.duty.close()

    async def aclose(self) -> None:
        self._end()
        aclose = getattr(self._events, "aclose", None)
        if aclose is not None:
            await aclose()
