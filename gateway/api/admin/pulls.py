"""Pulls from a hub: begun, watched, paused, gone on with and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api import sockets
from gateway.api.admin.routes import Body, Call, Page, Route, encode, kept
from gateway.api.http import EventStreamResponse, Response
from gateway.auth.records import not_found
from gateway.library.errors import InvalidReference, LibraryError
from gateway.library.names import Reference, parse

if TYPE_CHECKING:
    from gateway.library.pull import Progress, Pull, Pulls

WAIT_S_MAX = 3600.0


class NewPull(Body, frozen=True, kw_only=True):
    """`name` is owner/repo, owner/repo:Q4_K_M or owner/repo/file.gguf, each with @revision. With `dataset` its JSONL,
    Parquet and CSV files are meant. `update` looks the name up anew. `wait`: answer when it has ended."""

    name: Annotated[str, Meta(min_length=1, max_length=400)]
    dataset: bool = False
    update: bool = False
    wait: bool = False


class PullShown(msgspec.Struct, frozen=True, kw_only=True):
    """A pull. `status` is queued, running, verifying, paused, succeeded, failed or cancelled; `eta_s` null: nobody can
    tell; `path` is the model's first file once it is here."""

    object: str = "library.pull"
    id: str
    reference: str
    kind: str
    status: str
    commit: str | None
    files: tuple[str, ...]
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    eta_s: float | None
    error: str | None
    path: str | None


class PullRoutes:
    """The pulls of this process. `allowed` are the repositories they may be from: `*` is anything, none is all."""

    def __init__(self, pulls: Callable[[], Pulls] | None, allowed: tuple[str, ...]) -> None:
        self._pulls = pulls
        self._allowed = allowed

    def routes(self) -> tuple[Route, ...]:
        one, read, write = "/admin/v1/pulls/{id}", "library.read", "library.write"
        events = {"type": "string", "description": "`data: ` and a pull, a few times a second, until it has ended. "}
        events["description"] += "With `Upgrade: websocket` each is a text message instead."
        return (
            Route(
                "GET", "/admin/v1/pulls", read, self.list, "The pulls of this process", "pulls", answer=list[PullShown]
            ),
            Route(
                "POST",
                "/admin/v1/pulls",
                write,
                self.start,
                "Pull a model or dataset, or join the pull of it",
                "pulls",
                body=NewPull,
                answer=PullShown,
                status=201,
                action="library.pull",
            ),
            Route("GET", one, read, self.show, "One pull", "pulls", answer=PullShown),
            Route(
                "GET",
                f"{one}/events",
                read,
                self.events,
                "One pull as server-sent events, or over a WebSocket",
                "pulls",
                answer=events,
                media=("text/event-stream",),
            ),
            self._action("pause", self.pause, "Stop fetching, and keep what has come"),
            self._action("resume", self.resume, "Go on with a pull that was paused or has failed"),
            self._action("cancel", self.cancel, "Stop fetching, and remove what has come of files that are not whole"),
        )

    def _action(self, verb: str, handler: Any, summary: str) -> Route:
        path, action = f"/admin/v1/pulls/{{id}}/{verb}", f"library.pull.{verb}"
        return Route("POST", path, "library.write", handler, summary, "pulls", answer=PullShown, action=action)

    def _open(self) -> Pulls:
        try:
            return kept(self._pulls)()
        except LibraryError as error:
            raise errors.error("conflict", f"Nothing can be pulled: {error}.") from None

    async def list(self, call: Call[None, None]) -> Page[PullShown]:
        return Page([] if self._pulls is None else [shown(one) for one in self._open().list()])

    async def start(self, call: Call[None, NewPull]) -> PullShown:
        pulls, body = self._open(), call.body
        reference = self._permitted(body.name)
        try:
            pull = pulls.start(reference, "dataset" if body.dataset else "model", update=body.update)
        except LibraryError as error:
            raise errors.error("overloaded", f"{error}.") from None
        call.note(pull.id, name=str(reference))
        if body.wait:
            async with asyncio.timeout(WAIT_S_MAX):
                async for progress in pulls.watch(pull):
                    if progress.status == "paused":
                        break
        return shown(pull.progress())

    def _permitted(self, name: str) -> Reference:
        try:
            reference = parse(name)
        except InvalidReference as error:
            raise errors.error("invalid_value", f"Invalid value for 'name': {error}.", param="name") from None
        if self._allowed and not any(fnmatchcase(reference.repo, pattern) for pattern in self._allowed):
            message = f"{reference.repo} is none of the repositories that may be pulled (library.allow)."
            raise errors.error("permission_denied", message, param="name")
        return reference

    async def show(self, call: Call[None, None]) -> PullShown:
        return shown(self._found(call)[1].progress())

    async def events(self, call: Call[None, None]) -> Response:
        pulls, pull = self._found(call)

        if sockets.wanted(call.request):
            return sockets.TextSocket(_told(pulls, pull))
        return EventStreamResponse(_told(pulls, pull, b"data: %b\n\n"))

    async def pause(self, call: Call[None, None]) -> PullShown:
        pulls, pull = self._found(call)
        return _changed(pulls.pause(pull), pull)

    async def resume(self, call: Call[None, None]) -> PullShown:
        pulls, pull = self._found(call)
        return _changed(pulls.resume(pull), pull)

    async def cancel(self, call: Call[None, None]) -> PullShown:
        pulls, pull = self._found(call)
        return _changed(await pulls.cancel(pull), pull)

    def _found(self, call: Call[Any, Any]) -> tuple[Pulls, Pull]:
        pulls = self._open()
        pull = pulls.get(call.path["id"])
        if pull is None:
            raise not_found()
        return pulls, pull


async def _told(pulls: Pulls, pull: Pull, form: bytes = b"%b") -> AsyncGenerator[bytes, None]:
    async with aclosing(pulls.watch(pull)) as watched:
        async for progress in watched:
            yield form % encode(shown(progress))


def _changed(done: bool, pull: Pull) -> PullShown:
    if not done:
        raise errors.error("conflict", f"The pull is {pull.status}.")
    return shown(pull.progress())


def shown(progress: Progress) -> PullShown:
    return PullShown(**msgspec.structs.asdict(progress))
