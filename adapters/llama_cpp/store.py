"""Kept conversations on disk: one file each, below one folder.

One thread changes them, in order, and gives way to whatever computes. Another reads what requests wait for; what is
about to change is read by the first one, after the change.

The folder belongs to one worker at a time, which a lock on a file in it ensures; until the lock is had and it is known
which weights the model has, everything waits here and conversations are simply computed again. A file appears under its
name complete and durable, or not at all: it is written beside, synced and renamed, and then its folder is synced.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from io import BufferedReader, BufferedWriter
from pathlib import Path
from threading import Event
from typing import TypeVar

import msgspec

from adapters.disk import sync_folder
from adapters.llama_cpp import sealed
from adapters.llama_cpp.buffers import Buffers, step_back
from adapters.llama_cpp.kept import Blob, Scan
from adapters.llama_cpp.records import ID, LOCK_NAME, SUFFIX, Damaged, Foreign, Lock, Record

READY_MAX = 4

Result = TypeVar("Result")


class Files:
    """The system calls that a store makes; tests have others that fail."""

    def create(self, path: Path) -> BufferedWriter:
        """Only the owner may read what conversations were about."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(path, flags, 0o600), "wb")

    def open(self, path: Path) -> BufferedReader:
        """Only what is a file: another thing of that name might never end, or never begin."""
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(f"{path.name} is not a file")
        return file

    def sync(self, file: BufferedWriter) -> None:
        os.fsync(file.fileno())

    def replace(self, old: Path, new: Path) -> None:
        old.replace(new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        sync_folder(folder)


class Store:
    """The `Disk` of a worker, which reads into `buffers`. `compatibility` may take long; `wake` is called from a thread
    when `settle` has something to do."""

    def __init__(
        self,
        folder: Path,
        compatibility: Callable[[], bytes],
        key: bytes | None,
        buffers: Buffers,
        files: Files | None = None,
    ) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.opened = Event()
        self._folder = folder
        self._compatibility = compatibility
        self._key = key
        self._files = files or Files()
        self._lock: Lock | None = None
        self._guard = -1
        self._buffers = buffers
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store", initializer=step_back)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reads")
        # How often each file is about to change.
        self._changing: Counter[str] = Counter()
        self._due: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Begins to find out whether the folder can be had and which weights the model has."""
        self._do(self._writer, self._start, None, lambda _: None)

    def open(self, then: Callable[[Scan], None]) -> None:
        self._do(self._writer, self._open, Scan([]), then)
        # Not before `settle` has what was found: whoever waits for it takes that in at once.
        self._writer.submit(self.opened.set)

    def save(self, record: Record, blob: Blob, then: Callable[[int], None]) -> None:
        self._change(record.id, partial(self._save, record, blob), 0, then)

    def load(self, id: str, then: Callable[[Blob | None], None]) -> None:
        self._do(self._writer if self._changing[id] else self._reader, partial(self._load, id), None, then)

    def copy(self, id: str, record: Record, then: Callable[[int], None]) -> None:
        self._change(record.id, partial(self._copy, id, record), 0, then)

    def erase(self, id: str, then: Callable[[bool], None]) -> None:
        self._change(id, partial(self._erase, id), False, then)

    def sync(self, then: Callable[[], None]) -> None:
        self._do(self._writer, lambda: None, None, lambda _: then())

    def settle(self) -> None:
        while self._due:
            self._due.popleft()()

    def close(self, wait_s: float) -> bool:
        """Waits until everything asked for is done; False when that takes too long."""
        done = [thread.submit(lambda: None) for thread in (self._reader, self._writer)]
        return not wait(done, wait_s).not_done

    def release(self) -> None:
        """Lets another have the folder."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def _change(self, id: str, job: Callable[[], Result], failed: Result, then: Callable[[Result], None]) -> None:
        def changed(result: Result) -> None:
            self._changing -= Counter((id,))
            then(result)

        self._changing[id] += 1
        self._do(self._writer, job, failed, changed)

    def _do(
        self, thread: ThreadPoolExecutor, job: Callable[[], Result], failed: Result, then: Callable[[Result], None]
    ) -> None:
        thread.submit(self._run, job, failed, then)

    # On the threads

    def _run(self, job: Callable[[], Result], failed: Result, then: Callable[[Result], None]) -> None:
        result = failed
        try:
            result = job()
        except Exception as error:
            # Whoever waits must hear of it, and the thread must go on; the names of errors hold no one's text.
            _complain(f"{type(error).__name__}: {error}")
        self._due.append(partial(then, result))
        self.wake()

    def _start(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._guard = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._guard, fcntl.LOCK_EX)
        self._lock = Lock(self._compatibility(), self._key)

    def _open(self) -> Scan:
        return self._scan(self._lock) if self._lock is not None else Scan([])

    def _scan(self, lock: Lock) -> Scan:
        """Reads the records of all files; what cannot be used is removed. Memory is got ready for those that will be
        asked for first, which are probably among the latest."""
        found, corrupt, mismatched = [], 0, 0
        for path in sorted(self._folder.iterdir()):
            if path.suffix == ".part":
                corrupt += 1
                self._discard(path)
            if path.suffix != SUFFIX:
                continue
            try:
                with self._files.open(path) as file:
                    record = sealed.read_record(file, lock)
                if path.stem != record.id or not ID.fullmatch(record.id):
                    raise Damaged("it is not where it belongs")
                found.append((record, path.stat().st_size))
            except (Damaged, OSError):
                corrupt += 1
                self._discard(path)
            except Foreign:
                mismatched += 1
                self._discard(path)
        latest = sorted(found, key=lambda one: one[0].used_us)[-READY_MAX:]
        if latest:
            self._buffers.prepare(max(record.state_bytes for record, _ in latest), len(latest))
        return Scan(found, corrupt, mismatched)

    def _discard(self, path: Path) -> None:
        """Removes what is of no use; where that fails, the others can be used all the same."""
        try:
            self._files.remove(path)
        except OSError as error:
            _complain(f"{path.name} cannot be removed: {error}")

    def _save(self, record: Record, blob: Blob) -> int:
        if self._lock is None:
            return 0
        partial_path = self._folder / f"{record.id}.part"
        try:
            with self._files.create(partial_path) as file:
                size_bytes = sealed.write(file, record, blob, self._lock)
                self._files.sync(file)
            self._files.replace(partial_path, self._path(record.id))
            self._files.sync_folder(self._folder)
        except OSError:
            self._files.remove(partial_path)
            raise
        return size_bytes

    def _load(self, id: str) -> Blob | None:
        stored = self._read(id)
        return stored[1] if stored is not None else None

    def _read(self, id: str) -> tuple[Record, Blob] | None:
        assert self._lock is not None
        try:
            with self._files.open(self._path(id)) as file:
                return sealed.read(file, self._lock, self._buffers.take)
        except (Damaged, Foreign, OSError) as error:
            _complain(f"{id} cannot be read: {error}")
            return None

    def _copy(self, id: str, record: Record) -> int:
        stored = self._read(id)
        if stored is None:
            return 0
        source, blob = stored
        record = msgspec.structs.replace(record, state_bytes=source.state_bytes, checkpoints=source.checkpoints)
        return self._save(record, blob)

    def _erase(self, id: str) -> bool:
        self._files.remove(self._path(id))
        self._files.remove(self._folder / f"{id}.part")
        self._files.sync_folder(self._folder)
        return True

    def _path(self, id: str) -> Path:
        assert ID.fullmatch(id)
        return self._folder / f"{id}{SUFFIX}"


def _complain(text: str) -> None:
    print(f"sessions on disk: {text}", file=sys.stderr, flush=True)
