"""Guardrails over the events of an answer that is passed on as it came.

All texts of an event are looked at, each with those that it continues: a text ends when an event says something in its
choice and does not continue it, or with the stream. Events go on in the order in which they came, an event once all of
its texts are decided, and the same but for what was masked. Where something is blocked, its choice ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from adapters.said import Ending, Piece, Pieces, answered, saying_instead
from gateway.guardrails.rules import Duty
from gateway.guardrails.watch import Channel, Released, Said

# How much is held back at most; what is then there of a text is looked at as if it were all.
HELD_BYTES_MAX = 16 << 20
Key = tuple[int, tuple[str, ...]]
_NOTHING = Pieces([], frozenset())


class Look:
    """One guardrail over one stream. `blocked` are the choices that it ended."""

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self.blocked: set[int] = set()
        self._channels: dict[Key, Channel[Said]] = {}

    async def feed(self, said: Sequence[Said], ended: Iterable[Key], passed: list[Said]) -> None:
        """Add what goes on to `passed` when texts came and others have ended; raises `guardrail_unavailable`."""
        if self.duty.failed:
            passed += said
        elif not await self.duty.does(self._look(said, ended, passed)):
            passed += [one for channel in self._channels.values() for one in channel.give_up()]
            there = {(one.of, one.at) for one in passed}
            passed += [one for one in said if (one.of, one.at) not in there]

    async def _look(self, said: Iterable[Said], ended: Iterable[Key], passed: list[Said]) -> None:
        for one in said:
            if one.choice not in self.blocked:
                key = one.choice, one.key
                channel = self._channels.get(key)
                if channel is None:
                    channel = self._channels[key] = Channel(self.duty)
                self._note(await channel.add(one), one.choice, passed)
                if self.duty.action == "log":
                    passed.append(one)
        for key in ended:
            channel = self._channels.get(key)
            if channel is not None:
                self._note(await channel.end(), key[0], passed)
                self._channels.pop(key, None)

    def _note(self, released: Released[Said], choice: int, passed: list[Said]) -> None:
        self.duty.spans += released.spans
        passed += released.events
        if released.spans and self.duty.action == "block":
            self.blocked.add(choice)
            self._channels = {key: one for key, one in self._channels.items() if key[0] != choice}


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

    def __init__(self, duties: Sequence[Duty], choices: int, ending: Ending) -> None:
        self.outputs = 0
        self._over = False
        self._choices = choices
        self._ending = ending
        self._looks = [Look(duty) for duty in duties]
        self._waiting: deque[Waiting] = deque()
        self._numbered: dict[int, Waiting] = {}
        self._count = 0
        self._size = 0
        self._open: dict[int, set[Key]] = {}
        self._unsealed: set[Key] = set()
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
            look.duty.close()

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
            await look.feed(said, ended, passed)
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
