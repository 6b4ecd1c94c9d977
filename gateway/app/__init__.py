"""Builds every part from the configuration, opens in order, closes in reverse, and serves."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop
from msgspec.structs import replace

from adapters.llama_cpp import Status
from adapters.llama_cpp.pool import Occupied, Pool
from adapters.scripted import Scripted
from adapters.shared.guest import Link
from gateway import gauges, logs
from gateway.api.cookies import Cookies
from gateway.api.edge import Edge
from gateway.api.health import Health
from gateway.api.idempotent import Idempotent
from gateway.api.lane import Lane
from gateway.api.log_ins import LogIns
from gateway.api.mount import Library, Parts, routes, version
from gateway.api.passing import Passer
from gateway.api.protocol import Report, Wheel
from gateway.api.server import ListenError, Server, bind
from gateway.app.caching import open_cache
from gateway.app.engines import open_link, serve_engines, shared_pool, stop_with
from gateway.app.guardrails import open_guardrails
from gateway.app.library import open_library
from gateway.app.models import Local, open_adapters
from gateway.app.money import open_money
from gateway.app.people import open_authenticator, open_people
from gateway.app.pooling import open_pool
from gateway.app.serving import Serving, open_live
from gateway.app.workers import Roles, Station, left_behind, outbox_of, supervise
from gateway.audit import GATEWAY, Audit, Event
from gateway.auth.key_text import key_id, load_pepper
from gateway.auth.keyring import Keyring
from gateway.auth.records import Directory
from gateway.banner import Banner
from gateway.config import Config, digest
from gateway.errors import GatewayError
from gateway.idempotency import Idempotency
from gateway.inference import Inference
from gateway.ledger.caught_up import CaughtUp
from gateway.ledger.store import Ledger
from gateway.library.messages import Ask
from gateway.limits.orphans import NAME_CHARS
from gateway.limits.wallets import Wallets
from gateway.logs import AccessLog
from gateway.memory import settle_memory
from gateway.metering import Metering
from gateway.networks import Networks
from gateway.passthrough import PassThrough
from gateway.retention import Retention
from gateway.routing.decisions import Decisions
from gateway.state.database import Database
from gateway.state.migrate import known, migrate
from gateway.state.sqlite import open_sqlite
from gateway.stores import open_database, open_shared
from gateway.telemetry import Telemetry

log = logging.getLogger("gateway")


class Gateway(NamedTuple):
    """A gateway whose parts are open. `admin_key` is the text of a key that was made just now."""

    edge: Edge
    wheel: Wheel
    statuses: Callable[[], Mapping[str, Status]]
    admin_key: str | None


def serve(config: Config) -> int:
    """Serve until a signal ends it; the exit code. Raises what keeps it from starting, bar an address that is taken."""
    logs.configure(config.log, sys.stderr)
    workers = config.server.workers
    if (needed := left_behind(Path(config.data_dir), workers)) is not None:
        print(
            f"gateway: earlier processes left usage to be recorded; serve once with --workers {needed}", file=sys.stderr
        )
        return 1
    try:
        sockets = bind(config.server.host, config.server.port)
    except ListenError as exc:
        print(f"gateway: {exc}", file=sys.stderr)
        return 1
    if workers == 1:
        return _answer(config, sockets)
    # To whatever counts together with others each of them is a replica.
    shared = replace(config, state=replace(config.state, replicas=config.state.replicas * workers))

    def stop() -> None:
        for one in sockets:
            one.close()

    return supervise(workers, Roles(partial(serve_engines, config, sockets), partial(_answer, shared, sockets), stop))


def _answer(
    config: Config,
    sockets: list[socket.socket],
    station: Station | None = None,
    ready: Callable[[], None] | None = None,
) -> int:
    """Answer requests on these sockets, alone or at a station among others."""

    async def run() -> None:
        async with opened(config, station) as gateway:
            banner = Banner(config, version(), gateway.admin_key, sys.stdout)

            def started() -> None:
                if station is None or station.first:
                    banner.show()
                if ready is not None:
                    ready()

            server = Server(gateway.edge, gateway.wheel, config.server, started)
            settle_memory()
            showing = asyncio.create_task(banner.show_loading(gateway.statuses))
            if station is not None:
                if not station.first:
                    showing.cancel()
                stop_with(station.lifeline, partial(server.handle_exit, signal.SIGTERM, None))
            try:
                await server.serve(sockets)
            finally:
                showing.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0


@asynccontextmanager
async def opened(config: Config, station: Station | None = None) -> AsyncIterator[Gateway]:
    """All parts, open and with their models loading (if not in another process); closed in reverse order at the end."""
    async with AsyncExitStack() as stack:
        telemetry = Telemetry(version())
        access_log = AccessLog(config.log, sys.stderr)
        stack.callback(access_log.flush)
        database = await _open_database(config, stack)
        audit = Audit(database)
        audit.start()
        stack.push_async_callback(audit.close)
        telemetry.gauge_source(partial(gauges.of_audit, audit))
        shared = await open_shared(config)
        stack.push_async_callback(shared.close)
        telemetry.gauge_source(lambda: [("gateway_shared_state_degraded", (), float(shared.degraded))])
        authenticator, recognises, admin_key = await open_authenticator(config, database, shared, telemetry, stack)
        if admin_key is not None:
            made = Event(action="key.create", actor=GATEWAY, subject=key_id(admin_key) or "", details={"admin": True})
            audit.add(made)
        adapters = open_adapters(config, link := await open_link(station, telemetry, stack))
        decisions = Decisions()
        serving = Serving(adapters, decisions, telemetry)
        stack.push_async_callback(serving.close)
        live = await open_live(config, serving, database, shared, stack)
        telemetry.gauge_source(lambda: gauges.of_routes(serving.routers, serving.standings, time.monotonic()))
        models = [adapter for adapter in adapters if not isinstance(adapter, Scripted)]
        library = await open_library(config, database, audit, stack)
        pool, pulls = _pool(config, adapters, library, link, stack)
        wheel = Wheel(config.server, _reporter(telemetry, access_log))
        telemetry.gauge_source(lambda: gauges.of_work(models, pool, len(wheel.connections)))
        process = secrets.token_hex(NAME_CHARS // 2)
        outbox = outbox_of(Path(config.data_dir), station.number if station else 0)
        limiter, ledger = await open_money(config, database, shared, telemetry, stack, process, outbox)
        _start_retention(config, database, audit, stack)
        idempotent = await _open_idempotent(config, database, ledger, stack)
        metering = Metering(limiter, ledger, telemetry, process=process)
        guardrails = open_guardrails(config, telemetry, audit, stack)
        cache = await open_cache(config, telemetry, stack)
        inference = Inference(serving.catalog, telemetry, metering, cache, guardrails=guardrails)
        health = Health(telemetry, serving.statuses, lambda: wheel.draining, lambda: ledger is not None and ledger.full)
        people = await open_people(config, database, shared, stack)
        parts = Parts(config, serving.catalog, inference, health, audit, limiter, guardrails, ledger, people=people)
        parts = parts._replace(passthrough=PassThrough(serving.remotes, serving.catalog, metering, guardrails))
        parts = parts._replace(standings=lambda: serving.standings, live=live, router=serving.router)
        parts = parts._replace(decisions=decisions, library=library, cache=cache, pool=pool, pulls=pulls)
        if database is not None and ledger is not None:
            directory = Directory(database, shared)
            keyring = Keyring(directory, load_pepper(Path(config.data_dir), config.auth.pepper))
            wallets = Wallets(CaughtUp(database, ledger.keeper.caught_up))
            parts = parts._replace(wallets=wallets, directory=directory, keyring=keyring)
        passer = Passer(inference, config.server.body_bytes_max)
        endpoints = idempotent.wrap(passer.wrap(routes(parts)))
        cookies = Cookies(config.auth.people.public_url)
        log_ins = None if people is None else LogIns(people.sessions, cookies)
        edge = Edge(
            endpoints,
            authenticator,
            telemetry,
            access_log,
            audit=audit,
            loopback_only=not config.auth.enabled,
            proxies=Networks(config.server.trusted_proxies),
            log_ins=log_ins,
            recognises=recognises,
        )
        wheel.lane = Lane(edge, passer)
        _start_loading(pool, stack)
        started = Event(action="gateway.start", actor=GATEWAY, subject=socket.gethostname(), details=_facts(config))
        audit.add(started)
        stack.callback(audit.add, replace(started, action="gateway.stop"))
        yield Gateway(edge, wheel, lambda: {model.name: model.status() for model in models}, admin_key)


def _pool(
    config: Config, adapters: Sequence[Local], library: Library | None, link: Link | None, stack: AsyncExitStack
) -> tuple[Occupied, Ask]:
    """The pool and its pulls: those of the engine process, if there is one."""
    if link is not None:
        return shared_pool(link)
    pool, pulls = open_pool(config, adapters, library and library.imports.shelf, stack)
    return pool, pulls.ask


async def _open_database(config: Config, stack: AsyncExitStack) -> Database | None:
    """The database; none without keys, when there is nobody to tell apart."""
    if not config.auth.enabled:
        return None
    database = await open_database(config, serve=True)
    stack.push_async_callback(database.close)
    await migrate(database, known())
    return database


def _start_retention(config: Config, database: Database | None, audit: Audit, stack: AsyncExitStack) -> None:
    if database is not None:
        retention = Retention(database, audit, config.state.retention)
        retention.start()
        stack.push_async_callback(retention.close)


def _facts(config: Config) -> dict[str, str | int | bool]:
    """What the audit log says about a process that serves."""
    return {"version": version(), "config_sha256": digest(config), "pid": os.getpid()}


async def _open_idempotent(
    config: Config, database: Database | None, ledger: Ledger | None, stack: AsyncExitStack
) -> Idempotent:
    """Results of named requests; without a database they last as long as this process."""
    if database is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-"))
        database = await open_sqlite(Path(folder), serve=True)
        stack.push_async_callback(database.close)
        await migrate(database, known())
    idempotency = Idempotency(database, ledger, config.state.idempotency, alone=config.state.redis is None)
    await idempotency.open()
    stack.push_async_callback(idempotency.close)
    idempotent = Idempotent(idempotency, config.server.body_bytes_max)
    stack.push_async_callback(idempotent.close)
    return idempotent


def _reporter(telemetry: Telemetry, access_log: AccessLog) -> Report:
    """Counts and logs what the protocol refuses before it is a request."""

    def report(error: GatewayError, request_id: str) -> None:
        telemetry.request("refused", "", error.status, 0.0)
        access_log.add({"status": error.status, "error": error.code, "request_id": request_id})

    return report


def _start_loading(pool: Occupied, stack: AsyncExitStack) -> None:
    """The pool of another process is started there."""
    if isinstance(pool, Pool):
        stack.push_async_callback(_end, asyncio.create_task(_load(pool)))


async def _load(pool: Pool) -> None:
    try:
        await pool.start()
    except Exception:
        log.exception("loading the models failed unexpectedly")


async def _end(loading: asyncio.Task[None]) -> None:
    loading.cancel()
    with suppress(asyncio.CancelledError):
        await loading
