"""Imports: local files become files of the library, each by its turn on the drives that it lies on and comes to.

A folder per file, named by the file's id, holds it and a lock, by which every process sees who is at work on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from gateway.library.digests import digests
from gateway.library.drives import Drives
from gateway.library.errors import Cancelled, Full, InUse, LibraryError, Unusable
from gateway.library.files import PULLED, Conflict, File, Files
from gateway.library.names import Kind, path_problem
from gateway.library.shelf import Shelf
from gateway.library.store import origin
from gateway.library.taking import Look, Unsound, Way, look, take
from gateway.state.database import DatabaseError

RUNNING_MAX = 100
READING_MAX = 8
TELL_EVERY_S = 1.0
QUARANTINE = "quarantine"
# What a hub's cache calls files of large repositories: their SHA-256.
DIGEST = re.compile(r"[0-9a-f]{64}")

# Makes a file in the folder that is its own, until it is told to stop.
Work = Callable[[File, Path, threading.Event], Coroutine[Any, Any, None]]

T = TypeVar("T")

log = logging.getLogger("gateway.library")


class Imports:
    """All that is done to local files by this process. `sources` are the folders that files may come from; None: any.
    `referred` are the paths that the configuration names. `shelf` has the files of a hub, for the library's place."""

    def __init__(
        self,
        files: Files,
        root: Path,
        *,
        sources: Sequence[Path] | None = None,
        referred: Sequence[Path] = (),
        drives: Drives | None = None,
        shelf: Callable[[str], Shelf] | None = None,
    ) -> None:
        self.files = files
        self._root = root
        self._sources = None if sources is None else [folder.resolve() for folder in sources]
        self._referred = {path.absolute() for path in referred}
        self._drives = drives or Drives()
        self._make_shelf = shelf
        self.shelf: Shelf | None = None
        self._place = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Files about which somebody is deciding what is done to them.
        self._undecided = set[str]()
        self._telling: asyncio.Task[None] | None = None
        self._stops: dict[str, threading.Event] = {}
        self._done_bytes: dict[str, int] = {}
        self._threads = ThreadPoolExecutor(READING_MAX, "library")

    async def open(self) -> None:
        """Make what files need, and end what a process left behind that died."""
        await self.files.open()
        try:
            self._place = await asyncio.to_thread(place_of, self._root)
        except OSError as error:
            log.error("the library cannot be written to: %s", error)
            return
        if self._make_shelf is not None:
            self.shelf = self._make_shelf(self._place)
        for file in await self.files.unfinished(self._place):
            lock = self._lock(file.id)
            try:
                await asyncio.to_thread(lock.acquire, timeout=0)
            except Timeout:
                continue  # Somebody is at work on it.
            try:
                await self._end_left(file)
            except (LibraryError, OSError) as error:
                log.error("what a process left of file %s of the library cannot be ended: %s", file.id, error)
            finally:
                unlock(lock)
        if self.shelf is not None:
            await self.shelf.open()

    async def _end_left(self, file: File) -> None:
        if file.deleted_us is not None:
            await self._remove(file)
        elif file.path:
            await self.files.change(file.id, status="error", reason="a check of it was interrupted: verify it again")
        else:
            await asyncio.to_thread(shutil.rmtree, self._folder(file.id), ignore_errors=True)
            await self.files.change(file.id, status="error", reason="the import was interrupted: import it again")

    async def close(self) -> None:
        """Stop everything that runs; what was not whole is removed."""
        for stop in self._stops.values():
            stop.set()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        # A copy that is made for a link cannot be stopped; what else closes does not wait for it.
        self._threads.shutdown(wait=False)

    async def reading(self, work: Callable[[], T]) -> T:
        """Do what reads a whole file. It may take an hour, and has no thread that everything else here waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def done_bytes(self, identity: str) -> int | None:
        """How much of a file has been read, while somebody here is at work on it."""
        return self._done_bytes.get(identity) if identity in self._tasks else None

    async def _tell(self) -> None:
        """Let other processes see how far the work is, until there is none."""
        told = dict[str, int]()
        while self._tasks:
            await asyncio.sleep(TELL_EVERY_S)
            for identity, done_bytes in list(self._done_bytes.items()):
                if told.get(identity) != done_bytes:
                    told[identity] = done_bytes
                    with contextlib.suppress(DatabaseError):
                        await self.files.progress(identity, done_bytes)

    async def wait(self, identity: str) -> File:
        """The file when nothing is done to it any more."""
        if identity in self._tasks:
            await asyncio.wait([self._tasks[identity]])
        return await self.files.get(identity)

    async def start(self, source: Path, way: Way = "auto", tags: Sequence[str] = ()) -> File:
        """Begin to import a file; raises Unusable for what cannot be, Full when too much is under way. What turns out
        to be wrong with the file itself is told by its status."""
        self._check_room()
        if (problem := path_problem(source.name)) is not None:
            raise Unusable(f"its name is none for a file of the library: {problem}")
        path, given = await asyncio.to_thread(self._resolved, source)
        file = await self.files.add(source.name, "verifying", how=way, source=given, tags=tags, place=self._place)
        self._run(file.id, self._import(file, path, way))
        return file

    async def begin(self, name: str, how: str, source: str, work: Work, kind: Kind) -> File:
        """Begin to make a file in a folder of its own, as `work` does it; raises Full."""
        self._check_room()
        file = await self.files.add(name, "verifying", how=how, source=source, place=self._place, kind=kind)
        self._stops[file.id] = stop = threading.Event()
        self._run(file.id, work(file, self._folder(file.id), stop))
        return file

    def _resolved(self, source: Path) -> tuple[Path, str]:
        """Where a source really lies, if files may come from there, and where it was said to be. The same is said of
        what is not there and of what nobody may look at."""
        try:
            path = source.resolve(strict=True)
        except (OSError, RuntimeError):
            path = None
        allowed = path is not None and (
            self._sources is None or any(path.is_relative_to(folder) for folder in self._sources)
        )
        if path is None or not allowed or not path.is_file():
            where = "" if self._sources is None else " in a folder of library.import_dirs"
            raise Unusable(f"there is no file {source.name}{where}")
        return path, str(source.absolute())

    async def verify(self, identity: str) -> File:
        """Read a file anew, beside everything else; one that is not what it was is put into quarantine."""
        self._check_room()
        with self._alone(identity):
            file = await self._own(identity)
            if file.status not in ("ready", "error") or not file.path or file.sha256 is None:
                raise InUse(f"it cannot be verified: it is {file.status}")
            file = await self.files.change(identity, file.version, status="verifying", reason="")
            self._run(identity, self._verify(file))
        return file

    async def cancel(self, identity: str) -> None:
        """Stop what is being done to a file."""
        if identity not in self._stops:
            raise InUse("nothing is being done to it here")
        self._stops[identity].set()

    async def delete(self, identity: str) -> None:
        """Take a file away; its bytes go in the background. A source that it is linked to stays."""
        with self._alone(identity):
            file = await self._own(identity)
            await asyncio.to_thread(self._check_free, file)
            file = await self.files.delete(identity, file.version)
            self._run(identity, self._remove(file))

    @contextlib.contextmanager
    def _alone(self, identity: str) -> Iterator[None]:
        """Nobody else here decides about a file until its work has begun; raises InUse where somebody does."""
        if identity in self._tasks or identity in self._undecided:
            raise InUse("it is being read: cancel that first")
        self._undecided.add(identity)
        try:
            yield
        finally:
            self._undecided.discard(identity)

    def _check_free(self, file: File) -> None:
        """Raises InUse for what the configuration or another process needs."""
        if self._is_referred(file):
            raise InUse("the configuration names it: take it out of models first")
        if self.shelf is not None and file.how == PULLED and self.shelf.is_busy(file):
            raise InUse("it is being pulled: cancel that first")
        lock = self._lock(file.id)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InUse("another process is reading it") from None
        except OSError as error:
            raise Unusable(f"the library's folder cannot be written to: {error.strerror}") from None
        unlock(lock)

    async def _own(self, identity: str) -> File:
        file = await self.files.get(identity)
        if file.place != self._place:
            raise InUse("it lies in the library of another machine: ask the gateway there")
        return file

    def _is_referred(self, file: File) -> bool:
        path = Path(file.path)
        if file.how == PULLED:
            return self.shelf is not None and self.shelf.is_referred(file)
        # Where it is a link, what it leads to is not ours, and whoever names that does not name the link.
        return bool(file.path) and (
            path in self._referred or (not path.is_symlink() and any(path == one.resolve() for one in self._referred))
        )

    # Work

    def _check_room(self) -> None:
        if len(self._tasks) >= RUNNING_MAX:
            raise Full(f"{RUNNING_MAX} files are being read already")

    def _run(self, identity: str, work: Coroutine[Any, Any, None]) -> None:
        self._stops.setdefault(identity, threading.Event())
        self._done_bytes[identity] = 0
        task = self._tasks[identity] = asyncio.create_task(self._guarded(identity, work))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())
        task.add_done_callback(lambda _: self._end(identity))

    def _end(self, identity: str) -> None:
        for known in (self._tasks, self._stops, self._done_bytes):
            known.pop(identity, None)

    async def _guarded(self, identity: str, work: Coroutine[Any, Any, None]) -> None:
        """Do the work as the only process that does; whatever goes wrong is told by the file's status."""
        lock = self._lock(identity)
        try:
            await asyncio.to_thread(lock.acquire, timeout=0)
        except (Timeout, OSError) as error:
            work.close()
            await self._fail(identity, "error", f"the library's folder cannot be written to: {error}")
            return
        try:
            await work
        except Unsound as error:
            await self._fail(identity, "quarantined", str(error))
        except LibraryError as error:
            await self._fail(identity, "error", str(error))
        except Exception:
            log.exception("work on file %s of the library failed unexpectedly", identity)
            await self._fail(identity, "error", "it failed unexpectedly: the log says more")
        finally:
            unlock(lock)

    async def _fail(self, identity: str, status: str, reason: str) -> None:
        with contextlib.suppress(LibraryError):
            await self.files.change(identity, status=status, reason=reason)

    async def _import(self, file: File, source: Path, way: Way) -> None:
        folder, stop = self._folder(file.id), self._stops[file.id]
        async with self._drives.turn([source, self._root]):
            if stop.is_set():
                raise Cancelled("it was stopped")
            seen: Look = await asyncio.to_thread(look, source)
            await self.files.change(file.id, size_bytes=seen.size_bytes, facts=seen.facts)
            taken = await self.reading(partial(take, seen, folder, file.name, way, stop, self._teller(file.id)))
        found, came = taken.digests, origin(Path(file.source))
        if came is not None and DIGEST.fullmatch(source.name) and source.name != found.sha256:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise Unsound("its content is not what the hub said that it is")
        repo, commit_id, repo_file = came or (None, None, None)
        await self.finish(
            file.id,
            path=str(taken.path),
            how=taken.how,
            facts=taken.facts,
            size_bytes=found.size_bytes,
            sha256=found.sha256,
            blake3=found.blake3,
            repo=repo,
            commit_id=commit_id,
            repo_file=repo_file,
        )

    async def finish(self, identity: str, *, sha256: str, **fields: Any) -> None:
        """What is in a file's own folder is whole; it goes again when the same content is here already."""
        try:
            await self.files.change(identity, status="ready", sha256=sha256, **fields)
        except Conflict:
            await asyncio.to_thread(shutil.rmtree, self._folder(identity), ignore_errors=True)
            same = await self.files.same(sha256, self._place)
            reason = "the same content is here already" + ("" if same is None else f": {same.id}")
            await self.files.change(identity, status="error", reason=reason)

    async def _verify(self, file: File) -> None:
        path, stop = Path(file.path), self._stops[file.id]
        async with self._drives.turn([self._root]):
            try:
                found = await self.reading(partial(digests, path, stop=stop, told=self._teller(file.id)))
                if file.kind == "model":
                    await asyncio.to_thread(look, path)
            except Unsound as error:
                await self._quarantine(file, str(error))
                return
        if found.sha256 != file.sha256 or file.blake3 not in (None, found.blake3):
            await self._quarantine(file, "its content is not what it was when it came")
            return
        await self.files.change(file.id, status="ready", reason="", blake3=found.blake3)

    async def _quarantine(self, file: File, reason: str) -> None:
        """Nobody finds it where it was; a link is removed, and what it leads to is none of ours."""
        folder = self._root / QUARANTINE / file.id
        pulled = self.shelf if file.how == PULLED else None
        kept = await asyncio.to_thread(pulled.put_away if pulled else put_away, Path(file.path), folder)
        log.warning("file %s of the library is in quarantine: %s", file.id, reason)
        await self.files.change(file.id, status="quarantined", reason=reason, path=kept)

    async def _remove(self, file: File) -> None:
        for folder in (self._folder(file.id), self._root / QUARANTINE / file.id):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if file.how == PULLED and self.shelf is not None:
            await asyncio.to_thread(self.shelf.remove, file)
        await self.files.forget(file.id)

    def _teller(self, identity: str) -> Any:
        def told(size: int) -> None:
            self._done_bytes[identity] = size

        return told

    def _folder(self, identity: str) -> Path:
        return self._root / identity

    def _lock(self, identity: str) -> FileLock:
        self._root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / f".{identity}.lock", thread_local=False)


def put_away(path: Path, folder: Path) -> str:
    """Move a file into a folder, and where it is then; a link is removed, and that is nowhere."""
    if path.is_symlink():
        path.unlink()
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    return str(path.rename(folder / path.name))


def unlock(lock: FileLock) -> None:
    """Give a lock back, and leave nothing of it."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def place_of(root: Path) -> str:
    """What a library's folder is called on whatever machine sees it; named when it is first used."""
    root.mkdir(parents=True, exist_ok=True)
    name, identity = root / ".place", uuid.uuid4().hex
    if not name.exists():
        draft = root / f".place.{identity}"
        draft.write_text(identity, encoding="ascii")
        with contextlib.suppress(FileExistsError):
            name.hardlink_to(draft)  # Whole or not at all, and only the first of two.
        draft.unlink()
    return name.read_text(encoding="ascii")
