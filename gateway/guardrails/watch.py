"""A guardrail over the events of an answer: what is held back until it is decided, and what goes on to the client.

Each choice is looked at by itself, and in it text, reasoning, refusals and the arguments of each tool call, one after
the other. A match does not reach over the change from one of these to the next. An event in which nothing was found
goes on as it came, in the order in which it came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
)
from gateway.guardrails import Scan, Scanned, Span
from gateway.guardrails.rules import Duty

# How much of an answer is held back where it is looked at only when it is complete.
HELD_CHARS_MAX = 1 << 20


class Said(msgspec.Struct, frozen=True):
    """One text of an answer that is passed on, by the number of its event `of` and its own in that, `at`. `key` is what
    those share that continue it; `quoted` says that it is JSON."""

    choice: int
    key: tuple[str, ...]
    text: str
    quoted: bool
    of: int
    at: int


Delta = TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta
D = TypeVar("D", bound=Delta | Said)


class Complete:
    """A scan that looks at the whole text when it has ended, or when it is too long to wait on."""

    def __init__(self, open: Callable[[], Scan]) -> None:
        self._open = open
        self._parts: list[str] = []
        self._size = 0
        self._base = 0

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        self._parts.append(piece)
        self._size += len(piece)
        if not last and self._size < HELD_CHARS_MAX:
            return Scanned(self._base)
        text, base = "".join(self._parts), self._base
        self._parts, self._size, self._base = [], 0, base + len(text)
        spans = (await self._open().feed(text, last=True)).spans
        return Scanned(self._base, [Span(base + one.start, base + one.end, one.kind, one.put) for one in spans])


class Released(msgspec.Struct, Generic[D], frozen=True):
    """What may go on, and what was found meanwhile."""

    events: list[D]
    spans: list[Span]


class Channel(Generic[D]):
    """One kind of text of one choice, on its way through one scan."""

    def __init__(self, duty: Duty) -> None:
        scan = duty.rule.guardrail.scan
        self._scan = Complete(scan) if duty.stage == "after" else scan()
        self._action = duty.action
        self._held: deque[tuple[D, int, int]] = deque()
        self._spans: deque[Span] = deque()
        self._length = 0
        self._settled = 0

    async def add(self, event: D) -> Released[D]:
        text = _text(event)
        start, self._length = self._length, self._length + len(text)
        if self._action != "log":
            self._held.append((event, start, self._length))
        return self._release(await self._scan.feed(text, last=False) if text else Scanned(self._settled))

    async def end(self) -> Released[D]:
        return self._release(await self._scan.feed("", last=True))

    def holds(self, event: object) -> bool:
        return any(one is event for one, _, _ in self._held)

    def give_up(self) -> list[D]:
        """All that is held, as it came but for what was found in it so far."""
        self._settled = self._length
        return self._settle()

    def _release(self, scanned: Scanned) -> Released[D]:
        self._settled = scanned.settled
        if scanned.spans and self._action == "block":
            self._settled = min(self._settled, scanned.spans[0].start)
        self._spans += scanned.spans
        return Released(self._settle(), list(scanned.spans))

    def _settle(self) -> list[D]:
        """The events that end where the text is decided."""
        events: list[D] = []
        while self._held and self._held[0][2] <= self._settled:
            event, start, end = self._held.popleft()
            changed = self._masked(event, start, end)
            if changed is not None:
                events.append(changed)
        return events

    def _masked(self, event: D, start: int, end: int) -> D | None:
        """The event without what was found in its part of the text; None when nothing is left of it."""
        while self._spans and self._spans[0].end <= start:
            self._spans.popleft()
        if not self._spans or self._spans[0].start >= end:
            return event
        text, parts, at = _text(event), [], start
        for span in self._spans:
            if span.start >= end:
                break
            if span.start >= start:
                parts += [text[at - start : span.start - start], _placeholder(event, span)]
            at = min(span.end, end)
        return _with_text(event, "".join([*parts, text[at - start :]]))


def _placeholder(event: Delta | Said, span: Span) -> str:
    """What is put into an event; arguments are JSON, and a finding in them is most likely inside of a text."""
    put = span.placeholder
    quoted = event.quoted if isinstance(event, Said) else isinstance(event, ToolCallDelta)
    return msgspec.json.encode(put)[1:-1].decode() if quoted else put


def _text(event: Delta | Said) -> str:
    return event.arguments if isinstance(event, ToolCallDelta) else event.text


def _with_text(event: D, text: str) -> D | None:
    """The event with another text. What else it says of the old one would tell it, or no longer be true."""
    match event:
        case Said():
            return replace(event, text=text)
        case TextDelta():
            return replace(event, text=text, logprobs=()) if text else None
        case ReasoningDelta():
            return replace(event, text=text, signature=None) if text else None
        case RefusalDelta():
            return replace(event, text=text) if text else None
        case ToolCallDelta():
            return replace(event, arguments=text) if text or event.id or event.name else None


class Watch:
    """One guardrail over one answer. What is found is masked where its action says so, ends its choice where it says
    block, and is only noted for log. `blocked` are the choices that it ended."""

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self.blocked: set[int] = set()
        self._channels: dict[int, tuple[tuple[object, ...], Channel[Delta]]] = {}

    async def feed(self, event: Event, passed: list[Event]) -> None:
        """Add what goes on to `passed` when an event came; raises `guardrail_unavailable`."""
        if isinstance(event, Started | Finished) or self.duty.failed:
            passed.append(event)
        elif event.choice not in self.blocked and not await self.duty.does(self._look(event, passed)):
            channels = [channel for _, channel in self._channels.values()]
            held = any(channel.holds(event) for channel in channels)
            passed += [one for channel in channels for one in channel.give_up()]
            if not held:
                passed.append(event)

    async def _look(self, event: Delta | ChoiceFinished, passed: list[Event]) -> None:
        choice = event.choice
        key = type(event), event.index if isinstance(event, ToolCallDelta) else 0
        known = self._channels.get(choice)
        if known is not None and known[0] != key:
            self._note(await known[1].end(), choice, passed)
            self._channels.pop(choice, None)
            known = None
        if not isinstance(event, ChoiceFinished) and choice not in self.blocked:
            if known is None:
                known = self._channels[choice] = key, Channel(self.duty)
            self._note(await known[1].add(event), choice, passed)
        if choice not in self.blocked and (isinstance(event, ChoiceFinished) or self.duty.action == "log"):
            passed.append(event)

    def _note(self, released: Released[Delta], choice: int, passed: list[Event]) -> None:
        self.duty.spans += released.spans
        passed += released.events
        if released.spans and self.duty.action == "block":
            self.blocked.add(choice)
            self._channels.pop(choice, None)
            passed.append(ChoiceFinished(choice, "content_filter"))
