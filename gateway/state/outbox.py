"""A durable queue on the local disk for what the database cannot take now: appended, synced, replayed in order.

It is a directory of segments, files that are only ever appended to. A record is its CRC-32 and its length (four bytes
each, little-endian), then its bytes; the CRC covers the length too, so no run of zeros is a record. A segment has its
room on the disk from the beginning, so that a sync has no more to write than the records. One that was prepared has
zeros there, so that the file system has nothing to note of its own either, and a sync does not wait for what others
write. One whose process died ends in what is left of that, or in part of a record, which nobody was told is safe:
reading stops there, and writing goes on in a new one. What has been taken out is not written down: a segment goes when
all of it is safe elsewhere, so after a crash some records come a second time, and whoever takes them has to know them
again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

BYTES_MAX = 1 << 30
SEGMENT_BYTES_MAX = 4 << 20
# The next segment before it has a number. Its zeros are written so many at a time, as others wait for the disk too.
SPARE = "spare"
ZEROS = bytes(256 * 1024)
RECORD_BYTES_MAX = 1 << 20
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<II")


class OutboxError(Exception):
    """The outbox cannot be used now; what was to be added may be found in it, but must not be relied on."""


class OutboxFull(OutboxError):
    """It holds as many bytes as it may; nothing was added."""


class Segment(msgspec.Struct, frozen=True):
    """Whole records in the order they were added, and how many bytes after them were not one."""

    path: Path
    records: tuple[bytes, ...]
    torn_bytes: int


def holds_records(directory: Path) -> bool:
    """Whether there is anything in an outbox, which nobody need have opened or made."""
    return any(directory.glob("*.outbox"))


class Outbox:
    """One directory of one process. Every call takes a disk's time: make them in a thread, one after the other.
    `prepare` may run beside the others."""

    def __init__(
        self, directory: Path, *, bytes_max: int = BYTES_MAX, segment_bytes_max: int = SEGMENT_BYTES_MAX
    ) -> None:
        """Raises OutboxError when the directory cannot be used, or another process uses it."""
        self._bytes_max = bytes_max
        self._segment_bytes_max = segment_bytes_max
        # The number and the descriptor of the segment that is added to.
        self._writing: tuple[int, int] | None = None
        self._has_spare = False
        with _translated(directory), contextlib.ExitStack() as opened:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory = os.open(directory, os.O_RDONLY)
            opened.callback(os.close, self._directory)
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (directory / SPARE).unlink(missing_ok=True)
            # By number.
            self._sizes = {int(path.stem): path.stat().st_size for path in sorted(directory.glob("*.outbox"))}
            opened.pop_all()
        self.path = directory
        self._next = 1 + max(self._sizes, default=0)

    @property
    def size_bytes(self) -> int:
        """What it holds; 0 when nothing waits."""
        return sum(self._sizes.values())

    def _file(self, number: int) -> Path:
        return self.path / f"{number:016d}.outbox"

    def append(self, records: Sequence[bytes]) -> int:
        """Add records; they are on the disk when this returns, in the segment of this number, which only grows. Raises
        OutboxFull and OutboxError."""
        data = b"".join([_framed(record) for record in records])
        if self.size_bytes + len(data) > self._bytes_max:
            raise OutboxFull(f"the outbox {self.path} holds {self.size_bytes} of {self._bytes_max} bytes")
        try:
            number, descriptor = self._writing or self._start_segment()
            try:
                _write(descriptor, data, self._sizes[number])
                os.fdatasync(descriptor)
            except OSError:
                # After a failed sync the kernel may call the same pages clean, so this file is never trusted again.
                self._end_segment()
                self._forget_empty(number)
                raise
        except OSError as error:
            raise _unusable(self.path, error) from error
        self._sizes[number] += len(data)
        if self._sizes[number] >= self._segment_bytes_max:
            self._end_segment()
        return number

    def segments(self) -> Iterator[Segment]:
        """What there is now, oldest first; call `remove` for each whose records are safe elsewhere."""
        self._end_segment()
        for path in map(self._file, tuple(self._sizes)):
            with _translated(self.path):
                data = path.read_bytes()
            records = tuple(_records(data))
            torn_bytes = len(data) - sum(_HEAD.size + len(record) for record in records)
            yield Segment(path, records, torn_bytes)

    def remove(self, segment: Segment) -> None:
        """Forget a segment. One whose file is gone is forgotten even when that was not synced: it may come again."""
        self._remove([int(segment.path.stem)])

    def remove_before(self, number: int) -> None:
        """Forget all segments with smaller numbers."""
        self._remove([one for one in self._sizes if one < number])

    def clear(self) -> None:
        """Forget everything."""
        self._end_segment()
        self.remove_before(self._next)

    def _remove(self, numbers: Sequence[int]) -> None:
        with _translated(self.path):
            for number in numbers:
                self._file(number).unlink(missing_ok=True)
                self._sizes.pop(number, None)
            if numbers:
                os.fsync(self._directory)

    def close(self) -> None:
        self._end_segment()
        self._drop_spare()
        os.close(self._directory)

    @property
    def wants_spare(self) -> bool:
        """Whether the next segment is worth preparing: so much is added that it will be needed, and it is not there."""
        writing = self._writing  # Another thread may end it meanwhile.
        if self._has_spare or writing is None:
            return False
        return self._sizes[writing[0]] >= self._segment_bytes_max // 4

    def prepare(self) -> None:
        """Fill the next segment with zeros. Where that cannot be, it begins like the first one."""
        try:
            descriptor = os.open(self.path / SPARE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                for at in range(0, self._segment_bytes_max, len(ZEROS)):
                    _write(descriptor, ZEROS[: self._segment_bytes_max - at], at)
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self._drop_spare()
        else:
            self._has_spare = True

    def _drop_spare(self) -> None:
        self._has_spare = False
        # It holds nothing, and the next process removes it.
        with contextlib.suppress(OSError):
            (self.path / SPARE).unlink(missing_ok=True)

    def _use_spare(self, path: Path) -> int | None:
        """The descriptor of the prepared segment, which is this file from now on; None: there is none."""
        if not self._has_spare:
            return None
        self._has_spare = False
        try:
            descriptor = os.open(self.path / SPARE, os.O_WRONLY)
        except OSError:
            return None
        try:
            (self.path / SPARE).rename(path)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _start_segment(self) -> tuple[int, int]:
        number = self._next
        descriptor = self._use_spare(self._file(number))
        if descriptor is None:
            descriptor = os.open(self._file(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            # Without the room, because the disk is nearly full or knows no such thing, the file grows as it is written.
            with contextlib.suppress(AttributeError, OSError):
                os.posix_fallocate(descriptor, 0, self._segment_bytes_max)
        self._next += 1
        self._sizes[number] = 0
        try:
            os.fsync(self._directory)
        except OSError:
            # What is written to a file whose name may be lost is not safe.
            os.close(descriptor)
            self._forget_empty(number)
            raise
        self._writing = number, descriptor
        return self._writing

    def _end_segment(self) -> None:
        if self._writing is None:
            return
        (number, descriptor), self._writing = self._writing, None
        # The room that is left goes at the latest with the file.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, self._sizes[number])
        os.close(descriptor)

    def _forget_empty(self, number: int) -> None:
        """Remove a segment that nothing was added to: on a full disk there would be one more with every attempt."""
        if not self._sizes[number]:
            with contextlib.suppress(OSError):
                self._file(number).unlink()
                del self._sizes[number]


def _framed(record: bytes) -> bytes:
    if len(record) > RECORD_BYTES_MAX:
        raise ValueError(f"a record has at most {RECORD_BYTES_MAX} bytes")
    length = _CRC.pack(len(record))
    return _CRC.pack(zlib.crc32(record, zlib.crc32(length))) + length + record


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records at the beginning of `data`."""
    at = 0
    while at + _HEAD.size <= len(data):
        checksum, length = _HEAD.unpack_from(data, at)
        record = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(record) < length or zlib.crc32(record, zlib.crc32(_CRC.pack(length))) != checksum:
            return
        yield record
        at += _HEAD.size + length


def _write(descriptor: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> OutboxError:
    if isinstance(error, BlockingIOError):
        return OutboxError(f"another gateway uses the outbox {path}; each needs a data directory of its own")
    return OutboxError(f"the outbox {path} cannot be used: {error.strerror}")
