"""Files of the library in folders of other applications, which are remembered, looked after and taken back."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec.structs import replace

from gateway.library.drives import How, bring, check_writable
from gateway.library.errors import InUse, NotFound, Unusable
from gateway.library.files import File
from gateway.library.importing import Imports
from gateway.state.database import Conflict, Database, Row, Value

LinkStatus = Literal["ok", "broken", "foreign"]
CHECKED_AT_ONCE = 500

T = TypeVar("T")


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A file at another path. `broken`: it is not there (any more); `foreign`: something else is, which is left alone.
    Times are microseconds since 1970."""

    id: str
    file_id: str
    path: str
    how: How
    status: LinkStatus
    created_us: int
    checked_us: int


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """How links are after they were looked at, and how many of the good ones had to be made again."""

    ok: int = 0
    repaired: int = 0
    broken: int = 0
    foreign: int = 0


class Links:
    """`folders` are those that links may be made in; None: anywhere. `now_us` is the wall clock."""

    def __init__(
        self,
        database: Database,
        imports: Imports,
        *,
        folders: Sequence[Path] | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._database = database
        self._files = imports.files
        self._copying = imports.reading
        self._folders = None if folders is None else [folder.resolve() for folder in folders]
        self._now_us = now_us

    async def make(self, file_id: str, path: Path, how: How) -> Link:
        """Have a file of the library at another path, where nothing is yet. It is remembered before it is made, so that
        none is there that nobody knows of."""
        file = await self._files.get(file_id)
        if file.status != "ready":
            raise InUse(f"it cannot be linked: it is {file.status}")
        path = await asyncio.to_thread(self._allowed, path)
        now_us = self._now_us()
        link = Link(
            id=str(uuid.uuid4()),
            file_id=file_id,
            path=str(path),
            how=how,
            status="broken",
            created_us=now_us,
            checked_us=now_us,
        )
        values = [getattr(link, name) for name in Link.__struct_fields__]
        places = ",".join(f"${i}" for i in range(1, len(values) + 1))
        sql = f"INSERT INTO library_links ({','.join(Link.__struct_fields__)}) VALUES ({places})"
        try:
            async with self._database.transaction() as inside:
                await self._files.get(file_id, inside)
                await inside.execute(sql, *values)
        except Conflict:
            raise InUse(f"there is a link at {path} already") from None
        try:
            await self._do(link, partial(_make, Path(file.path), link, file.size_bytes))
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._forget(link.id)))
            raise
        return await self._note(link, "ok")

    def _do(self, link: Link, work: Callable[[], T]) -> Awaitable[T]:
        """Do what may make a link, in a thread. Other ways than copies take no time."""
        return self._copying(work) if link.how == "copy" else asyncio.to_thread(work)

    def _allowed(self, path: Path) -> Path:
        """The path with its folder as it really is, if links may be made there."""
        try:
            folder = path.parent.resolve(strict=True)
        except (OSError, RuntimeError):
            folder = None
        inside = folder is not None and (
            self._folders is None or any(folder.is_relative_to(one) for one in self._folders)
        )
        if folder is None or not inside or path.name in ("", ".", ".."):
            where = "" if self._folders is None else " in library.link_dirs"
            raise Unusable(f"there is no folder {path.parent.name or '/'}{where}")
        return folder / path.name

    async def page(self, limit: int, after: str | None = None, file_id: str | None = None) -> tuple[list[Link], bool]:
        """The oldest first, those behind the link `after`; and whether there are more."""
        conditions, values = ["1 = 1"], list[Value]()
        if file_id is not None:
            values.append(file_id)
            conditions.append(f"file_id = ${len(values)}")
        if after is not None:
            values.append(after)
            last = f"(SELECT created_us, id FROM library_links WHERE id = ${len(values)})"
            conditions.append(f"(created_us, id) > {last}")
        values.append(limit + 1)
        rows = await self._database.query(
            f"SELECT * FROM library_links WHERE {' AND '.join(conditions)} "
            f"ORDER BY created_us, id LIMIT ${len(values)}",
            *values,
        )
        return [_link(row) for row in rows[:limit]], len(rows) > limit

    async def repair(self) -> Repaired:
        """Look at all links, and make those again that are not there while their file is."""
        counts, after, more = dict.fromkeys(Repaired.__struct_fields__, 0), None, True
        while more:
            links, more = await self.page(CHECKED_AT_ONCE, after)
            for link in links:
                try:
                    file = await self._files.get(link.file_id)
                    status, again = await self._do(link, partial(_repaired, link, file))
                except NotFound:
                    status, again = "broken", False
                await self._note(link, status)
                counts[status] += 1
                counts["repaired"] += again
            after = links[-1].id if links else None
        return Repaired(**counts)

    async def remove(self, identity: str) -> Link:
        """Take a link back; what is not ours at its path stays there."""
        rows = await self._database.query("SELECT * FROM library_links WHERE id = $1", identity)
        if not rows:
            raise NotFound(f"there is no link {identity}")
        link = _link(rows[0])
        file = await self._files.get(link.file_id)
        await asyncio.to_thread(_take_back, link, file)
        await self._forget(identity)
        return link

    async def _note(self, link: Link, status: LinkStatus) -> Link:
        link = replace(link, status=status, checked_us=self._now_us())
        sql = "UPDATE library_links SET status = $2, checked_us = $3 WHERE id = $1"
        await self._database.execute(sql, link.id, status, link.checked_us)
        return link

    async def _forget(self, identity: str) -> None:
        await self._database.execute("DELETE FROM library_links WHERE id = $1", identity)


def _make(source: Path, link: Link, size_bytes: int) -> None:
    path = Path(link.path)
    check_writable(path.parent, size_bytes if link.how == "copy" else 0)
    if os.path.lexists(path):
        raise InUse(f"something is at {path} already")
    bring(source, path, link.how)


def _state(link: Link, file: File) -> LinkStatus:
    """What lies at a link's path."""
    path, source = Path(link.path), Path(file.path)
    if path.is_symlink():
        if link.how != "link" or path.readlink() != source:
            return "foreign"
        return "ok" if source.exists() else "broken"
    if not path.exists():
        return "broken"
    if link.how == "hardlink":
        return "ok" if source.exists() and path.samefile(source) else "foreign"
    # A copy is its application's own; it is known by its size, which for weights says enough.
    same = link.how in ("copy", "reflink") and path.is_file() and path.stat().st_size == file.size_bytes
    return "ok" if same else "foreign"


def _repaired(link: Link, file: File) -> tuple[LinkStatus, bool]:
    """How a link is after it was made again where it was not there; and whether it was."""
    try:
        status = _state(link, file)
    except OSError:  # A folder of others may have been closed to us.
        return "broken", False
    if status != "broken" or Path(link.path).is_symlink() or file.status != "ready":
        return status, False
    try:
        _make(Path(file.path), link, file.size_bytes)
    except (Unusable, InUse):
        return "broken", False
    return "ok", True


def _take_back(link: Link, file: File) -> None:
    path = Path(link.path)
    try:
        if _state(link, file) == "ok" or (path.is_symlink() and path.readlink() == Path(file.path)):
            path.unlink()
    except OSError as error:
        raise Unusable(f"{path} cannot be removed: {error.strerror}") from None


def _link(row: Row) -> Link:
    return msgspec.convert({name: row[name] for name in Link.__struct_fields__}, Link)
