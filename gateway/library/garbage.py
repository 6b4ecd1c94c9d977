"""Collects what nobody needs any more: parts of files, content that no name leads to, old quarantine, empty folders.

Other tools and processes use the same folders. What one of them holds by its lock is left alone, and so is what is
younger than a day, and in a hub's cache whatever nobody here has pulled, unless everything is asked for.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
from filelock import FileLock, Timeout

from gateway.library.errors import LibraryError, NotFound
from gateway.library.files import PULLED, File, Files, Wanted
from gateway.library.importing import QUARANTINE, unlock
from gateway.library.store import LockFile, Store, shown
from gateway.state.database import DatabaseError

DAY_S = 86_400.0

# "part": what has come of a file; "blob": content that no snapshot shows; "draft": a link that never got its name;
# "quarantine": a copy whose time is over; "import": what an import left; "sessions": conversations of a model that is
# not configured any more.
Sort = Literal["part", "blob", "draft", "folder", "lock", "quarantine", "import", "sessions"]

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DRAFT = re.compile(r"\.\d+\.\d+")

log = logging.getLogger("gateway.library")


class Garbage(msgspec.Struct, frozen=True):
    """Something that can go."""

    sort: Sort
    path: str
    size_bytes: int


class Grounds(msgspec.Struct, frozen=True, kw_only=True):
    """Where to look. `sessions` is a folder with one for each model, of which those in `models` are configured; None:
    nobody can say which are."""

    store: Store
    pins: LockFile
    library: Path
    sessions: Path | None = None
    models: frozenset[str] = frozenset()
    quarantine_s: float = 30 * DAY_S


class Collector:
    """`now_s` is the wall clock."""

    def __init__(self, files: Files, grounds: Grounds, *, now_s: Callable[[], float] = time.time) -> None:
        self._files = files
        self._grounds = grounds
        self._now_s = now_s

    async def collect(self, *, dry_run: bool = False, everything: bool = False) -> list[Garbage]:
        """Remove what can go, and say what it was; `everything`: also what other tools left in the hub's cache, and
        whole files in the library's folder that its database does not know, which may be another one than it was."""
        pulled = [file async for file in self._files.all(Wanted(how=PULLED))]
        found = await asyncio.to_thread(self._in_cache, pulled, everything, dry_run)
        found += await self._in_library(everything, dry_run)
        if self._grounds.sessions is not None:
            found += await asyncio.to_thread(self._in_sessions, self._grounds.sessions, dry_run)
        if found and not dry_run:
            log.info("%d things that nobody needs are gone, %d bytes", len(found), sum(one.size_bytes for one in found))
        return found

    # The hub's cache

    def _in_cache(self, pulled: list[File], everything: bool, dry_run: bool) -> list[Garbage]:
        store, found = self._grounds.store, list[Garbage]()
        ours = {(store.folder(file.repo or "", file.kind).name, file.sha256) for file in pulled}
        with suppress(LibraryError):
            for pinned in self._grounds.pins.read().values():
                ours |= {(store.folder(pinned.repo, pinned.kind).name, file.digest) for file in pinned.files}
        for folder in sorted(store.root.glob("*s--*--*")):
            for path in sorted((folder / "blobs").glob("*")):
                digest = path.name.partition(".")[0]
                if everything or (folder.name, digest) in ours:
                    found += self._blob(folder, path, digest, dry_run)
            found += self._drafts(folder, dry_run)
            found += self._empty(folder, dry_run)
        for path in sorted((store.root / ".locks").glob("*s--*--*/*.lock")):
            if everything or (path.parent.name, path.stem) in ours:
                found += self._lock(path, dry_run)
        return found

    def _blob(self, folder: Path, path: Path, digest: str, dry_run: bool) -> list[Garbage]:
        part = path.suffix == ".incomplete"
        if not self._is_old(path) or (not part and path.name in shown(folder)):
            return []
        with held(self._grounds.store.lock_path(folder, digest), dry_run) as free:
            # It may have got a name just now.
            if not free or (not part and path.name in shown(folder)):
                return []
            return _gone("part" if part else "blob", path, dry_run)

    def _drafts(self, folder: Path, dry_run: bool) -> list[Garbage]:
        drafts = [path for path in (folder / "snapshots").rglob(".*") if _DRAFT.fullmatch(path.name)]
        old = [path for path in sorted(drafts) if path.is_symlink() and self._is_old(path)]
        return [one for path in old for one in _gone("draft", path, dry_run)]

    def _empty(self, folder: Path, dry_run: bool) -> list[Garbage]:
        """A repository of which there is nothing but what its revisions stood for."""
        refs = folder / "refs"
        holds = any(path.is_symlink() or not path.is_dir() for path in folder.rglob("*") if refs not in path.parents)
        return [] if holds or not self._is_old(folder) else _gone("folder", folder, dry_run)

    def _lock(self, path: Path, dry_run: bool) -> list[Garbage]:
        if not self._is_old(path):
            return []
        with held(path, dry_run) as free:
            return [Garbage("lock", str(path), 0)] if free else []

    # The library's own folder

    async def _in_library(self, everything: bool, dry_run: bool) -> list[Garbage]:
        root, found = self._grounds.library, list[Garbage]()
        for folder in await asyncio.to_thread(_named_by_id, root / QUARANTINE):
            file = await self._file(folder.name)
            # One that was brought anew since is whole, and has nothing here.
            inside = file if file is not None and file.status == "quarantined" else None
            until_s = 0.0 if inside is None else inside.changed_us / 1e6 + self._grounds.quarantine_s
            if self._is_old(folder) and until_s <= self._now_s():
                found += await asyncio.to_thread(self._own, "quarantine", folder, dry_run)
                if inside is not None and not dry_run:
                    await self._files.change(inside.id, path="")
        for folder in await asyncio.to_thread(_named_by_id, root):
            left = everything or not await asyncio.to_thread(_holds_a_file, folder)
            if left and self._is_old(folder) and await self._file(folder.name) is None:
                found += await asyncio.to_thread(self._own, "import", folder, dry_run)
        locks = await asyncio.to_thread(lambda: sorted(root.glob(".*.lock")))
        return found + [one for path in locks for one in await asyncio.to_thread(self._lock, path, dry_run)]

    async def _file(self, identity: str) -> File | None:
        try:
            return await self._files.get(identity)
        except NotFound:
            return None

    def _own(self, sort: Sort, folder: Path, dry_run: bool) -> list[Garbage]:
        with held(self._grounds.library / f".{folder.name}.lock", dry_run) as free:
            return _gone(sort, folder, dry_run) if free else []

    # Conversations

    def _in_sessions(self, root: Path, dry_run: bool) -> list[Garbage]:
        found = list[Garbage]()
        for guard in sorted(root.glob("*/lock")):
            folder = guard.parent
            if folder.name in self._grounds.models or not all(self._is_old(path) for path in folder.iterdir()):
                continue
            with guard.open("rb") as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found += _gone("sessions", folder, dry_run)
        return found

    def _is_old(self, path: Path) -> bool:
        try:
            return self._now_s() - path.lstat().st_mtime > DAY_S
        except OSError:
            return False


async def sweep(collector: Collector, told: Callable[[list[Garbage]], None]) -> None:
    """Collect while a gateway serves; `told` hears what went."""
    try:
        found = await collector.collect()
    except (DatabaseError, OSError) as error:
        log.warning("what nobody needs could not be removed: %s", error)
        return
    if found:
        told(found)


@contextmanager
def held(path: Path, keep: bool) -> Iterator[bool]:
    """Hold a lock, unless somebody does; whether it is held. Nothing is left of it, unless it was there and is to be
    kept; whoever waits for one that goes sees that, and makes another."""
    was_there = path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        if keep and was_there:
            lock.release()
        else:
            unlock(lock)


def _named_by_id(folder: Path) -> list[Path]:
    """The folders in it that are a file's own."""
    return [path for path in sorted(folder.glob("*-*-*-*-*")) if path.is_dir() and _ID.fullmatch(path.name)]


def _holds_a_file(folder: Path) -> bool:
    """Whether there is one that is whole: until then its name begins with a dot."""
    return any(not path.name.startswith(".") for path in folder.iterdir())


def _gone(sort: Sort, path: Path, dry_run: bool) -> list[Garbage]:
    """Remove a file or a folder; what could not be is not said to be gone."""
    size_bytes = sum(one.lstat().st_size for one in (path, *path.rglob("*")) if not one.is_dir() or one.is_symlink())
    try:
        if dry_run:
            pass
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
        return []
    return [Garbage(sort, str(path), size_bytes)]
