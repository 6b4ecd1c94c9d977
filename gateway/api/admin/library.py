"""The library over HTTP: files of models that lie on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, shown
from gateway.library import errors as library
from gateway.library.facts import Facts
from gateway.library.files import UNFINISHED, File, Status, Wanted
from gateway.library.importing import Imports
from gateway.library.names import Kind
from gateway.library.taking import Way

ALL = "/admin/v1/library/files"
ONE = "/admin/v1/library/files/{id}"
Text = Annotated[str, Meta(min_length=1, max_length=200)]
Tags = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}\Z")], ...], Meta(max_length=20)
]

# What each branch of the library's errors is to a client.
CODES: Mapping[type[library.LibraryError], str] = {
    library.InvalidReference: "invalid_value",
    library.NotFound: "not_found",
    library.Gated: "permission_denied",
    library.HubUnavailable: "upstream_error",
    library.Offline: "conflict",
    library.NoSpace: "insufficient_storage",
    library.Corrupt: "upstream_invalid",
    library.Unusable: "invalid_value",
    library.InUse: "conflict",
    library.Full: "overloaded",
    library.Cancelled: "conflict",
}


class FileQuery(Paging, kw_only=True, frozen=True):
    """`q` are words, each the beginning of one in a file's name, source, tags or facts."""

    q: Text | None = None
    kind: Kind | None = None
    status: Status | None = None
    role: Text | None = None
    architecture: Text | None = None
    quantisation: Text | None = None
    sha256: Text | None = None


class FileShown(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the library. `status` is available (a hub has it, and it is not here), downloading, verifying, ready,
    quarantined or error; `path` is where it is found, null while it is nowhere. `done_bytes`: while it is not ready,
    how much of it had come or been read a second ago, whichever process does it. `repo`, `commit` and `repo_file` are
    where a hub has the same; `place` is the library's folder, where replicas have one each."""

    object: str = "library.file"
    id: str
    name: str
    kind: Kind
    status: Status
    reason: str | None
    path: str | None
    how: str
    source: str
    size_bytes: int
    done_bytes: int | None
    sha256: str | None
    blake3: str | None
    facts: Facts | None
    repo: str | None
    commit: str | None
    repo_file: str | None
    tags: tuple[str, ...]
    place: str
    created_at: Moment
    changed_at: Moment
    version: int


class NewFile(Body, frozen=True, kw_only=True):
    """A file of the server's machine, in a folder of `library.import_dirs`. `wait`: answer when it is ready or not."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    how: Way = "auto"
    tags: Tags = ()
    wait: bool = False


class LibraryRoutes:
    """`/admin/v1/library/files`."""

    def __init__(self, imports: Imports | None) -> None:
        self._maybe = imports

    @property
    def _imports(self) -> Imports:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                ALL,
                "library.read",
                self.list,
                "Files of the library, the newest first",
                query=FileQuery,
                answer=list[FileShown],
            ),
            Route(
                "POST",
                ALL,
                "library.write",
                self.create,
                "Import a file of this machine",
                body=NewFile,
                answer=FileShown,
                status=201,
                action="library.import",
                description="It is checked, and read once for its digests. What is no model is put into quarantine.",
            ),
            Route("GET", ONE, "library.read", self.get, "One file of the library", answer=FileShown),
            Route(
                "DELETE",
                ONE,
                "library.write",
                self.delete,
                "Delete a file of the library",
                action="library.delete",
                description="409 while the configuration or a link refers to it. Its bytes go in the background; what "
                "it is only linked to stays.",
            ),
            Route(
                "POST",
                ONE + "/verify",
                "library.write",
                self.verify,
                "Read a file of the library anew and compare its digests",
                answer=FileShown,
                action="library.verify",
            ),
            Route(
                "POST",
                ONE + "/cancel",
                "library.write",
                self.cancel,
                "Stop an import or a check",
                answer=FileShown,
                action="library.cancel",
            ),
        )

    async def list(self, call: Call[FileQuery, None]) -> Page[FileShown]:
        asked = call.query
        wanted = Wanted(
            text=asked.q,
            kind=asked.kind,
            status=asked.status,
            role=asked.role,
            architecture=asked.architecture,
            quantisation=asked.quantisation,
            sha256=asked.sha256,
        )
        files, more = await self._imports.files.page(wanted, asked.limit, asked.after)
        return Page([self._shown(file) for file in files], files[-1].id if more else None)

    async def create(self, call: Call[None, NewFile]) -> FileShown:
        body = call.body
        with told(param="path"):
            file = await self._imports.start(Path(body.path), body.how, body.tags)
        call.note(file.id, path=file.source, how=body.how)
        return self._shown(await self._imports.wait(file.id) if body.wait else file)

    async def get(self, call: Call[None, None]) -> FileShown:
        with told():
            return self._shown(await self._imports.files.get(call.path["id"]))

    async def delete(self, call: Call[None, None]) -> None:
        with told():
            file = await self._imports.files.get(call.path["id"])
            await self._imports.delete(file.id)
        call.note(file.id, name=file.name)

    async def verify(self, call: Call[None, None]) -> FileShown:
        with told():
            return self._shown(await self._imports.verify(call.path["id"]))

    async def cancel(self, call: Call[None, None]) -> FileShown:
        with told():
            await self._imports.cancel(call.path["id"])
            return self._shown(await asyncio.shield(self._imports.wait(call.path["id"])))

    def _shown(self, file: File) -> FileShown:
        return file_shown(file, self._imports.done_bytes(file.id))


def file_shown(file: File, done_bytes: int | None = None) -> FileShown:
    return shown(
        FileShown,
        file,
        reason=file.reason or None,
        path=file.path or None,
        commit=file.commit_id,
        done_bytes=file.done_bytes if done_bytes is None and file.status in UNFINISHED else done_bytes,
    )


@contextmanager
def told(param: str | None = None) -> Iterator[None]:
    """The library's errors as answers."""
    try:
        yield
    except library.LibraryError as error:
        code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
        message = f"{str(error)[:1].upper()}{str(error)[1:]}."
        retry_after_s = getattr(error, "retry_after_s", None)
        raise errors.error(code, message, param=param, retry_after_s=retry_after_s) from None
