"""The file of one kept conversation: a record and a blob, sealed against damage and, with a key, against readers.

64 bytes of prelude (magic and version, salt, which key, what can use it), 4 bytes of length, the record, then the blob
in chunks; the record and each chunk are followed by a seal of 16 bytes. With a key the seal is that of AES-256-GCM, the
key derived from the salt; without, it is the first half of a BLAKE3, which tells damage but not malice. Either covers
the prelude, the number of the chunk and whether it is the last, so that nothing can be cut, swapped or mixed: this is
the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, 2015).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterator
from io import BufferedReader, BufferedWriter

import msgspec
from blake3 import blake3

from adapters.llama_cpp.kept import Blob, Checkpoint, Record, State

MAGIC = b"KVSESS\x00\x02"
PRELUDE = struct.Struct("<8s16s8s32s")
LENGTH = struct.Struct("<I")
SEAL_BYTES = 16
# Small enough that a decode thread beside does not wait noticeably for the interpreter's lock, which is held while a
# chunk is copied and its memory touched.
CHUNK_BYTES = 256 << 10
RECORD_BYTES_MAX = 64 << 20


class Damaged(Exception):
    """The file is not what was written."""


class Foreign(Exception):
    """The file is of another key, another version of this format, or of no use to this model."""


class Lock(msgspec.Struct, frozen=True):
    """What files are sealed with and for: 32 bytes that say what can use them, and maybe a key of 32 bytes."""

    compatibility: bytes
    key: bytes | None = None

    @property
    def key_name(self) -> bytes:
        return hashlib.blake2b(self.key, digest_size=8, person=b"which key").digest() if self.key else bytes(8)


class _Seal:
    """Closes and opens the chunks of one file, in order."""

    def __init__(self, lock: Lock, prelude: bytes) -> None:
        self._prelude = prelude
        self._number = 0
        self._sealed = bytearray()
        self._cipher = None
        if lock.key is not None:
            # Imported here, because only an encrypting worker needs it.
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            salt = PRELUDE.unpack(prelude)[1]
            self._cipher = AESGCM(hashlib.blake2b(salt, key=lock.key, digest_size=32, person=b"session file").digest())

    def write(self, file: BufferedWriter, chunk: memoryview, last: bool) -> None:
        nonce = self._nonce(last)
        if self._cipher is not None:
            file.write(self._cipher.encrypt(nonce, chunk, self._prelude))
        else:
            file.write(chunk)
            file.write(self._digest(nonce, chunk))

    def read(self, file: BufferedReader, into: memoryview, last: bool) -> None:
        nonce = self._nonce(last)
        if self._cipher is None:
            _fill(file, into)
            if not hmac.compare_digest(self._digest(nonce, into), _exactly(file, SEAL_BYTES)):
                raise Damaged("a seal is broken")
            return
        from cryptography.exceptions import InvalidTag

        size = len(into) + SEAL_BYTES
        if len(self._sealed) < size:
            self._sealed = bytearray(size)
        sealed = memoryview(self._sealed)[:size]
        _fill(file, sealed)
        try:
            self._cipher.decrypt_into(nonce, sealed, self._prelude, into)
        except InvalidTag:
            raise Damaged("a seal is broken") from None

    def _digest(self, nonce: bytes, data: memoryview) -> bytes:
        return blake3(self._prelude + nonce).update(data).digest(SEAL_BYTES)

    def _nonce(self, last: bool) -> bytes:
        number, self._number = self._number, self._number + 1
        return struct.pack("<Q?3x", number, last)


def write(file: BufferedWriter, record: Record, blob: Blob, lock: Lock) -> int:
    """Writes a file from its beginning; gives its size in bytes."""
    prelude = PRELUDE.pack(MAGIC, os.urandom(16), lock.key_name, lock.compatibility)
    seal = _Seal(lock, prelude)
    header = msgspec.msgpack.encode(record)
    file.write(prelude)
    file.write(LENGTH.pack(len(header)))
    seal.write(file, memoryview(header), False)
    states = [blob.state, *(checkpoint.state for checkpoint in blob.checkpoints)]
    for chunk, last in _chunks(states):
        seal.write(file, chunk, last)
    return _size(len(header), record)


def read_record(file: BufferedReader, lock: Lock) -> Record:
    """The record of a file whose size fits it. Raises Damaged or Foreign, or OSError."""
    return _begin(file, lock)[0]


def read(file: BufferedReader, lock: Lock, take: Callable[[int], State]) -> tuple[Record, Blob]:
    """All of a file, every byte checked, in memory that `take` gives. Raises Damaged or Foreign, or OSError."""
    record, seal = _begin(file, lock)
    states = [take(size) for size in _sizes(record)]
    for chunk, last in _chunks(states):
        seal.read(file, chunk, last)
    checkpoints = zip(record.checkpoints, states[1:], strict=True)
    return record, Blob(states[0], tuple(Checkpoint(position, state) for (position, _), state in checkpoints))


def _begin(file: BufferedReader, lock: Lock) -> tuple[Record, _Seal]:
    prelude = _exactly(file, PRELUDE.size)
    magic, _, key_name, compatibility = PRELUDE.unpack(prelude)
    if magic[:6] != MAGIC[:6]:
        raise Damaged("it is no session file")
    if (magic, key_name, compatibility) != (MAGIC, lock.key_name, lock.compatibility):
        raise Foreign("it is of another key, version or model")
    (length,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    if length > RECORD_BYTES_MAX:
        raise Damaged("its record is too long")
    header, seal = bytearray(length), _Seal(lock, prelude)
    seal.read(file, memoryview(header), False)
    try:
        record = msgspec.msgpack.decode(header, type=Record)
    except msgspec.MsgspecError as error:
        raise Damaged(f"its record is wrong: {error}") from error
    if min(_sizes(record)) <= 0 or os.fstat(file.fileno()).st_size != _size(length, record):
        raise Damaged("its size is wrong")
    return record, seal


def _sizes(record: Record) -> list[int]:
    return [record.state_bytes, *(size for _, size in record.checkpoints)]


def _size(header_bytes: int, record: Record) -> int:
    chunks = sum(-(-size // CHUNK_BYTES) for size in _sizes(record))
    return PRELUDE.size + LENGTH.size + header_bytes + sum(_sizes(record)) + (1 + chunks) * SEAL_BYTES


def _chunks(states: list[State]) -> Iterator[tuple[memoryview, bool]]:
    """The states in pieces, each with whether it is the last."""
    for index, state in enumerate(states):
        view = memoryview(state)  # type: ignore[arg-type]
        for start in range(0, len(view), CHUNK_BYTES):
            last = index == len(states) - 1 and start + CHUNK_BYTES >= len(view)
            yield view[start : start + CHUNK_BYTES], last


def _exactly(file: BufferedReader, size: int) -> bytes:
    data = bytearray(size)
    _fill(file, memoryview(data))
    return bytes(data)


def _fill(file: BufferedReader, into: memoryview) -> None:
    while into:
        count = file.readinto(into)
        if not count:
            raise Damaged("it ends early")
        into = into[count:]
