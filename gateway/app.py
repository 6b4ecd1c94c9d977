"""Builds every part from the configuration, opens in order, closes in reverse, and serves."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop
from msgspec.structs import replace

from adapters import open_adapter, open_remote, open_upstream
from adapters.llama_cpp import LlamaCpp
from adapters.llama_cpp.pool import Pool
from adapters.remote import RemoteModel
from adapters.scripted import Scripted
from gateway import gauges, logs
from gateway.alerts import Alerts, Channel
from gateway.api.cookies import Cookies
from gateway.api.edge import Edge
from gateway.api.health import Health
from gateway.api.idempotent import Idempotent
from gateway.api.lane import Lane
from gateway.api.log_ins import LogIns
from gateway.api.mount import Parts, routes, version
from gateway.api.passing import Passer
from gateway.api.people import PeopleParts
from gateway.api.protocol import Report, Wheel
from gateway.api.server import ListenError, Server, bind
from gateway.audit import GATEWAY, Audit, Event
from gateway.auth import Authenticator, Open
from gateway.auth.accounts import Accounts
from gateway.auth.attempts import Attempts
from gateway.auth.browser import BrowserSessions
from gateway.auth.identities import Identities
from gateway.auth.invitations import Invitations
from gateway.auth.key_text import key_id, load_pepper
from gateway.auth.keyring import Keyring
from gateway.auth.keys import Keys
from gateway.auth.newcomers import Newcomers
from gateway.auth.orgs import Orgs
from gateway.auth.passwords import Hashing, Passwords
from gateway.auth.records import Directory
from gateway.auth.users import Users
from gateway.banner import Banner
from gateway.catalog import Adapter, Catalog, Target, dearest, nano_usd, price_place, price_table
from gateway.config import AlertsConfig, Config, RouteConfig, TargetConfig, digest
from gateway.config_providers import LOCAL
from gateway.engines import engine_settings
from gateway.engines import scripts as engine_scripts
from gateway.errors import GatewayError
from gateway.idempotency import Idempotency
from gateway.inference import Inference
from gateway.ledger.store import Ledger
from gateway.limits import rest
from gateway.limits.limiter import Balance, Limiter, LocalCounters, steady_us, wall_us
from gateway.limits.orphans import NAME_CHARS, Orphans
from gateway.limits.shared import SharedCounters
from gateway.limits.wallets import Wallets, money_epoch
from gateway.logs import AccessLog
from gateway.memory import settle_memory
from gateway.metering import Metering, forecast_nano
from gateway.networks import Networks
from gateway.passthrough import PassThrough
from gateway.remotes import remote_model, route_settings, upstream_settings
from gateway.retention import Retention
from gateway.routing.backoff import RetryBudget
from gateway.routing.breaker import Breaker
from gateway.routing.decisions import Decisions
from gateway.routing.router import Router
from gateway.routing.router import Target as RouteTarget
from gateway.routing.standing import Standing
from gateway.state.database import Database, Statements
from gateway.state.journal import Journal
from gateway.state.migrate import known, migrate
from gateway.state.outbox import Outbox
from gateway.state.shared import SharedState, Under
from gateway.state.sqlite import open_sqlite
from gateway.stores import open_database, open_shared
from gateway.telemetry import Telemetry

log = logging.getLogger("gateway")


class Gateway(NamedTuple):
    """A gateway whose parts are open. `admin_key` is the text of a key that was made just now."""

    edge: Edge
    wheel: Wheel
    pool: Pool
    admin_key: str | None


def serve(config: Config) -> int:
    """Serve until a signal ends it; the exit code. Raises what keeps it from starting, bar an address that is taken."""
    logs.configure(config.log, sys.stderr)
    try:
        sockets = bind(config.server.host, config.server.port)
    except ListenError as exc:
        print(f"gateway: {exc}", file=sys.stderr)
        return 1

    async def run() -> None:
        async with opened(config) as gateway:
            banner = Banner(config, version(), gateway.admin_key, sys.stdout)
            server = Server(gateway.edge, gateway.wheel, config.server, banner.show)
            settle_memory()
            showing = asyncio.create_task(banner.show_loading(gateway.pool.statuses))
            try:
                await server.serve(sockets)
            finally:
                showing.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Gateway]:
    """All parts, open and with their models loading; closed in reverse order at the end."""
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
        authenticator, admin_key = await _open_authenticator(config, database, shared, telemetry, stack)
        if admin_key is not None:
            audit.add(
                Event(action="key.create", actor=GATEWAY, subject=key_id(admin_key) or "", details={"admin": True})
            )
        adapters = open_adapters(config)
        decisions = Decisions()
        routers, standings = open_routes(config, adapters, decisions, stack)
        telemetry.gauge_source(lambda: gauges.of_standings(standings, time.monotonic()))
        models = [adapter for adapter in adapters if isinstance(adapter, LlamaCpp)]
        pool = Pool(models)
        stack.push_async_callback(pool.close)
        wheel = Wheel(config.server, _reporter(telemetry, access_log))
        telemetry.gauge_source(lambda: gauges.of_models(models))
        telemetry.gauge_source(lambda: [("gateway_connections", (), len(wheel.connections))])
        catalog = build_catalog(config, adapters, routers)
        process = secrets.token_hex(NAME_CHARS // 2)
        limiter, ledger = await _open_money(config, database, shared, telemetry, stack, process)
        if database is not None:
            retention = Retention(database, audit, config.state.retention)
            retention.start()
            stack.push_async_callback(retention.close)
        idempotent = await _open_idempotent(config, database, ledger, stack)
        metering = Metering(limiter, ledger, telemetry, process=process)
        inference = Inference(catalog, telemetry, metering)
        health = Health(
            telemetry, lambda: {one.name: one.status() for one in (*adapters, *routers)}, lambda: wheel.draining
        )
        people = await _open_people(config, database, shared, stack)
        parts = Parts(config, catalog, inference, health, audit, limiter, ledger, people=people, decisions=decisions)
        parts = parts._replace(passthrough=open_passthrough(config, stack, catalog, metering))
        if database is not None:
            directory = Directory(database, shared)
            keyring = Keyring(directory, load_pepper(Path(config.data_dir), config.auth.pepper))
            parts = parts._replace(wallets=Wallets(database), directory=directory, keyring=keyring)
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
        )
        wheel.lane = Lane(edge, passer)
        stack.push_async_callback(_end, asyncio.create_task(_load(pool)))
        started = Event(action="gateway.start", actor=GATEWAY, subject=socket.gethostname(), details=_facts(config))
        audit.add(started)
        stack.callback(audit.add, replace(started, action="gateway.stop"))
        yield Gateway(edge, wheel, pool, admin_key)


async def _open_database(config: Config, stack: AsyncExitStack) -> Database | None:
    """The database; none without keys, when there is nobody to tell apart."""
    if not config.auth.enabled:
        return None
    database = await open_database(config, serve=True)
    stack.push_async_callback(database.close)
    await migrate(database, known())
    return database


async def _open_money(
    config: Config,
    database: Database | None,
    shared: SharedState,
    telemetry: Telemetry,
    stack: AsyncExitStack,
    process: str,
) -> tuple[Limiter, Ledger | None]:
    """Limits and the ledger. Without a database usage is not recorded, and budgets begin at zero with each start.
    `process` names this process to those that share its counters."""

    async def nothing(accounts: Sequence[str]) -> dict[str, Balance]:
        return {}

    ledger = None
    if database is not None:
        # So that a database that was put in the place of another does not meet counters of that one.
        shared = Under(shared, f"{await money_epoch(database)}:")
        folder = Path(config.data_dir) / "outbox"
        outbox = Outbox(folder)  # It locks the folder, the journal's too.
        ledger = Ledger(database, outbox, Journal(folder / "running.journal"))
        telemetry.gauge_source(partial(gauges.of_ledger, ledger))
    counters: SharedCounters | LocalCounters
    if config.state.redis is None:
        counters = LocalCounters(lambda: ledger is not None and ledger.complete)
        if ledger is not None:
            saved, boot = Path(config.data_dir) / "outbox" / "rates.json", rest.boot_id()
            rest.recall(counters.book, saved, boot)
            stack.callback(rest.save, counters.book, saved, boot)
    else:
        orphans = None if ledger is None else Orphans(shared, process, ledger.charges)
        counters = SharedCounters(
            shared,
            config.state.replicas,
            steady_us,
            complete=lambda: ledger is None or not ledger.waiting_bytes,
            orphans=orphans,
        )
        if ledger is not None:
            ledger.returned = counters.adopt
    if ledger is not None:
        await ledger.start()
        stack.push_async_callback(ledger.close)
    if isinstance(counters, SharedCounters):
        counters.start()
        stack.push_async_callback(counters.close)
    telemetry.gauge_source(lambda: [("gateway_reservations", (), counters.holds)])
    balances = nothing if database is None else Wallets(database).balances
    alerts = Alerts(database, _channels(config.alerts), balances, telemetry)
    alerts.start()
    stack.push_async_callback(alerts.close)
    limiter = Limiter(
        config.limits,
        counters,
        balances,
        now_us=wall_us,
        steady_us=steady_us,
        alert=alerts.add,
        wallet_low_nano=nano_usd(config.alerts.wallet_low_usd),
    )
    return limiter, ledger


def _channels(config: AlertsConfig) -> dict[str, Channel]:
    """Who is told of alerts beside the log."""
    # Imported by those who use them.
    from gateway.alerts.channels import Mail, Webhook

    channels: dict[str, Channel] = {}
    if config.webhook.url is not None:
        channels["webhook"] = Webhook(config.webhook)
    if config.smtp.host is not None:
        channels["smtp"] = Mail(config.smtp)
    return channels


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


async def _open_authenticator(
    config: Config, database: Database | None, shared: SharedState, telemetry: Telemetry, stack: AsyncExitStack
) -> tuple[Authenticator, str | None]:
    """Keys over the database, before them the issuers of tokens if there are any, and the text of a first admin key if
    one had to be made; or the open door."""
    if database is None:
        return Open(), None
    pepper = load_pepper(Path(config.data_dir), config.auth.pepper)
    keys = Keys(database, pepper, admin_key=config.auth.admin_key, shared=shared)
    await keys.open()
    stack.push_async_callback(keys.close)
    admin_key = await keys.ensure_admin()
    if not config.auth.issuers:
        return keys, admin_key
    # Imported by those who use it: the HTTP client and the cryptography it needs take long to load.
    from gateway.auth.jwt import Issuers

    issuers = Issuers(config.auth.issuers, keys, database=database)
    stack.push_async_callback(issuers.close)
    telemetry.gauge_source(lambda: gauges.of_issuers(issuers.key_sets))
    return issuers, admin_key


async def _open_people(
    config: Config, database: Database | None, shared: SharedState, stack: AsyncExitStack
) -> PeopleParts | None:
    """What lets people in; nobody without a database."""
    if database is None:
        return None
    people, pepper = config.auth.people, load_pepper(Path(config.data_dir), config.auth.pepper)
    directory, wallets = Directory(database, shared), Wallets(database)
    bonus_nano = nano_usd(people.bonus_usd or "0")

    async def open_wallet(inside: Statements, name: str, tenant: str, at_us: int) -> None:
        await wallets.open_in(inside, name, tenant, at_us, bonus_nano)

    sessions = BrowserSessions(directory, pepper, people, shared=shared)
    stack.push_async_callback(sessions.close)
    hashing, attempts = Hashing(), Attempts(None if config.state.redis is None else shared, pepper)
    stack.callback(hashing.close)
    passwords = Passwords(directory, hashing, people.password_length_min)
    newcomers, invitations = Newcomers(directory, people, open_wallet), Invitations(database, pepper)
    accounts = Accounts(directory, people, sessions, newcomers, invitations, (passwords, attempts))
    identities = Identities(directory, accounts, newcomers, invitations)
    parts = PeopleParts(accounts, identities, invitations, sessions, Orgs(directory), Users(directory), attempts)
    if not people.logins:
        return parts
    # Imported by those who use it: the HTTP client and the cryptography it needs take long to load.
    from gateway.auth import oidc

    client = oidc.client()
    stack.push_async_callback(client.aclose)
    providers = {one.name: oidc.Provider(one, client) for one in people.logins}
    for provider in providers.values():
        stack.push_async_callback(provider.close)
    return parts._replace(providers=providers, flows=oidc.Flows(pepper, shared))


def open_adapters(config: Config) -> list[LlamaCpp | Scripted]:
    """What serves each configured model, in order; engines are not started yet."""
    engines, scripts = iter(engine_settings(config)), engine_scripts(config)
    return [
        open_adapter(model.name, model.path, next(engines), queue_depth_max=model.queue_depth_max)
        if model.path is not None
        else Scripted(model.name, scripts[model.name])
        for model in config.models
    ]


def open_routes(
    config: Config, models: Iterable[Adapter], decisions: Decisions, stack: AsyncExitStack
) -> tuple[list[Router], dict[str, Standing]]:
    """What serves each route, in order, and how each target does; nothing is sent to a provider before a request."""
    upstreams = {provider.name: open_upstream(upstream_settings(provider)) for provider in config.providers}
    for upstream in upstreams.values():
        stack.push_async_callback(upstream.close)
    local = {model.name: adapter for model, adapter in zip(config.models, models, strict=True)}
    prices = price_table([*config.models, *config.routes])
    standings: dict[str, Standing] = {}
    budget = RetryBudget()

    def target(route: RouteConfig, one: TargetConfig) -> RouteTarget:
        standings.setdefault(one.identity, Standing(Breaker()))
        price = prices.get(price_place(route.name, one.identity))
        return RouteTarget(
            identity=one.identity,
            provider=one.provider,
            model=one.model,
            adapter=local[one.model]
            if one.provider == LOCAL
            else open_remote(remote_model(route, one), upstreams[one.provider]),
            weight=one.weight,
            cost_nano=lambda request: None if price is None else forecast_nano(request, price, one.context_tokens),
        )

    routers = [
        Router(
            route.name,
            [[target(route, one) for one in group] for group in route.groups],
            route_settings(route),
            standings,
            budget,
            decided=decisions.add,
        )
        for route in config.routes
    ]
    return routers, standings


def open_passthrough(config: Config, stack: AsyncExitStack, catalog: Catalog, metering: Metering) -> PassThrough:
    """The way to the providers' own APIs, where it is open; over connections of its own."""
    remotes = {}
    for provider in config.providers:
        if provider.passthrough:
            upstream = open_upstream(upstream_settings(provider))
            stack.push_async_callback(upstream.close)
            remotes[provider.name] = open_remote(RemoteModel(name=f"{provider.name}/*", model="*"), upstream)
    return PassThrough(remotes, catalog, metering)


def build_catalog(config: Config, models: Iterable[Adapter], routers: Iterable[Router] = ()) -> Catalog:
    """The names the models are offered under; an adapter's is that of its model, a colon and its own."""
    created_s = int(time.time())
    prices = price_table([*config.models, *config.routes])
    targets = []
    for model, adapter in zip(config.models, models, strict=True):
        targets.append(
            Target(model.name, adapter, aliases=model.aliases, created_s=created_s, price=prices.get(model.name))
        )
        for lora in model.engine.loras:
            name, *aliases = (f"{known}:{lora.name}" for known in (model.name, *model.aliases))
            targets.append(
                Target(
                    name,
                    adapter,
                    aliases=tuple(aliases),
                    created_s=created_s,
                    lora=lora.name,
                    parent=model.name,
                    price=prices.get(model.name),
                )
            )
    for route, router in zip(config.routes, routers, strict=True):
        known = {one.identity: prices.get(price_place(route.name, one.identity)) for one in router.targets}
        targets.append(
            Target(
                route.name,
                router,
                aliases=route.aliases,
                created_s=created_s,
                price=dearest(known.values()),
                prices=known,
            )
        )
    return Catalog(targets)


def _reporter(telemetry: Telemetry, access_log: AccessLog) -> Report:
    """Counts and logs what the protocol refuses before it is a request."""

    def report(error: GatewayError, request_id: str) -> None:
        telemetry.request("refused", "", error.status, 0.0)
        access_log.add({"status": error.status, "error": error.code, "request_id": request_id})

    return report


async def _load(pool: Pool) -> None:
    try:
        await pool.start()
    except Exception:
        log.exception("loading the models failed unexpectedly")


async def _end(loading: asyncio.Task[None]) -> None:
    loading.cancel()
    with suppress(asyncio.CancelledError):
        await loading
