"""Which weights a model file holds, and with what else kept states must agree to be used again.

llama.cpp checks the shapes of a state it is given, not whose weights computed it, so this has to.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

SPLIT = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


class Known(msgspec.Struct, frozen=True):
    """A digest that was computed before, and of which files: path, size, time of change in ns and inode of each."""

    files: list[tuple[str, int, int, int]]
    sha256: str


def compatibility(path: Path, folder: Path, others: list[str | int | bool]) -> bytes:
    """32 bytes that are equal where states can be exchanged: same weights, and same `others`. Raises OSError."""
    return hashlib.sha256(msgspec.msgpack.encode([digest(path, folder), *others])).digest()


def digest(path: Path, folder: Path) -> str:
    """The SHA-256 of a model's file or files, in hex; remembered in `folder`, as it takes about a second per GB."""
    paths = parts(path)
    files = []
    for part in paths:
        stat = part.stat()
        files.append((str(part.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    sidecar = folder / "weights.json"
    try:
        known = msgspec.json.decode(sidecar.read_bytes(), type=Known)
        if known.files == files:
            return known.sha256
    except (OSError, msgspec.MsgspecError):
        # The first time, or something happened to it: it is written again below.
        pass
    whole = hashlib.sha256()
    for part in paths:
        with part.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    known = Known(files, whole.hexdigest())
    beside = folder / "weights.part"
    beside.write_bytes(msgspec.json.encode(known))
    beside.replace(sidecar)
    return known.sha256


def parts(path: Path) -> list[Path]:
    """All files of a model that was split, as llama.cpp names them, or the one file."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match[1], match[2]
    return [path.with_name(f"{stem}-{number:05d}-of-{count}.gguf") for number in range(1, int(count) + 1)]
