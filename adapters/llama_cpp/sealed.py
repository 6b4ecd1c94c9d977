"""The file of one kept conversation: its record, and a blob in chunks, sealed as `records.py` says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BufferedReader, BufferedWriter

import msgspec

from adapters.llama_cpp.kept import Blob, Checkpoint, State
from adapters.llama_cpp.records import (
    CHUNK_BYTES,
    LENGTH,
    MAGIC,
    PRELUDE,
    Lock,
    Record,
    Seal,
    begin,
    file_bytes,
    state_bytes,
)


def write(file: BufferedWriter, record: Record, blob: Blob, lock: Lock) -> int:
    """Writes a file from its beginning; gives its size in bytes."""
    prelude = PRELUDE.pack(MAGIC, os.urandom(16), lock.key_name, lock.compatibility)
    seal = Seal(lock, prelude)
    header = msgspec.msgpack.encode(record)
    file.write(prelude)
    file.write(LENGTH.pack(len(header)))
    seal.write(file, memoryview(header), False)
    states = [blob.state, *(checkpoint.state for checkpoint in blob.checkpoints)]
    for chunk, last in _chunks(states):
        seal.write(file, chunk, last)
    return file_bytes(len(header), record)


def read_record(file: BufferedReader, lock: Lock) -> Record:
    """The record of a file whose size fits it. Raises Damaged or Foreign, or OSError."""
    return begin(file, lock)[0]


def read(file: BufferedReader, lock: Lock, take: Callable[[int], State]) -> tuple[Record, Blob]:
    """All of a file, every byte checked, in memory that `take` gives. Raises Damaged or Foreign, or OSError."""
    record, seal = begin(file, lock)
    states = [take(size) for size in state_bytes(record)]
    for chunk, last in _chunks(states):
        seal.read(file, chunk, last)
    checkpoints = zip(record.checkpoints, states[1:], strict=True)
    return record, Blob(states[0], tuple(Checkpoint(position, state) for (position, _), state in checkpoints))


def _chunks(states: list[State]) -> Iterator[tuple[memoryview, bool]]:
    """The states in pieces, each with whether it is the last."""
    for index, state in enumerate(states):
        view = memoryview(state)  # type: ignore[arg-type]
        for start in range(0, len(view), CHUNK_BYTES):
            last = index == len(states) - 1 and start + CHUNK_BYTES >= len(view)
            yield view[start : start + CHUNK_BYTES], last
