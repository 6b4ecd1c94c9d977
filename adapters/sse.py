"""Server-sent events out of the pieces of a body, whatever their boundaries (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from adapters.errors import UpstreamInvalid

EVENT_BYTES_MAX = 16 << 20


class EventSplitter:
    """Splits one stream. Lines may end in LF, CR or both; comments, ids and retry times are skipped.

    Unlike a browser it also takes an event that the end of the stream cuts off before its empty line, because some
    servers leave that out.
    """

    def __init__(self, bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()
        self._scanned = 0
        self._kind = ""
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """The events that end in this piece, each with its `event` (mostly empty) and its `data`.

        Raises `UpstreamInvalid` when one event is over `bytes_max`.
        """
        rest = self._rest
        rest += piece
        # A CR at the end may be half of a line end.
        end = max(rest.rfind(b"\n", self._scanned), rest.rfind(b"\r", self._scanned, len(rest) - 1)) + 1
        if not end:
            self._scanned = max(0, len(rest) - 1)
            self._check(len(rest))
            return []
        lines, self._scanned = bytes(rest[:end]), 0
        del rest[:end]
        return self._lines(lines)

    def end(self) -> list[tuple[str, bytes]]:
        """What the end of the stream completes."""
        rest, self._rest = bytes(self._rest), bytearray()
        events = self._lines(rest) if rest else []
        return events + self._dispatch()

    def _lines(self, text: bytes) -> list[tuple[str, bytes]]:
        events: list[tuple[str, bytes]] = []
        if self._first:
            text, self._first = text.removeprefix(b"\xef\xbb\xbf"), False
        for line in text.splitlines():
            if not line:
                events += self._dispatch()
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._data.append(value)
                self._check(len(value))
                self._size += len(value) + 1
            elif name == b"event":
                self._kind = value[:100].decode("utf-8", "replace")
        self._check(len(self._rest))
        return events

    def _dispatch(self) -> list[tuple[str, bytes]]:
        kind, data = self._kind, self._data
        self._kind, self._data, self._size = "", [], 0
        return [(kind, b"\n".join(data))] if data else []

    def _check(self, more: int) -> None:
        if self._size + more > self._bytes_max:
            raise UpstreamInvalid("The provider sent an event that is too large.")
