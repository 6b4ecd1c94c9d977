"""What the other replicas let in, as they say it a few times a second: for the time when the shared counters are away.

Each says how much is in the slots of its windows that have changed, on its own clock. Saying it twice changes nothing,
and what was missed is too little until the slot changes again or leaves its window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gateway.limits.windows import SLOTS, Window

PEERS_MAX = 256
KEYS_MAX = 500


class Slots(msgspec.Struct, frozen=True, array_like=True):
    """What is in some slots of a window: (slot, amount). `ends_us` as in `Window`."""

    key: str
    slot_us: int
    ends_us: int | None
    amounts: tuple[tuple[int, int], ...]


class News(msgspec.Struct, frozen=True, array_like=True):
    """What a replica says at `now_us` of its clock."""

    replica: str
    now_us: int
    windows: tuple[Slots, ...]


class _Peer:
    """Another replica: its windows, and how far its clock is ahead of ours."""

    def __init__(self) -> None:
        self.ahead_us = 0
        self.windows: dict[str, Window] = {}


class Hearsay:
    """What is known of the others. `replica` names this one."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._peers: dict[str, _Peer] = {}
        self._decoder = msgspec.msgpack.Decoder(News)

    def messages(self, windows: Iterable[Slots], now_us: int) -> Iterator[bytes]:
        """What to say to the others of windows that have changed."""
        pending = tuple(windows)
        for start in range(0, len(pending), KEYS_MAX):
            yield msgspec.msgpack.encode(News(self._replica, now_us, pending[start : start + KEYS_MAX]))

    def hear(self, message: bytes, now_us: int) -> None:
        """Take in what a replica said. Raises `msgspec.DecodeError` when it cannot be read."""
        news = self._decoder.decode(message)
        if news.replica == self._replica or (news.replica not in self._peers and len(self._peers) >= PEERS_MAX):
            return
        peer = self._peers.setdefault(news.replica, _Peer())
        peer.ahead_us = news.now_us - now_us
        for one in news.windows:
            window = peer.windows.get(one.key)
            if window is None:
                window = peer.windows[one.key] = Window(one.slot_us * SLOTS, one.ends_us)
            window.advance(news.now_us)
            window.fill({slot: amount - window.amounts.get(slot, 0) for slot, amount in one.amounts})

    def used(self, key: str, now_us: int) -> int:
        """How much of a rate the others have let in, as far as it is known."""
        total = 0
        for peer in self._peers.values():
            window = peer.windows.get(key)
            if window is not None:
                window.advance(now_us + peer.ahead_us)
                total += window.total
        return total

    def forget(self, now_us: int, wall_us: int) -> None:
        """Drop windows that are empty or whose period is over, and replicas that have none."""
        for name, peer in list(self._peers.items()):
            for key, window in list(peer.windows.items()):
                window.advance(now_us + peer.ahead_us)
                if not window.total or (window.ends_us is not None and window.ends_us <= wall_us):
                    del peer.windows[key]
            if not peer.windows:
                del self._peers[name]
