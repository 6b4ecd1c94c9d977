"""Conversations of a model that is not in memory: they lie in its folder, and are listed and erased there.

Files of other keys are of nobody here. What else a worker would not use any more, or let go of, is listed until a
worker has removed it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.disk import sync_folder
from adapters.errors import ModelLoading, Overloaded
from adapters.llama_cpp import records
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.records import Damaged, Foreign, Record
from adapters.types import SessionInfo

LOOKS_MAX = 8


class Asleep:
    """What a model without a worker has kept. At most `LOOKS_MAX` look at a time, the others are told to come back."""

    def __init__(self, settings: EngineSettings) -> None:
        self._folder = None if settings.session_dir is None else Path(settings.session_dir)
        self._key = settings.session_key
        self._looks = 0

    async def listed(self, tenant: str | None) -> list[SessionInfo]:
        """Those of a tenant, or of all, the most recently used first."""
        with self._look():
            found = await asyncio.to_thread(self._read)
        infos = [_info(record, size_bytes) for record, size_bytes in found if tenant in (None, record.tenant)]
        return sorted(infos, key=lambda info: -info.used_us)

    async def erase(self, tenant: str, name: str) -> SessionInfo | None:
        """Remove the conversations of that key or id; the latest of them, if there was any. Raises ModelLoading while
        a worker has the folder."""
        with self._look():
            return await asyncio.to_thread(self._erase, tenant, name)

    @contextmanager
    def _look(self) -> Iterator[None]:
        if self._looks >= LOOKS_MAX:
            raise Overloaded("Too many look for conversations on the disk.", retry_after_s=1.0)
        self._looks += 1
        try:
            yield
        finally:
            self._looks -= 1

    # On a thread

    def _read(self) -> list[tuple[Record, int]]:
        """All records, and the sizes of their files."""
        found = []
        for path in [] if self._folder is None else self._folder.glob(f"*{records.SUFFIX}"):
            try:
                with path.open("rb") as file:
                    record = records.look(file, self._key)
                size_bytes = path.stat().st_size
            except (Damaged, Foreign, OSError):
                continue
            if path.stem == record.id and records.ID.fullmatch(record.id):
                found.append((record, size_bytes))
        return found

    def _erase(self, tenant: str, name: str) -> SessionInfo | None:
        if self._folder is None or not self._folder.is_dir():
            return None
        with _alone(self._folder):
            mine = [one for one, _ in self._read() if one.tenant == tenant and name in (one.key, one.id)]
            for record in mine:
                (self._folder / f"{record.id}{records.SUFFIX}").unlink(missing_ok=True)
            sync_folder(self._folder)
        return _info(max(mine, key=lambda record: record.used_us), 0) if mine else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no worker has the folder; one that starts meanwhile waits."""
    guard = os.open(folder / records.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ModelLoading("The model is just being loaded or put to sleep.", retry_after_s=1.0) from None
    finally:
        os.close(guard)


def _info(record: Record, size_bytes: int) -> SessionInfo:
    """What a record says; without a file there is nothing left of it."""
    return SessionInfo(
        tenant=record.tenant,
        key=record.key,
        id=record.id,
        tokens=len(record.tokens) // 4 if size_bytes else 0,
        tier="disk",
        size_bytes=size_bytes,
        created_us=record.created_us,
        used_us=record.used_us,
        pinned=record.pinned,
        checkpoints=len(record.checkpoints) if size_bytes else 0,
    )
