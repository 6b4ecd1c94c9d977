"""Pulls: each brings the files of one name here, and can be watched, paused, resumed and cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.library.errors import Cancelled, LibraryError
from gateway.library.files import Status as FileStatus
from gateway.library.hub import Hub, Resolution, check_facts
from gateway.library.messages import ENDED, Progress, Status
from gateway.library.names import Kind, Reference, RemoteFile, select, select_dataset
from gateway.library.shelf import Shelf
from gateway.library.store import LockFile, Pinned, Store, pin_name
from gateway.library.transfer import Transfer

PULLS_MAX = 1000
PULLS_AT_ONCE = 32
RATE_OVER_S = 5.0
CANCEL_PATIENCE_S = 1.0

log = logging.getLogger("gateway.library")


class Pull:
    """One pull. Its files come one after the other, in a thread."""

    def __init__(self, reference: Reference, kind: Kind, update: bool, clock: Callable[[], float]) -> None:
        self.id = str(uuid.uuid4())
        self.reference = reference
        self.kind = kind
        self.update = update
        self.status: Status = "queued"
        self.error: LibraryError | None = None
        self.resolution: Resolution | None = None
        self.pinned: Pinned | None = None
        self.files: tuple[RemoteFile, ...] = ()
        self.paths: tuple[Path, ...] = ()
        self.stop = threading.Event()
        self.ended = asyncio.Event()
        self._clock = clock
        self._whole_bytes = 0
        self._transfer: Transfer | None = None
        self._marks: list[tuple[float, int]] = []

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def done_bytes(self) -> int:
        return self._whole_bytes + (self._transfer.done_bytes if self._transfer else 0)

    def begin(self) -> None:
        """Its files are fetched from here on. Raises Cancelled when somebody has stopped it."""
        if self.stop.is_set():
            raise Cancelled("stopped")
        self.status = "running"

    def begin_file(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def end_file(self, file: RemoteFile, path: Path) -> None:
        self.paths += (path,)
        self._transfer = None
        self._whole_bytes += file.size_bytes

    def states(self) -> Iterator[tuple[RemoteFile, FileStatus | None, int]]:
        """Each of its files, how that stands if this pull is at work on it or has been, and how much of it is here."""
        here, transfer = len(self.paths), self._transfer
        for number, file in enumerate(self.files):
            if number < here:
                yield file, "ready", file.size_bytes
            elif number > here or transfer is None:
                yield file, None, 0
            elif self.status == "failed":
                yield file, "error", transfer.done_bytes
            elif self.status in ("paused", "cancelled"):
                yield file, "available", 0 if self.status == "cancelled" else transfer.done_bytes
            else:
                yield file, "verifying" if transfer.checking else "downloading", transfer.done_bytes

    def restart(self) -> None:
        """Forget what was counted, for another run over all files."""
        self._transfer, self._whole_bytes, self.paths = None, 0, ()
        self._marks.clear()
        self.stop.clear()

    def progress(self) -> Progress:
        rate, left = self._rate(), self.total_bytes - self.done_bytes
        return Progress(
            id=self.id,
            reference=str(self.reference),
            kind=self.kind,
            status="verifying" if self._is_checking() else self.status,
            commit=None if self.resolution is None else self.resolution.commit,
            files=tuple(file.path for file in self.files),
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            bytes_per_s=rate,
            eta_s=0.0 if self.status in ENDED else left / rate if rate > 0 else None,
            error=None if self.error is None else str(self.error),
            path=str(self.paths[0]) if self.status == "succeeded" and self.paths else None,
        )

    def _is_checking(self) -> bool:
        return self.status == "running" and self._transfer is not None and self._transfer.checking

    def _rate(self) -> float:
        """Bytes a second over the last few seconds. What was here before does not count as fast, nor the time that
        reading it takes as slow."""
        if self.status != "running" or self._transfer is None or self._transfer.checking:
            self._marks.clear()
            return 0.0
        now_s, fetched = self._clock(), self._transfer.fetched_bytes
        if self._marks and fetched < self._marks[-1][1]:
            self._marks.clear()
        self._marks.append((now_s, fetched))
        while len(self._marks) > 2 and now_s - self._marks[1][0] >= RATE_OVER_S:
            del self._marks[0]
        first_s, first_bytes = self._marks[0]
        return (fetched - first_bytes) / (now_s - first_s) if now_s > first_s else 0.0


class Pulls:
    """All pulls of a process. The same name is pulled once at a time, however many ask; so is the same file by
    whatever process."""

    def __init__(
        self,
        hub: Hub,
        store: Store,
        pins: LockFile,
        *,
        shelf: Shelf | None = None,
        room_bytes: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shelf` is told how they stand. `room_bytes` is how large a model may be for this machine, where a name
        leaves that open."""
        self._hub = hub
        self._store = store
        self._pins = pins
        self._shelf = shelf
        self._room_bytes = room_bytes
        self._clock = clock
        self._pulls: dict[str, Pull] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # A pull takes hours: it must not have one of the threads that everything else here waits for.
        self._threads = ThreadPoolExecutor(PULLS_AT_ONCE, "pulls")

    async def close(self) -> None:
        """Stop all of them; what has come stays for the next time."""
        for pull in self._pulls.values():
            pull.stop.set()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._threads.shutdown()
        self._hub.close()

    def list(self) -> list[Progress]:
        return [pull.progress() for pull in self._pulls.values()]

    def get(self, identity: str) -> Pull | None:
        return self._pulls.get(identity)

    def start(self, reference: Reference, kind: Kind = "model", *, update: bool = False) -> Pull:
        """Begin a pull, or join the one of that name that is under way. What the name stood for when it was first
        pulled, it stands for until an `update`."""
        for pull in self._pulls.values():
            if (pull.reference, pull.kind) == (reference, kind) and pull.status not in ENDED:
                return pull
        self._forget_oldest()
        pull = Pull(reference, kind, update, self._clock)
        self._pulls[pull.id] = pull
        self._run(pull)
        return pull

    def pause(self, pull: Pull) -> bool:
        """Stop fetching and keep what has come; False when there is nothing to stop."""
        if pull.status not in ("queued", "running"):
            return False
        pull.status = "paused"
        pull.stop.set()
        return True

    def resume(self, pull: Pull) -> bool:
        """Go on with a pull that was paused or has failed."""
        if pull.status not in ("paused", "failed") or pull.id in self._tasks:
            return False
        pull.status, pull.error = "queued", None
        pull.ended.clear()
        self._run(pull)
        return True

    async def cancel(self, pull: Pull) -> bool:
        """Stop fetching and remove what has come of files that are not whole: at once, or when a hub that says nothing
        at all has been given up."""
        if pull.status in ENDED and pull.status != "failed":
            return False
        pull.status = "cancelled"
        pull.stop.set()
        task = self._tasks.get(pull.id)
        if task is not None:
            await asyncio.wait([task], timeout=CANCEL_PATIENCE_S)
        self._discard(pull)
        if self._shelf is not None:
            await self._shelf.settle(pull)
        pull.ended.set()
        return True

    def _discard(self, pull: Pull) -> None:
        for file in pull.files:
            self._store.discard(pull.reference.repo, file, pull.kind)

    def _forget_oldest(self) -> None:
        if len(self._pulls) >= PULLS_MAX:
            ended = next((one for one in self._pulls.values() if one.status in ENDED), None)
            if ended is None:
                raise LibraryError(f"there are {PULLS_MAX} pulls under way already")
            del self._pulls[ended.id]

    def _run(self, pull: Pull) -> None:
        pull.restart()
        self._tasks[pull.id] = asyncio.create_task(self._carry_out(pull))

    async def _carry_out(self, pull: Pull) -> None:
        run = asyncio.get_running_loop().run_in_executor
        following = None if self._shelf is None else asyncio.create_task(self._shelf.follow(pull))
        try:
            await run(self._threads, self._resolve, pull)
            pull.begin()
            await run(self._threads, self._fetch_all, pull)
            if pull.status != "cancelled":
                pull.status = "succeeded"
        except Cancelled:
            # Whoever stopped it has said in the status why.
            if pull.status not in ("paused", "cancelled"):
                pull.status = "paused"
        except LibraryError as error:
            log.warning("the pull of %s failed: %s", pull.reference, error)
            pull.status, pull.error = "failed", error
        except Exception as error:
            log.exception("the pull of %s failed unexpectedly", pull.reference)
            pull.status, pull.error = "failed", LibraryError(f"an internal error: {type(error).__name__}")
        finally:
            if pull.status == "cancelled":
                self._discard(pull)
            try:
                if self._shelf is not None and following is not None:
                    following.cancel()
                    await asyncio.wait([following])
                    await self._shelf.settle(pull)
            finally:
                # Whoever hears of the end may go on with it at once.
                del self._tasks[pull.id]
                if pull.status in ENDED:
                    pull.ended.set()

    def _resolve(self, pull: Pull) -> None:
        """In a thread: find out what the name stands for, which is what was written down when it was first pulled."""
        if pull.resolution is not None:
            return
        pinned = None if pull.update else self._pins.read().get(pin_name(pull.reference, pull.kind))
        if pinned is not None:
            resolution, chosen = Resolution(pull.reference, pull.kind, pinned.commit, pinned.files), pinned.files
        else:
            resolution = self._hub.resolve(pull.reference, pull.kind)
            chosen = self._chosen(pull, resolution)
        for file in chosen:
            check_facts(file, pull.reference.repo)
        pull.files, pull.resolution = chosen, resolution

    def _fetch_all(self, pull: Pull) -> None:
        """In a thread: write down what the name means, fetch each file, show it under its name."""
        repo, resolution = pull.reference.repo, pull.resolution
        assert resolution is not None
        pull.pinned = Pinned(str(pull.reference), pull.kind, resolution.commit, pull.files)
        self._pins.write(pin_name(pull.reference, pull.kind), pull.pinned)
        for file in pull.files:
            with self._store.lock(repo, file, pull.stop.is_set, pull.kind):
                transfer = Transfer(
                    lambda one, start: self._hub.stream(resolution, one, start),
                    file,
                    self._store.partial(repo, file, pull.kind),
                    self._store.blob(repo, file, pull.kind),
                    pull.stop,
                )
                pull.begin_file(transfer)
                transfer.run()
                pull.end_file(file, self._store.place(resolution, file))
        self._store.remember(resolution)

    def _chosen(self, pull: Pull, resolution: Resolution) -> tuple[RemoteFile, ...]:
        if pull.kind == "dataset":
            return select_dataset(pull.reference, resolution.files)
        return select(pull.reference, resolution.files, self._room_bytes()).files
