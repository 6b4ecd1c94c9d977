"""Digests of a file, while it is read once, and written somewhere if wanted."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from adapters.disk import write_all
from gateway.library.errors import Cancelled, Corrupt, NoSpace, Unusable

PIECE_BYTES = 4 << 20


class Digests(NamedTuple):
    """Of a file's whole content, in hexadecimal."""

    size_bytes: int
    sha256: str
    blake3: str


def digests(
    source: Path, target: Path | None = None, *, stop: threading.Event, told: Callable[[int], None] = lambda size: None
) -> Digests:
    """Read `source` once, and write it to `target` on the way if there is one, synced; `told` hears how far it is.

    Raises Unusable when it cannot be read or written, NoSpace, Corrupt when the file changes meanwhile, Cancelled.
    """
    from blake3 import blake3

    sha256, fast = hashlib.sha256(), blake3()
    try:
        with source.open("rb", buffering=0) as read:
            before = os.fstat(read.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise Unusable("it is not a file")
            out = None if target is None else target.open("xb", buffering=0)
            try:
                size = 0
                # One that grows as fast as it is read would never end.
                while size <= before.st_size and (piece := read.read(PIECE_BYTES)):
                    if stop.is_set():
                        raise Cancelled("it was stopped")
                    sha256.update(piece)
                    fast.update(piece)
                    if out is not None:
                        write_all(out.fileno(), piece)
                    size += len(piece)
                    told(size)
                if out is not None:
                    os.fsync(out.fileno())
            finally:
                if out is not None:
                    out.close()
            after = os.fstat(read.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("there is no room for it") from None
        raise Unusable(f"it cannot be read: {error.strerror}") from None
    if size != before.st_size or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Corrupt("somebody wrote to it while it was read")
    return Digests(size, sha256.hexdigest(), fast.hexdigest())
