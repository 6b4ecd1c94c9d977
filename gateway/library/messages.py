"""Pulls as somebody has them who need not be in the process that makes them: one question, one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from gateway.library.errors import LibraryError
from gateway.library.names import Kind, parse

if TYPE_CHECKING:
    from gateway.library.pulls import Pulls

Status = Literal["queued", "running", "verifying", "paused", "succeeded", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
PROGRESS_EVERY_S = 0.25

Verb = Literal["list", "start", "find", "pause", "resume", "cancel"]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A pull as it stands. `eta_s` null: nobody can tell. `path` is the model's first file once it is here."""

    object: str = "library.pull"
    id: str
    reference: str
    kind: Kind
    status: Status
    commit: str | None
    files: tuple[str, ...]
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    eta_s: float | None
    error: str | None
    path: str | None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the reference to `start`, and the id of one pull for everything but `list`. `update` looks the name up
    anew."""

    verb: Verb
    name: str = ""
    kind: Kind = "model"
    update: bool = False


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The pulls that were asked about, as they are then. `done` False: that is not possible in their state. `closed`
    and `refused` say why nothing can be pulled at all, or this not now."""

    pulls: tuple[Progress, ...] = ()
    done: bool = True
    closed: str | None = None
    refused: str | None = None


Ask = Callable[[Asked], Awaitable[Told]]


async def answer(open_pulls: Callable[[], Pulls], asked: Asked) -> Told:
    """In the process that has the pulls."""
    try:
        pulls = open_pulls()
    except LibraryError as error:
        return Told(closed=str(error))
    if asked.verb == "list":
        return Told(pulls=tuple(pulls.list()))
    if asked.verb == "start":
        try:
            return Told(pulls=(pulls.start(parse(asked.name, asked.kind), asked.kind, update=asked.update).progress(),))
        except LibraryError as error:
            return Told(refused=str(error))
    if (pull := pulls.get(asked.name)) is None:
        return Told()
    match asked.verb:
        case "pause":
            done = pulls.pause(pull)
        case "resume":
            done = pulls.resume(pull)
        case "cancel":
            done = await pulls.cancel(pull)
        case _:
            done = True
    return Told(pulls=(pull.progress(),), done=done)


async def answer_bytes(open_pulls: Callable[[], Pulls], asked: bytes) -> bytes:
    """The same for another process."""
    return msgspec.msgpack.encode(await answer(open_pulls, msgspec.msgpack.decode(asked, type=Asked)))


def elsewhere(call: Callable[[bytes], Awaitable[bytes]]) -> Ask:
    """To ask the process that `call` reaches."""

    async def ask(asked: Asked) -> Told:
        return msgspec.msgpack.decode(await call(msgspec.msgpack.encode(asked)), type=Told)

    return ask


async def watch(ask: Ask, first: Progress) -> AsyncGenerator[Progress, None]:
    """How a pull stands, a few times a second while that changes; ends with the pull, or when nobody knows it any
    more."""
    last = first
    yield last
    while last.status not in ENDED:
        await asyncio.sleep(PROGRESS_EVERY_S)
        told = await ask(Asked(verb="find", name=last.id))
        if not told.pulls:
            return
        if told.pulls[0] != last:
            last = told.pulls[0]
            yield last
