"""What is under way in this process, on the local disk, so that the next process knows what died with this one.

A file of lines: `+` and a record when something begins, `-` and its id when it has ended. What has not ended within a
few hundredths of a second is written then, and what somebody is about to see something of is written before. It is
never synced: it survives the end of the process, not that of the machine. The directory has to be locked by its owner,
since two processes must not share a journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

BYTES_MAX = 4 << 20
# What is this old is written within as much time again. Requests that are passed on to a quick target end before that,
# and nothing is written of them.
FLUSH_S = 0.02

log = logging.getLogger(__name__)


class Journal:
    """One file. `left` is what an earlier process began and did not end, by id; `clear` forgets it.

    A journal that cannot be written is given up with a line in the log: nothing waits for it.
    """

    def __init__(self, path: Path, *, bytes_max: int = BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        # Not written yet: what began since the last turn, and before it.
        self._begun: dict[str, object] = {}
        self._older: dict[str, object] = {}
        self._open: dict[str, bytes] = {}
        self._lines: list[bytes] = []
        self._due = False
        self._size = 0
        self._file: int | None = None
        self.left = _left(path)

    def clear(self) -> None:
        """Begin anew, without what was left; before anything begins."""
        self.left = {}
        self._rewrite()

    def begin(self, id: str, record: object) -> None:
        """Something is under way from now on. Its `record` becomes JSON if it is written; `id` has no space."""
        self._begun[id] = record
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._turn)

    def _turn(self) -> None:
        """Write what is older than the last turn."""
        self._write_begun(self._older)
        self._older, self._begun = self._begun, {}
        self._due = bool(self._older)
        if self._due:
            asyncio.get_running_loop().call_later(FLUSH_S, self._turn)

    def show(self, id: str) -> None:
        """Somebody is about to see something of it, so it is written now."""
        for begun in self._begun, self._older:
            if id in begun:
                self._write_begun({id: begun.pop(id)})

    def end(self, ids: Iterable[str]) -> None:
        """They have ended, and what became of them is durable, which the next process finds out too; so this is written
        with whatever begins next."""
        for id in ids:
            if self._begun.pop(id, None) is not None or self._older.pop(id, None) is not None:
                continue
            if self._open.pop(id, None) is not None:
                self._lines.append(b"-%b\n" % id.encode())

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def flush(self) -> None:
        """Write what was added."""
        self._write_begun(self._older | self._begun)
        self._older.clear()
        self._begun.clear()

    def _write_begun(self, begun: Mapping[str, object]) -> None:
        for id, record in begun.items():
            self._open[id] = data = msgspec.json.encode(record)
            self._lines.append(b"+%b %b\n" % (id.encode(), data))
        data = b"".join(self._lines)
        self._lines.clear()
        if self._file is None or not data:
            return
        try:
            _write(self._file, data)
        except OSError as error:
            self._give_up(error)
            return
        self._size += len(data)
        if self._size > self._bytes_max:
            self._bytes_max = max(self._bytes_max, 2 * sum(map(len, self._open.values())))
            self._rewrite()

    def _rewrite(self) -> None:
        """Put a file with only what is under way in the place of the one there is."""
        data = b"".join(b"+%b %b\n" % (id.encode(), record) for id, record in self._open.items())
        fresh = self._path.with_suffix(".new")
        try:
            file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            _write(file, data)
            fresh.replace(self._path)
        except OSError as error:
            self._give_up(error)
            return
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = file, len(data)

    def _give_up(self, error: OSError) -> None:
        log.error("%s cannot be written; requests that die with this process will have no entry: %s", self._path, error)
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write(file: int, data: bytes) -> None:
    if os.write(file, data) < len(data):
        raise OSError("the disk is full")


def _left(path: Path) -> dict[str, bytes]:
    """What was begun in a journal and not ended. A line that is not whole was written as its process died."""
    data = b""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
    left: dict[str, bytes] = {}
    for line in data.split(b"\n")[:-1]:
        id, _, record = line[1:].partition(b" ")
        if line[:1] == b"+":
            left[id.decode()] = record
        else:
            left.pop(id.decode(), None)
    return left
