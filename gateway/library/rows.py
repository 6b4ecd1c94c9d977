"""Rows of datasets, JSONL, CSV or Parquet, one after the other, each within bounds; what is wrong with one is told."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from gateway.library.errors import Unusable
from gateway.library.names import DATASET_SUFFIXES

LINE_BYTES_MAX = 1 << 20
DEPTH_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Row(NamedTuple):
    """The row that begins at a line (of a Parquet file: its number), from 1; or why there is none."""

    line: int
    fields: dict[str, Any] | None
    problem: str = ""


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file, which is read as far as they are asked for. Raises Unusable."""
    try:
        match path.suffix.lower():
            case ".jsonl":
                with path.open("rb") as read:
                    yield from _jsonl(read)
            case ".csv":
                with path.open("rb") as read:
                    yield from _csv(read)
            case ".parquet":
                yield from _parquet(path)
            case other:
                raise Unusable(
                    f"{path.name}: a dataset is {', '.join(DATASET_SUFFIXES)}, and not {other or 'without a suffix'}"
                )
    except OSError as error:
        raise Unusable(f"{path.name} cannot be read: {error.strerror}") from None


def _lines(read: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers; None for one that is too long."""
    number = 0
    while line := read.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            while line and not line.endswith(b"\n"):
                line = read.readline(LINE_BYTES_MAX)
            yield number, None
        else:
            yield number, line


def _jsonl(read: IO[bytes]) -> Iterator[Row]:
    for number, line in _lines(read):
        if line is None:
            yield Row(number, None, f"longer than {LINE_BYTES_MAX} bytes")
        elif line.strip():
            try:
                fields = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"))
            except DEPTH_ERRORS as error:
                yield Row(number, None, f"not JSON: {error}")
                continue
            row = isinstance(fields, dict)
            yield Row(number, fields if row else None, "" if row else "not an object")


def _csv(read: IO[bytes]) -> Iterator[Row]:
    """A field may hold line ends, so a row begins behind the last one's end."""
    texts = _Texts(read)
    reader, names = csv.reader(texts, strict=True), list[str]()
    while True:
        begins = texts.number + 1
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Row(begins, None, f"not CSV: {error}")
            continue
        except ValueError as error:
            yield Row(texts.number, None, str(error))
            continue
        if not names:
            names = values
        elif values and len(values) != len(names):
            yield Row(begins, None, f"{len(values)} fields, and the first line names {len(names)}")
        elif values:
            yield Row(begins, dict(zip(names, values, strict=True)))


class _Texts:
    """Lines as text. Next raises ValueError for one that is none, and goes on behind it."""

    def __init__(self, read: IO[bytes]) -> None:
        self._lines = _lines(read)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if line is None:
            raise ValueError(f"longer than {LINE_BYTES_MAX} bytes")
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None


def _parquet(path: Path) -> Iterator[Row]:
    """The file is read by another process, as nobody knows who made it and its reader is not memory-safe."""
    if find_spec("pyarrow") is None:
        raise Unusable('Parquet files need a reader: pip install "inference-gateway[parquet]"')
    command = [sys.executable, "-m", "gateway.library.parquet", str(path.resolve())]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        command, cwd=root, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        try:
            yield from _jsonl(reader.stdout)
            said = reader.stderr.read(10_000).decode(errors="replace").strip()
            if reader.wait() != 0:
                raise Unusable(f"{path.name} is no Parquet file that can be read: {said or 'its reader died'}")
        finally:
            reader.kill()
