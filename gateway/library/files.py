"""The files that are known here: the one module that reads and writes their table."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from gateway.library.errors import InUse, NotFound
from gateway.library.facts import Facts
from gateway.library.names import Kind
from gateway.library.requests import Dataset
from gateway.library.words import Words
from gateway.state.database import Conflict, Database, Row, Statements, Value

Status = Literal["available", "downloading", "verifying", "ready", "quarantined", "error"]
UNFINISHED: tuple[Status, ...] = ("available", "downloading", "verifying")
TAGS_MAX = 20
PAGE = 500
# How a file of a hub got here.
PULLED = "pull"


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file. `path` is where it is found, empty while it is nowhere; `how` it got there, `source` from where. Digests
    are hexadecimal; one that is known before the file is here is what the hub says. `done_bytes` is how far the work on
    it was a moment ago. `repo`, `commit_id` and `repo_file` are where a hub has the same content. `place` is the folder
    of the library that it belongs to, as replicas may have one each."""

    id: str
    name: str
    path: str = ""
    status: Status
    reason: str = ""
    how: str
    source: str
    size_bytes: int = 0
    sha256: str | None = None
    blake3: str | None = None
    facts: Facts | None = None
    repo: str | None = None
    commit_id: str | None = None
    repo_file: str | None = None
    tags: tuple[str, ...] = ()
    created_us: int
    changed_us: int
    version: int = 1
    deleted_us: int | None = None
    place: str = ""
    kind: Kind = "model"
    done_bytes: int = 0
    dataset: Dataset | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which files are meant; None: all. Each word of `text` begins one of the file's."""

    text: str | None = None
    status: str | None = None
    role: str | None = None
    architecture: str | None = None
    quantisation: str | None = None
    sha256: str | None = None
    place: str | None = None
    kind: Kind | None = None
    how: str | None = None


_FILTERED = ("status", "role", "architecture", "quantisation", "sha256", "place", "kind", "how")
_COLUMNS = (*File.__struct_fields__, "role", "architecture", "quantisation")


class Files:
    """`now_us` is the wall clock."""

    def __init__(self, database: Database, *, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._database = database
        self._words = Words(database)
        self._now_us = now_us

    async def open(self) -> None:
        """Make what searching needs, and bring it up to date."""
        await self._words.open()
        async with self._database.transaction() as inside:
            await inside.execute(
                "DELETE FROM library_words WHERE id NOT IN (SELECT id FROM library_files WHERE deleted_us IS NULL)"
            )
            rows = await inside.query(
                "SELECT * FROM library_files WHERE deleted_us IS NULL AND NOT EXISTS (SELECT 1 FROM library_words "
                "WHERE library_words.id = library_files.id AND library_words.version = library_files.version)"
            )
            for row in rows:
                await self._index(inside, _file(row))

    async def add(
        self,
        name: str,
        status: Status,
        *,
        how: str,
        source: str,
        tags: Sequence[str] = (),
        place: str = "",
        **fields: Any,
    ) -> File:
        """A new file; raises Conflict when it is one of a hub that is known in that place."""
        now_us = self._now_us()
        file = File(
            id=str(uuid.uuid4()),
            name=name,
            status=status,
            how=how,
            source=source,
            tags=tuple(tags),
            place=place,
            created_us=now_us,
            changed_us=now_us,
            **fields,
        )
        places = ",".join(f"${i}" for i in range(1, len(_COLUMNS) + 1))
        async with self._database.transaction() as inside:
            sql = f"INSERT INTO library_files ({','.join(_COLUMNS)}) VALUES ({places})"
            await inside.execute(sql, *_values(file))
            await self._index(inside, file)
        return file

    async def get(self, identity: str, inside: Statements | None = None) -> File:
        """Raises NotFound. Nobody changes it before the transaction ends that it is read `inside`."""
        asked = inside or self._database
        rows = await asked.query("SELECT * FROM library_files WHERE id = $1 AND deleted_us IS NULL", identity)
        if not rows:
            raise NotFound(f"the library has no file {identity}")
        return _file(rows[0])

    async def change(self, identity: str, version: int | None = None, **fields: object) -> File:
        """Change fields of a file; raises NotFound, InUse where it is not of this version any more, and Conflict when
        it would become ready while another with the same content is."""
        async with self._database.transaction() as inside:
            return await self._change(inside, identity, version, **fields)

    async def _change(self, inside: Statements, identity: str, version: int | None, **fields: object) -> File:
        before = await self.get(identity, inside)
        if version not in (None, before.version):
            raise InUse("somebody has changed it meanwhile")
        file = replace(before, changed_us=self._now_us(), version=before.version + 1, **fields)
        assignments = ", ".join(f"{column} = ${i}" for i, column in enumerate(_COLUMNS, 2))
        await inside.execute(f"UPDATE library_files SET {assignments} WHERE id = $1", identity, *_values(file))
        if file.deleted_us is None:
            await self._index(inside, file)
        else:
            await self._words.remove(inside, identity)
        return file

    async def all(self, wanted: Wanted) -> AsyncIterator[File]:
        """Every one that is wanted, also while they change."""
        after, more = None, True
        while more:
            found, more = await self.page(wanted, PAGE, after)
            for file in found:
                yield file
            after = found[-1].id if found else None

    async def page(self, wanted: Wanted, limit: int, after: str | None = None) -> tuple[list[File], bool]:
        """The newest first, those behind the file `after`; and whether there are more."""
        conditions, values = ["deleted_us IS NULL"], list[Value]()
        for column in _FILTERED:
            value: str | None = getattr(wanted, column)
            if value is not None:
                values.append(value)
                conditions.append(f"{column} = ${len(values)}")
        if wanted.text is not None:
            query = self._words.query(wanted.text)
            if query is None:
                return [], False
            values.append(query)
            conditions.append(self._words.condition(len(values)))
        if after is not None:
            values.append(after)
            last = f"(SELECT created_us, id FROM library_files WHERE id = ${len(values)})"
            conditions.append(f"(created_us, id) < {last}")
        values.append(limit + 1)
        rows = await self._database.query(
            f"SELECT * FROM library_files WHERE {' AND '.join(conditions)} "
            f"ORDER BY created_us DESC, id DESC LIMIT ${len(values)}",
            *values,
        )
        return [_file(row) for row in rows[:limit]], len(rows) > limit

    async def same(self, sha256: str, place: str = "") -> File | None:
        """The ready file with this content."""
        found, _ = await self.page(Wanted(sha256=sha256, status="ready", place=place), 1)
        return found[0] if found else None

    async def pulled(self, place: str, kind: Kind, repo: str, commit_id: str, repo_file: str) -> File | None:
        """The file of a hub, whether it is here or not."""
        rows = await self._database.query(
            "SELECT * FROM library_files WHERE how = $1 AND place = $2 AND kind = $3 AND repo = $4 AND commit_id = $5 "
            "AND repo_file = $6 AND deleted_us IS NULL",
            *(PULLED, place, kind, repo, commit_id, repo_file),
        )
        return _file(rows[0]) if rows else None

    async def progress(self, identity: str, done_bytes: int) -> None:
        """How far the work on a file is; that alone makes no new version of it."""
        await self._database.execute("UPDATE library_files SET done_bytes = $2 WHERE id = $1", identity, done_bytes)

    async def unfinished(self, place: str = "") -> list[File]:
        """Those of a place that somebody is, or was, reading or removing."""
        rows = await self._database.query(
            "SELECT * FROM library_files WHERE place = $1 "
            "AND (deleted_us IS NOT NULL OR (status = 'verifying' AND how <> $2))",
            place,
            PULLED,
        )
        return [_file(row) for row in rows]

    async def delete(self, identity: str, version: int | None = None) -> File:
        """Take a file away from everybody; raises InUse while there are links to it, and where it is not of this
        version any more."""
        async with self._database.transaction() as inside:
            links = await inside.query("SELECT path FROM library_links WHERE file_id = $1 LIMIT 1", identity)
            if links:
                raise InUse(f"it is linked from {links[0]['path']!r}: remove its links first")
            return await self._change(inside, identity, version, deleted_us=self._now_us(), status="error")

    async def forget(self, identity: str) -> None:
        """A deleted file is gone."""
        await self._database.execute("DELETE FROM library_files WHERE id = $1 AND deleted_us IS NOT NULL", identity)

    async def _index(self, inside: Statements, file: File) -> None:
        facts = file.facts
        about = (
            () if facts is None else (facts.title, facts.architecture, facts.quantisation, facts.licence, facts.role)
        )
        texts = (file.name, file.source, file.repo, file.repo_file, *file.tags, *about)
        capabilities = () if facts is None else facts.capabilities
        await self._words.put(inside, file.id, file.version, [text for text in (*texts, *capabilities) if text])


def _values(file: File) -> list[Value]:
    facts = file.facts
    row = {name: getattr(file, name) for name in File.__struct_fields__}
    for name in ("facts", "dataset"):
        row[name] = None if row[name] is None else msgspec.json.encode(row[name]).decode()
    row["tags"] = msgspec.json.encode(file.tags).decode()
    row |= {name: None if facts is None else getattr(facts, name) for name in ("role", "architecture", "quantisation")}
    return [row[column] for column in _COLUMNS]


def _file(row: Row) -> File:
    fields = {name: row[name] for name in File.__struct_fields__}
    for name in ("facts", "tags", "dataset"):
        fields[name] = None if fields[name] is None else msgspec.json.decode(str(fields[name]))
    return msgspec.convert(fields, File)


__all__ = ["Conflict", "File", "Files", "Status", "Wanted"]
