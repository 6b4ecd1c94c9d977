"""The pool of local models: what is in memory, what it does there, and what an operator wants there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from adapters.llama_cpp import Status
from adapters.llama_cpp.pool import Occupied, Verb
from adapters.llama_cpp.resident import Placement
from gateway import errors
from gateway.api.admin.routes import Call, Query, Route, kept
from gateway.api.health import ModelStatus
from gateway.auth.records import not_found
from gateway.config import Config


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory, on its way there, or asleep; `details` is what it says of itself once it was loaded.

    `waiting` requests wait for it to be loaded, `queue_depth` for a place in it, and `running` have one. `eta_s` is how
    long a request that came now would wait in all; null: it would be refused. `memory_bytes` is what it takes, or will
    take. What runs elsewhere, or plays a script, has less to say.
    """

    object: str = "pool.engine"
    id: str
    state: str
    progress: float
    reason: str | None
    pid: int | None = None
    queue_depth: int = 0
    running: int = 0
    waiting: int = 0
    eta_s: float | None = None
    tokens_per_s: float | None = None
    kv_cells_used: int | None = None
    kv_cells_max: int | None = None
    memory_bytes: int | None = None
    pinned: bool | None = None
    lazy: bool | None = None
    priority: int | None = None
    ttl_s: float | None = None
    held: bool | None = None
    loads: int | None = None
    load_s: float | None = None
    idle_s: float | None = None
    sessions: int | None = None
    session_ram_bytes: int | None = None
    session_disk_bytes: int | None = None
    details: dict[str, Any] | None = None


class PoolShown(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, and the memory that local models take of what they may."""

    object: str = "list"
    data: list[Engine]
    has_more: bool = False
    next_cursor: str | None = None
    memory_bytes: int
    memory_bytes_max: int | None


class Unloading(Query, kw_only=True, frozen=True):
    """`force` ends what runs."""

    force: bool = False


class PoolRoutes:
    """The pool, looked at and changed."""

    def __init__(
        self, config: Config, pool: Occupied | None, statuses: Callable[[], Mapping[str, ModelStatus]]
    ) -> None:
        self._pool = pool
        self._statuses = statuses
        self._local = {model.name for model in config.models if model.local}
        self._names = {name: model.name for model in config.models for name in (model.name, *model.aliases)}

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/pool",
                "pool.read",
                self.list,
                "What is loaded, what sleeps, and how busy it is",
                answer=PoolShown,
            ),
            self._action("load", self.load, "Bring a model into memory, and back into service"),
            self._action("wake", self.load, "The same as load"),
            self._action("unload", self.unload, "Take a model out of service when what runs is done", Unloading),
            self._action("sleep", self.sleep, "Take an idle model out of memory until somebody asks for it"),
            self._action("pin", self.pin, "Keep a model in memory"),
            self._action("unpin", self.unpin, "Let a model go again"),
            self._action("reset", self.reset, "Forget that a model failed, and try again"),
        )

    def _action(self, verb: str, handler: Any, summary: str, query: type[Query] | None = None) -> Route:
        path = f"/admin/v1/pool/{{id:path}}/{verb}"
        return Route("POST", path, "pool.write", handler, summary, query=query, answer=Engine, action=f"pool.{verb}")

    async def list(self, call: Call[None, None]) -> PoolShown:
        pool = self._pool
        places = {} if pool is None else pool.placements()
        return PoolShown(
            data=[engine(name, status, places.get(name)) for name, status in self._statuses().items()],
            memory_bytes=0 if pool is None else pool.taken_bytes,
            memory_bytes_max=None if pool is None else pool.memory_bytes_max,
        )

    async def load(self, call: Call[None, None]) -> Engine:
        return await self._do(call, "load")

    async def unload(self, call: Call[Unloading, None]) -> Engine:
        return await self._do(call, "unload", force=call.query.force)

    async def sleep(self, call: Call[None, None]) -> Engine:
        return await self._do(call, "sleep")

    async def pin(self, call: Call[None, None]) -> Engine:
        return await self._do(call, "pin")

    async def unpin(self, call: Call[None, None]) -> Engine:
        return await self._do(call, "unpin")

    async def reset(self, call: Call[None, None]) -> Engine:
        return await self._do(call, "reset")

    async def _do(self, call: Call[Any, Any], verb: Verb, *, force: bool = False) -> Engine:
        pool, name = kept(self._pool), self._names.get(call.path["id"], "")
        if name not in self._local:
            raise not_found()
        if not await pool.do(verb, name, force=force):
            raise errors.error("conflict", "The model is busy: only an idle one can be put to sleep.")
        call.note(name)
        return engine(name, self._statuses()[name], pool.placements()[name])


def engine(name: str, status: ModelStatus, place: Placement | None) -> Engine:
    """A status as it is shown, with the place of a local model in memory."""
    shown = Engine(
        id=name, state=status.state, progress=round(status.progress, 3), reason=getattr(status, "reason", None)
    )
    if isinstance(status, Status):
        shown = _running(shown, status)
    return shown if place is None else _placed(shown, place)


def _running(shown: Engine, status: Status) -> Engine:
    """With what the engine does, in whatever process it is."""
    busyness, info, sessions = status.busyness, status.info, status.sessions
    return msgspec.structs.replace(
        shown,
        pid=status.pid,
        queue_depth=status.queue_depth,
        running=status.running,
        eta_s=round(status.eta_s, 1) if math.isfinite(status.eta_s) else None,
        tokens_per_s=None if busyness is None else round(busyness.running * 1e6 / busyness.decode_us_per_token, 1),
        kv_cells_used=None if busyness is None else busyness.cells_used,
        kv_cells_max=None if busyness is None else busyness.cells_max,
        sessions=sessions.sessions,
        session_ram_bytes=sessions.ram_bytes,
        session_disk_bytes=sessions.disk_bytes,
        details=None if info is None else msgspec.structs.asdict(info),
    )


def _placed(shown: Engine, place: Placement) -> Engine:
    """With its place in memory."""
    return msgspec.structs.replace(
        shown,
        waiting=place.waiting,
        memory_bytes=place.memory_bytes,
        pinned=place.pinned,
        lazy=place.lazy,
        priority=place.priority,
        ttl_s=place.ttl_s,
        held=place.held,
        loads=place.loads,
        load_s=None if place.load_s is None else round(place.load_s, 1),
        idle_s=None if place.used_s is None else round(time.monotonic() - place.used_s, 1),
    )
