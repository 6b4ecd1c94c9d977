"""Pulls from a hub: begun, watched, paused, gone on with and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Annotated, Any

from msgspec import Meta

from gateway import errors
from gateway.api import sockets
from gateway.api.admin.routes import Body, Call, Page, Route, encode, kept
from gateway.api.http import EventStreamResponse, Response
from gateway.auth.records import not_found
from gateway.library.datasets import Datasets
from gateway.library.errors import InvalidReference
from gateway.library.messages import Ask, Asked, Progress, Told, Verb, watch
from gateway.library.names import Kind, Reference, parse
from gateway.library.requests import ROWS_MAX, Request, Wish

WAIT_S_MAX = 3600.0
Text = Annotated[str, Meta(min_length=1, max_length=200)]


class NewPull(Body, frozen=True, kw_only=True):
    """`name` is owner/repo, owner/repo:Q4_K_M or owner/repo/file.gguf, each with @revision. With `dataset` its JSONL,
    Parquet and CSV files are meant, or the one that is named, and when they are here a dataset is made of their rows:
    requests of this kind to `model`, of a `column`, at most `limit`, with this `max_tokens`. `update` looks the name up
    anew. `wait`: answer when it has ended."""

    name: Annotated[str, Meta(min_length=1, max_length=400)]
    dataset: bool = False
    request: Request = "chat"
    model: Text | None = None
    column: Text | None = None
    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX)] = ROWS_MAX
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    update: bool = False
    wait: bool = False


class PullRoutes:
    """The pulls of this gateway. `allowed` are the repositories they may be from: `*` is anything, none is all."""

    def __init__(self, ask: Ask | None, allowed: tuple[str, ...], datasets: Datasets | None = None) -> None:
        self._ask_pulls = ask
        self._allowed = allowed
        self._datasets = datasets

    def routes(self) -> tuple[Route, ...]:
        one, read, write = "/admin/v1/pulls/{id}", "library.read", "library.write"
        events = {"type": "string", "description": "`data: ` and a pull, a few times a second, until it has ended. "}
        events["description"] += "With `Upgrade: websocket` each is a text message instead."
        return (
            Route("GET", "/admin/v1/pulls", read, self.list, "All pulls since the start", answer=list[Progress]),
            Route(
                "POST",
                "/admin/v1/pulls",
                write,
                self.start,
                "Pull a model or dataset, or join the pull of it",
                body=NewPull,
                answer=Progress,
                status=201,
                action="library.pull",
            ),
            Route("GET", one, read, self.show, "One pull", answer=Progress),
            Route(
                "GET",
                f"{one}/events",
                read,
                self.events,
                "One pull as server-sent events, or over a WebSocket",
                answer=events,
                media=("text/event-stream",),
            ),
            self._action("pause", self.pause, "Stop fetching, and keep what has come"),
            self._action("resume", self.resume, "Go on with a pull that was paused or has failed"),
            self._action("cancel", self.cancel, "Stop fetching, and remove what has come of files that are not whole"),
        )

    def _action(self, verb: str, handler: Any, summary: str) -> Route:
        path, action = f"/admin/v1/pulls/{{id}}/{verb}", f"library.pull.{verb}"
        return Route("POST", path, "library.write", handler, summary, answer=Progress, action=action)

    async def _ask(self, verb: Verb, name: str = "", **more: Any) -> Told:
        told = await kept(self._ask_pulls)(Asked(verb=verb, name=name, **more))
        if told.closed is not None:
            raise errors.error("conflict", f"Nothing can be pulled: {told.closed}.")
        if told.refused is not None:
            raise errors.error("overloaded", f"{told.refused}.")
        return told

    async def list(self, call: Call[None, None]) -> Page[Progress]:
        told = Told() if self._ask_pulls is None else await self._ask("list")
        return Page([*told.pulls])

    async def start(self, call: Call[None, NewPull]) -> Progress:
        body = call.body
        kind: Kind = "dataset" if body.dataset else "model"
        reference = self._permitted(body.name, kind)
        told = await self._ask("start", str(reference), kind=kind, update=body.update)
        progress = told.pulls[0]
        call.note(progress.id, name=str(reference))
        made = self._follow(progress, body)
        if body.wait:
            async with asyncio.timeout(WAIT_S_MAX), aclosing(watch(kept(self._ask_pulls), progress)) as watched:
                async for progress in watched:
                    if progress.status == "paused":
                        break
                if made is not None and progress.status == "succeeded":
                    await asyncio.wait([made])
        return progress

    def _follow(self, progress: Progress, body: NewPull) -> asyncio.Task[None] | None:
        """Have a dataset made of what comes, where there is a library to keep it in."""
        if not body.dataset or self._datasets is None:
            return None
        return self._datasets.follow(
            kept(self._ask_pulls),
            progress,
            Wish(
                request=body.request,
                model=body.model,
                column=body.column,
                limit=body.limit,
                max_tokens=body.max_tokens,
            ),
        )

    def _permitted(self, name: str, kind: Kind) -> Reference:
        try:
            reference = parse(name, kind)
        except InvalidReference as error:
            raise errors.error("invalid_value", f"Invalid value for 'name': {error}.", param="name") from None
        if self._allowed and not any(fnmatchcase(reference.repo, pattern) for pattern in self._allowed):
            message = f"{reference.repo} is none of the repositories that may be pulled (library.allow)."
            raise errors.error("permission_denied", message, param="name")
        return reference

    async def show(self, call: Call[None, None]) -> Progress:
        return (await self._known(call, "find")).pulls[0]

    async def events(self, call: Call[None, None]) -> Response:
        first = (await self._known(call, "find")).pulls[0]
        if sockets.wanted(call.request):
            return sockets.TextSocket(self._told(first))
        return EventStreamResponse(self._told(first, b"data: %b\n\n"))

    async def _told(self, first: Progress, form: bytes = b"%b") -> AsyncGenerator[bytes, None]:
        async with aclosing(watch(kept(self._ask_pulls), first)) as watched:
            async for progress in watched:
                yield form % encode(progress)

    async def pause(self, call: Call[None, None]) -> Progress:
        return await self._changed(call, "pause")

    async def resume(self, call: Call[None, None]) -> Progress:
        return await self._changed(call, "resume")

    async def cancel(self, call: Call[None, None]) -> Progress:
        return await self._changed(call, "cancel")

    async def _changed(self, call: Call[None, None], verb: Verb) -> Progress:
        told = await self._known(call, verb)
        if not told.done:
            raise errors.error("conflict", f"The pull is {told.pulls[0].status}.")
        return told.pulls[0]

    async def _known(self, call: Call[None, None], verb: Verb) -> Told:
        told = await self._ask(verb, call.path["id"])
        if not told.pulls:
            raise not_found()
        return told
