"""Guardrails over the events of an answer that is passed on as it came.

All texts of an event are looked at, each with those that it continues: a text ends when an event says something in its
choice and does not continue it, or with the stream. Events go on in the order in which they came, an event once all of
its texts are decided, and the same but for what was masked. Where something is blocked, its choice ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

import msgspec

from adapters.said import Ending, Piece, Pieces, answered, saying_instead
from gateway.config_guardrails import Stage
from gateway.guardrails import GuardrailFailed, Span
from gateway.guardrails.rules import OUTCOMES, Found, Guardrails, Rule
from gateway.guardrails.watch import Channel, Complete, Released, Said

# How much is held back at most; what is then there of a text is looked at as if it were all.
HELD_BYTES_MAX = 16 << 20
Key = tuple[int, tuple[str, ...]]
_NOTHING = Pieces([], frozenset())


class Look:
    """One guardrail over one stream. `spans` are all that it found, `blocked` the choices that it ended."""

    def __init__(self, rule: Rule, stage: Stage) -> None:
        self.rule = rule
        self.stage = stage
        self.spans: list[Span] = []
        self.blocked: set[int] = set()
        self.given_up = False
        self.seconds = 0.0
        self._channels: dict[Key, Channel[Said]] = {}

    async def feed(self, said: Iterable[Said], ended: Iterable[Key], passed: list[Said]) -> None:
        """Add what goes on to `passed` when texts came and others have ended; raises GuardrailFailed."""
        for one in said:
            if self.given_up:
                passed.append(one)
            elif one.choice not in self.blocked:
                self._note(await self._channel(one).add(one), one.choice, passed)
                if self.rule.config.action == "log":
                    passed.append(one)
        for key in ended:
            if (channel := self._channels.pop(key, None)) is not None:
                self._note(await channel.end(), key[0], passed)

    def _channel(self, said: Said) -> Channel[Said]:
        key = said.choice, said.key
        if key not in self._channels:
            scan = self.rule.guardrail.scan
            whole = self.stage == "after"
            self._channels[key] = Channel(Complete(scan) if whole else scan(), self.rule.config.action)
        return self._channels[key]

    def _note(self, released: Released[Said], choice: int, passed: list[Said]) -> None:
        self.spans += released.spans
        passed += released.events
        if released.spans and self.rule.config.action == "block":
            self.blocked.add(choice)
            self._channels = {key: one for key, one in self._channels.items() if key[0] != choice}

    def give_up(self, said: Iterable[Said], passed: list[Said]) -> None:
        """Add all that is held, as it came, with what was to be looked at; from now on nothing is."""
        self.given_up = True
        passed += [one for channel in self._channels.values() for one in channel.give_up()]
        self._channels.clear()
        there = {(one.of, one.at) for one in passed}
        passed += [one for one in said if (one.of, one.at) not in there]


class Waiting(msgspec.Struct, eq=False):
    """An event: `head` stands before its payload, `undecided` are the numbers of its texts that are being looked at."""

    number: int
    head: bytes
    payload: bytes
    found: Sequence[Piece]
    choices: frozenset[int]
    undecided: set[int]
    texts: dict[int, str] = {}


class Frames:
    """One stream behind guardrails. `outputs` counts the events shown that said something."""

    def __init__(
        self,
        all: Guardrails,
        rules: Sequence[tuple[Rule, Stage]],
        who: Found,
        choices: int,
        ending: Ending,
    ) -> None:
        self.outputs = 0
        self._over = False
        self._all = all
        self._who = who
        self._choices = choices
        self._ending = ending
        self._looks = [Look(rule, stage) for rule, stage in rules]
        self._waiting: deque[Waiting] = deque()
        self._numbered: dict[int, Waiting] = {}
        self._count = 0
        self._size = 0
        self._open: dict[int, set[Key]] = {}
        self._unsealed: set[tuple[int, tuple[str, ...]]] = set()
        self._blocked: set[int] = set()
        self._finished: set[int] = set()
        self._closed = False

    async def feed(self, frames: bytes) -> bytes:
        """What may be shown when whole events came; raises `guardrail_unavailable`, and `UpstreamInvalid` for what
        cannot be read."""
        shown: list[bytes] = []
        for frame in frames[:-2].split(b"\n\n"):
            if frame and not self._over:
                await self._look(*await self._arrived(frame))
                shown += self._ready()
        return b"".join(shown)

    async def end(self, rest: bytes) -> bytes:
        """The same with the last events of the stream."""
        shown = await self.feed(rest)
        if not self._over:
            await self._look([], self._end_all())
            shown += b"".join(self._ready())
        return shown

    def over(self) -> bool:
        """Whether nothing more is shown but the last events of `ending`, as all choices were blocked."""
        return self._over

    def close(self) -> None:
        """Count what each guardrail did, once."""
        if self._closed:
            return
        self._closed = True
        for look in self._looks:
            self._all.took(look.rule, look.seconds)
            if not look.given_up:
                outcome = OUTCOMES[look.rule.config.action] if look.spans else "passed"
                self._all.note(look.rule, look.stage, outcome, self._who, look.spans)

    async def _arrived(self, frame: bytes) -> tuple[list[Said], list[Key]]:
        """The texts of an event, and those that it ends."""
        begin = frame.index(b"data: ") + 6
        head, payload = frame[:begin], frame[begin:]
        looked_at = _NOTHING if payload == b"[DONE]" else await answered(payload)
        self._count += 1
        if self._count == 1 and looked_at is not _NOTHING:
            self._ending.opened(payload)
        said = [
            Said(one.choice, one.channel, one.place.text, one.quoted, self._count, at)
            for at, one in enumerate(looked_at.found)
            if one.part == "said"
        ]
        undecided = {one.at for one in said}
        waiting = Waiting(self._count, head, payload, looked_at.found, looked_at.choices, undecided)
        self._waiting.append(waiting)
        self._numbered[self._count] = waiting
        self._size += len(frame)
        keys: dict[int, set[Key]] = {}
        for one in said:
            keys.setdefault(one.choice, set()).add((one.choice, one.key))
        ended = [key for choice, now in keys.items() for key in self._open.get(choice, set()) - now]
        self._open |= keys
        if self._size > HELD_BYTES_MAX:
            ended = [*ended, *self._end_all()]
        return [one for one in said if one.choice not in self._blocked], ended

    def _end_all(self) -> list[Key]:
        ended = [key for keys in self._open.values() for key in keys]
        self._open.clear()
        return ended

    async def _look(self, said: list[Said], ended: list[Key]) -> None:
        for look in self._looks:
            passed: list[Said] = []
            await self._through(look, said, ended, passed)
            for choice in look.blocked - self._blocked:
                self._blocked.add(choice)
                # What the others have of it is all there is.
                ended = [*ended, *self._open.pop(choice, ())]
            said = passed
        for one in said:
            waiting = self._numbered.get(one.of)
            if waiting is None:
                continue  # It was of a choice that has ended.
            waiting.undecided.discard(one.at)
            piece = waiting.found[one.at]
            if one.text != piece.place.text:
                waiting.texts = {**waiting.texts, one.at: one.text}
                self._unsealed.add((piece.choice, piece.around))

    async def _through(self, look: Look, said: list[Said], ended: Collection[Key], passed: list[Said]) -> None:
        started_s = self._all.clock()
        try:
            async with look.rule.limit():
                await look.feed(said, ended, passed)
            return
        except TimeoutError:
            reason = GuardrailFailed("it took too long")
        except GuardrailFailed as failure:
            reason = failure
        finally:
            look.seconds += self._all.clock() - started_s
        look.give_up(said, passed)
        self._all.failed(look.rule, look.stage, self._who, reason)

    def _ready(self) -> Iterable[bytes]:
        """The events at the front of the line that are decided."""
        while self._waiting and not self._over:
            first = self._waiting[0]
            choices = {first.found[at].choice for at in first.undecided}
            if choices - self._blocked:
                return
            for choice in sorted(choices - self._finished):
                self._finished.add(choice)
                yield self._ending.blocked(choice)
            self._over = len(self._finished) >= self._choices
            del self._numbered[first.number]
            self._waiting.popleft()
            self._size -= len(first.head) + len(first.payload)
            if not (first.choices and first.choices <= self._finished):
                yield self._shown(first)

    def _shown(self, event: Waiting) -> bytes:
        texts = event.texts | dict.fromkeys(event.undecided, "")
        payload = saying_instead(event.payload, event.found, texts, self._unsealed)
        if payload != b"[DONE]":
            self._ending.noted(payload)
        self.outputs += any(piece.part == "said" for piece in event.found)
        return event.head + payload + b"\n\n"
