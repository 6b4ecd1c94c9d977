"""Turns the bytes of tokens into text of which no character and no stop string is ever cut."""

from codecs import utf_8_decode


class TextAssembler:
    """One choice's text, assembled token by token; what `push` and `finish` return, joined, is the whole answer.

    A stop string ends the text where it begins. When several could, the one that is complete first counts, and of
    those complete at the same character the one that begins first; so the result does not depend on how the text was
    split into tokens. Empty stop strings are ignored. At most one incomplete character (3 bytes) and one incomplete
    stop string are held back.
    """

    __slots__ = ("_held", "_pending", "_stops", "stopped", "stopped_by")

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self.stopped_by: str | None = None
        self._stops = tuple(text for text in stop if text)
        self._pending = b""
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that may be shown now that `piece` has arrived; "" once stopped."""
        if self._pending or not piece.isascii():
            piece = self._pending + piece
            text, used = utf_8_decode(piece, "replace", False)
            self._pending = piece[used:]
        else:
            text = piece.decode("ascii")
        return self._cut(text) if self._stops else text

    def finish(self) -> str:
        """The rest, when no more tokens come. An incomplete character becomes U+FFFD."""
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        if self._stops:
            text = self._cut(text) + self._held
            self._held = ""
        return text

    def _cut(self, text: str) -> str:
        """`text` without what follows a stop string or may yet become one."""
        if self.stopped:
            return ""
        if self._held:
            text = self._held + text
        end = start = len(text) + 1
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0 and (at + len(stop), at) < (end, start):
                end, start, self.stopped_by = at + len(stop), at, stop
        self.stopped = end <= len(text)
        keep = start if self.stopped else self._safe(text)
        self._held = "" if self.stopped else text[keep:]
        return text[:keep]

    def _safe(self, text: str) -> int:
        """Where the longest end of `text` begins that a stop string could begin with."""
        safe = len(text)
        for stop in self._stops:
            first = stop[0]
            at = text.find(first, max(0, len(text) - len(stop) + 1), safe)
            while at >= 0:
                if stop.startswith(text[at:]):
                    safe = at
                    break
                at = text.find(first, at + 1, safe)
        return safe
