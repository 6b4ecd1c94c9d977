"""The beginning of a kept conversation's file: what can use it, and a record that says what it is.

Read by workers and, where a model has none, by the gateway: nothing here needs the libraries of an engine.

64 bytes of prelude (magic and version, salt, which key, what can use it), 4 bytes of length, the record; the chunks of
`sealed.py` follow. Each is followed by a seal of 16 bytes: with a key that of AES-256-GCM, the key derived from the
salt; without, the first half of a BLAKE3, which tells damage but not malice. Either covers the prelude, the number of
the chunk and whether it is the last, so that nothing can be cut, swapped or mixed: this is the STREAM construction
(Hoang, Reyhanitabar, Rogaway, Vizár, 2015).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import struct
from io import BufferedReader, BufferedWriter

import msgspec
from blake3 import blake3

ID = re.compile(r"sess_[0-9a-f]{24}")
SUFFIX = ".kv"
LOCK_NAME = "lock"
MAGIC = b"KVSESS\x00\x02"
PRELUDE = struct.Struct("<8s16s8s32s")
LENGTH = struct.Struct("<I")
SEAL_BYTES = 16
# Small enough that a decode thread beside does not wait noticeably for the interpreter's lock, which is held while a
# chunk is copied and its memory touched.
CHUNK_BYTES = 256 << 10
RECORD_BYTES_MAX = 64 << 20


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What stands beside a blob on disk. `tokens` are little-endian 32-bit integers, times Unix microseconds,
    `checkpoints` pairs of position and bytes."""

    tenant: str
    variant: str
    key: str | None
    id: str
    tokens: bytes
    created_us: int
    used_us: int
    pinned: bool
    state_bytes: int
    checkpoints: tuple[tuple[int, int], ...]


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


class Seal:
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
            fill(file, into)
            if not hmac.compare_digest(self._digest(nonce, into), exactly(file, SEAL_BYTES)):
                raise Damaged("a seal is broken")
            return
        from cryptography.exceptions import InvalidTag

        size = len(into) + SEAL_BYTES
        if len(self._sealed) < size:
            self._sealed = bytearray(size)
        sealed = memoryview(self._sealed)[:size]
        fill(file, sealed)
        try:
            self._cipher.decrypt_into(nonce, sealed, self._prelude, into)
        except InvalidTag:
            raise Damaged("a seal is broken") from None

    def _digest(self, nonce: bytes, data: memoryview) -> bytes:
        return blake3(self._prelude + nonce).update(data).digest(SEAL_BYTES)

    def _nonce(self, last: bool) -> bytes:
        number, self._number = self._number, self._number + 1
        return struct.pack("<Q?3x", number, last)


def begin(file: BufferedReader, lock: Lock) -> tuple[Record, Seal]:
    """The record of a file whose size fits it, and what opens the chunks behind it. Raises Damaged or Foreign, or
    OSError."""
    prelude = exactly(file, PRELUDE.size)
    magic, _, key_name, compatibility = PRELUDE.unpack(prelude)
    if magic[:6] != MAGIC[:6]:
        raise Damaged("it is no session file")
    if (magic, key_name, compatibility) != (MAGIC, lock.key_name, lock.compatibility):
        raise Foreign("it is of another key, version or model")
    (length,) = LENGTH.unpack(exactly(file, LENGTH.size))
    if length > RECORD_BYTES_MAX:
        raise Damaged("its record is too long")
    header, seal = bytearray(length), Seal(lock, prelude)
    seal.read(file, memoryview(header), False)
    try:
        record = msgspec.msgpack.decode(header, type=Record)
    except msgspec.MsgspecError as error:
        raise Damaged(f"its record is wrong: {error}") from error
    if min(state_bytes(record)) <= 0 or os.fstat(file.fileno()).st_size != file_bytes(length, record):
        raise Damaged("its size is wrong")
    return record, seal


def look(file: BufferedReader, key: bytes | None) -> Record:
    """The record of a file, whatever can use it. Raises Damaged or Foreign, or OSError."""
    compatibility = PRELUDE.unpack(exactly(file, PRELUDE.size))[3]
    file.seek(0)
    return begin(file, Lock(compatibility, key))[0]


def state_bytes(record: Record) -> list[int]:
    """The sizes of the states behind a record."""
    return [record.state_bytes, *(size for _, size in record.checkpoints)]


def file_bytes(header_bytes: int, record: Record) -> int:
    """The size of a whole file."""
    chunks = sum(-(-size // CHUNK_BYTES) for size in state_bytes(record))
    return PRELUDE.size + LENGTH.size + header_bytes + sum(state_bytes(record)) + (1 + chunks) * SEAL_BYTES


def exactly(file: BufferedReader, size: int) -> bytes:
    data = bytearray(size)
    fill(file, memoryview(data))
    return bytes(data)


def fill(file: BufferedReader, into: memoryview) -> None:
    while into:
        count = file.readinto(into)
        if not count:
            raise Damaged("it ends early")
        into = into[count:]
