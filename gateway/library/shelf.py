"""What the library knows of files from a hub: each that a pull is of, before it is here, while it comes and afterwards.

They lie in the cache that other tools share. Who is at work on one is seen by its lock there, by every process.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.llama_cpp import gguf
from gateway.library.errors import LibraryError
from gateway.library.facts import facts
from gateway.library.files import PULLED, Conflict, File, Files, Status, Wanted
from gateway.library.names import RemoteFile, parse
from gateway.library.store import LockFile, Pinned, Store, pin_name
from gateway.state.database import DatabaseError

if TYPE_CHECKING:
    from gateway.library.pulls import Pull

TELL_EVERY_S = 1.0

log = logging.getLogger("gateway.library")


class Shelf:
    """The files of one cache as the library of a `place` knows them. `names` are what the configuration pulls."""

    def __init__(self, files: Files, store: Store, pins: LockFile, place: str, names: Sequence[str] = ()) -> None:
        self._files = files
        self._store = store
        self._pins = pins
        self._place = place
        self._names = names
        # What was written down of each pull that is under way, so that nothing is twice.
        self._told: dict[str, dict[str, tuple[Status | None, int]]] = {}
        self._untold: set[str] = set()

    async def open(self) -> None:
        """Bring what is known up to date with the disk: what a killed process was at, what `models.lock` names, and
        what somebody else has deleted."""
        try:
            pins = await asyncio.to_thread(self._pins.read)
        except LibraryError as error:
            log.error("%s", error)
            pins = {}
        for pinned in pins.values():
            for remote in pinned.files:
                await self._known(pinned, remote)
        async for file in self._files.all(Wanted(place=self._place, how=PULLED)):
            await self._look_again(file)

    async def _look_again(self, file: File) -> None:
        here = await asyncio.to_thread(self._path(file).exists)
        known = file.status in ("quarantined", "error", "ready" if here else "available")
        if not known and not await asyncio.to_thread(self.is_busy, file):
            await (self._ready(file) if here else self._change(file, "available", done_bytes=file.done_bytes))

    async def _known(self, pinned: Pinned, remote: RemoteFile) -> File:
        """What is known of a file of a hub; from now on it is known."""
        origin = pinned.kind, pinned.repo, pinned.commit, remote.path
        found = await self._files.pulled(self._place, *origin)
        if found is not None:
            return found
        try:
            return await self._files.add(
                remote.path.rsplit("/", 1)[-1],
                "available",
                how=PULLED,
                source=f"hf:{pinned.reference}",
                place=self._place,
                kind=pinned.kind,
                repo=pinned.repo,
                commit_id=pinned.commit,
                repo_file=remote.path,
                size_bytes=remote.size_bytes,
                sha256=remote.sha256,
            )
        except Conflict:  # Another process pulls it too.
            found = await self._files.pulled(self._place, *origin)
            if found is None:
                raise
            return found

    async def follow(self, pull: Pull) -> None:
        """Write down how a pull stands, every second, until it is cancelled; then `settle` has the last word."""
        while True:
            await self._tell(pull)
            await asyncio.sleep(TELL_EVERY_S)

    async def settle(self, pull: Pull) -> None:
        """Write down how a pull ended."""
        await self._tell(pull)
        self._told.pop(pull.id, None)
        self._untold.discard(pull.id)

    async def _tell(self, pull: Pull) -> None:
        """An outage of the database is no reason to stop pulling."""
        if pull.pinned is None:
            return
        told = self._told.setdefault(pull.id, {})
        try:
            for remote, status, done_bytes in tuple(pull.states()):
                if told.get(remote.path) == (status, done_bytes):
                    continue
                file = await self._known(pull.pinned, remote)
                if status is not None:
                    await self._write(file, status, done_bytes, pull.error)
                told[remote.path] = status, done_bytes
        except (DatabaseError, LibraryError) as error:
            if pull.id not in self._untold:
                self._untold.add(pull.id)
                log.warning("the library does not know how the pull of %s stands: %s", pull.reference, error)

    async def _write(self, file: File, status: Status, done_bytes: int, error: LibraryError | None) -> None:
        if status == "ready":
            await self._ready(file)
        elif file.status != status:
            await self._change(file, status, str(error) if status == "error" and error else "", done_bytes)
        else:
            await self._files.progress(file.id, done_bytes)

    async def _change(self, file: File, status: Status, reason: str = "", done_bytes: int = 0) -> None:
        await self._files.change(file.id, status=status, reason=reason, done_bytes=done_bytes, path="")

    async def _ready(self, file: File) -> None:
        """It is here: say where, and what its header says. What is here by another name already is known once."""
        if file.status == "ready":
            return
        path = self._path(file)
        try:
            seen = facts(await asyncio.to_thread(gguf.read, path)) if file.kind == "model" else None
        except (gguf.GGUFError, OSError) as error:
            await self._change(file, "error", f"it is no model that can be used: {error}", file.size_bytes)
            return
        try:
            await self._files.change(
                file.id, status="ready", reason="", path=str(path), facts=seen, done_bytes=file.size_bytes
            )
        except Conflict:
            same = await self._files.same(file.sha256 or "", self._place)
            await self._files.delete(file.id)
            await self._files.forget(file.id)
            if same is not None and same.repo is None:
                await self._files.change(same.id, repo=file.repo, commit_id=file.commit_id, repo_file=file.repo_file)

    def _path(self, file: File) -> Path:
        return self._store.path(file.repo or "", file.commit_id or "", file.repo_file or "", file.kind)

    # What others do to such files. All of it blocks.

    def is_busy(self, file: File) -> bool:
        """Whether somebody fetches it."""
        return self._store.is_busy(file.repo or "", self._remote(file), file.kind)

    def _remote(self, file: File) -> RemoteFile:
        """The file as the hub calls it; what it keeps outside of LFS has a digest in `models.lock` only."""
        pinned = (one for pinned in self._pins.read().values() if _holds(pinned, file) for one in pinned.files)
        known = RemoteFile(file.repo_file or "", file.size_bytes, file.sha256)
        return known if file.sha256 else next((one for one in pinned if one.path == file.repo_file), known)

    def is_referred(self, file: File) -> bool:
        """Whether the configuration pulls it."""
        pins = self._pins.read()
        wanted = [pins.get(pin_name(parse(name), "model")) for name in self._names]
        return any(pinned is not None and _holds(pinned, file) for pinned in wanted)

    def remove(self, file: File) -> None:
        """Remove it from the cache, and what was written down of names that it is a part of."""
        remote = self._remote(file)
        for key, pinned in self._pins.read().items():
            if _holds(pinned, file):
                self._pins.remove(key)
        self._store.remove(self._path(file))
        self._store.discard(file.repo or "", remote, file.kind)

    def put_away(self, path: Path, folder: Path) -> str:
        """Move what a path in the cache shows into a folder, and where it is then."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / path.name
        shutil.move(path.resolve(), kept)
        path.unlink(missing_ok=True)
        return str(kept)


def _holds(pinned: Pinned, file: File) -> bool:
    return (pinned.kind, pinned.repo, pinned.commit) == (file.kind, file.repo, file.commit_id) and any(
        one.path == file.repo_file for one in pinned.files
    )
