"""A disk tier in memory, which does what it was asked when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from adapters.llama_cpp.kept import Blob, Scan
from adapters.llama_cpp.records import Record


class FakeDisk:
    """`slow` keeps everything waiting; `failing` makes writes fail; `files` outlive the `Sessions` they came from."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[Record, Blob]] = {}
        self.slow = False
        self.failing = False
        self.reads = 0
        self._due: list[Callable[[], None]] = []

    def open(self, then: Callable[[Scan], None]) -> None:
        self._due.append(lambda: then(Scan([(record, blob.size_bytes) for record, blob in self.files.values()])))

    def save(self, record: Record, blob: Blob, then: Callable[[int], None]) -> None:
        self._due.append(partial(self._save, record, blob, then))

    def load(self, id: str, then: Callable[[Blob | None], None]) -> None:
        self._due.append(partial(self._load, id, then))

    def copy(self, id: str, record: Record, then: Callable[[int], None]) -> None:
        self._due.append(lambda: self._save(record, self.files[id][1], then))

    def erase(self, id: str, then: Callable[[bool], None]) -> None:
        self._due.append(lambda: then(bool(self.files.pop(id, None)) or True))

    def sync(self, then: Callable[[], None]) -> None:
        self._due.append(then)

    def settle(self) -> None:
        if not self.slow:
            due, self._due = self._due, []
            for call in due:
                call()

    def _save(self, record: Record, blob: Blob, then: Callable[[int], None]) -> None:
        if self.failing:
            then(0)
        else:
            self.files[record.id] = (record, blob)
            then(blob.size_bytes)

    def _load(self, id: str, then: Callable[[Blob | None], None]) -> None:
        self.reads += 1
        then(self.files[id][1] if id in self.files else None)
