"""A remote file of which only what is read is fetched."""

from __future__ import annotations

import io
from collections.abc import Callable

from gateway.library.errors import Corrupt

BLOCK_BYTES = 1 << 20
# No header is longer; what is read from here on would be weights.
FETCHED_BYTES_MAX = 64 << 20


class RangedFile(io.RawIOBase):
    """A file of `size_bytes`, read from its front on; `fetch(start, count)` gives that many bytes of it."""

    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size = size_bytes
        self._fetch = fetch
        self._known = b""
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; raises Corrupt behind what a header can be."""
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end > FETCHED_BYTES_MAX:
            raise Corrupt("its header is longer than any")
        if end > len(self._known):
            # What is already here doubles, so that a long header takes few requests.
            wanted = min(self._size, FETCHED_BYTES_MAX, max(end, 2 * len(self._known), BLOCK_BYTES))
            self._known += self._fetch(len(self._known), wanted - len(self._known))
            if len(self._known) < end:
                raise Corrupt("the hub sends less of it than there is")
        data = self._known[self._at : end]
        self._at = max(self._at, end)
        return data
