"""`gateway doctor`: whether this machine and this configuration can serve, line by line, with what to do about it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from adapters.asking import ask
from adapters.errors import AdapterError, in_full
from adapters.providers import PROVIDERS
from gateway import audit
from gateway.auth.key_text import PEPPER_NAME, PepperError, load_pepper
from gateway.auth.keyring import count_keys
from gateway.auth.keys import Keys
from gateway.canary import sing
from gateway.config import Config, ProviderConfig, is_loopback
from gateway.ledger.refused import refused_in
from gateway.ledger.store import Ledger
from gateway.library.machine import available_bytes
from gateway.limits.limiter import Counters, LocalCounters, steady_us
from gateway.limits.shared import SharedCounters
from gateway.limits.wallets import Wallets
from gateway.logs import escape
from gateway.model_files import describe, size
from gateway.prices import price_place, price_table
from gateway.remotes import upstream_settings
from gateway.served.stock import Stock
from gateway.state import migrate
from gateway.state.database import Database, DatabaseError, Statements
from gateway.state.outbox import holds_records
from gateway.state.postgres import Postgres
from gateway.state.redis import server_facts
from gateway.state.shared import SharedStateError
from gateway.state.sqlite import FILE_NAME, Sqlite, integrity_problems, wal_is_safe
from gateway.stores import open_database, open_shared

Status = Literal["ok", "warn", "fail"]

# In another process: a broken native library kills the one that uses it.
TRIAL = ("-m", "adapters.llama_cpp.trial")
LIBRARY_TIMEOUT_S = 60
FREE_BYTES_WARN = 1 << 30
FREE_BYTES_FAIL = 64 << 20
CLOCK_AHEAD_S_MAX = 1.0

T = TypeVar("T")


class Check(msgspec.Struct, frozen=True):
    """One line of the report."""

    status: Status
    name: str
    detail: str


def examine(config: Config, *, online: bool = False) -> Iterator[Check]:
    """All checks of a configuration that loads, one after the other as they finish.

    `online` asks each provider for its models as well; nothing else leaves the machine.
    """
    checks: tuple[Callable[[Config], Iterator[Check]], ...] = (
        _python,
        _library,
        _processors,
        _memory,
        _data_dir,
        _disk,
        _database,
        _shared,
        _models,
        _providers,
        _routes,
    )
    for check in checks:
        yield from check(config)
    for provider in config.providers if online else ():
        yield asyncio.run(_ask(provider, config))


def _python(_: Config) -> Iterator[Check]:
    yield Check("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")
    if wal_is_safe(sqlite3.sqlite_version_info):
        yield Check("ok", "sqlite", f"{sqlite3.sqlite_version}, write-ahead log")
    else:
        detail = "rollback journal, because this version can corrupt a write-ahead log; 3.51.3 or later commits faster"
        yield Check("warn", "sqlite", f"{sqlite3.sqlite_version}, {detail}")


def _library(_: Config) -> Iterator[Check]:
    command = [sys.executable, *TRIAL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIBRARY_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield Check("fail", "llama.cpp", f"the library did not compute within {LIBRARY_TIMEOUT_S} s")
        return
    if done.returncode == 0:
        yield Check("ok", "llama.cpp", "llama-cpp-python " + done.stdout.strip())
    elif done.returncode < 0 and done.stdout:
        reason = signal.strsignal(-done.returncode)
        yield Check(
            "fail",
            "llama.cpp",
            f"the library dies when it computes ({reason}): compile it anew for this CPU (make rebuild)",
        )
    else:
        reason = (done.stderr.strip().splitlines() or [f"it died with code {done.returncode}"])[-1]
        yield Check("fail", "llama.cpp", f"the library does not load: {reason}")


def _processors(_: Config) -> Iterator[Check]:
    usable = len(os.sched_getaffinity(0))
    quota = cpu_quota(Path("/sys/fs/cgroup"))
    detail = f"{usable} of {os.cpu_count()} cores usable"
    if quota is None or quota >= usable:
        yield Check("ok", "processors", detail + ("" if quota is None else f", quota {quota:g}"))
    else:
        advice = "set engine.threads to the quota: threads beyond it make every step wait"
        yield Check("warn", "processors", f"{detail}, but a cgroup quota of {quota:g}; {advice}")


def cpu_quota(root: Path) -> float | None:
    """The cores' worth of time the cgroup (version 2 or 1) at `root` allows; None without a limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def _memory(config: Config) -> Iterator[Check]:
    available = available_bytes()
    sizes = [Path(model.file).stat().st_size for model in config.models if Path(model.file).is_file()]
    detail = f"{size(available)} available, the models' files have {size(sum(sizes))}"
    if sum(sizes) > available:
        yield Check("warn", "memory", detail + "; they will be read from disk again and again")
    else:
        yield Check("ok", "memory", detail)


def _data_dir(config: Config) -> Iterator[Check]:
    path = Path(config.data_dir)
    if not path.exists():
        parent = _existing(path)
        writable = os.access(parent, os.W_OK | os.X_OK)
        detail = f"{path} will be made at the first start" if writable else f"{path} cannot be made in {parent}"
        yield Check("ok" if writable else "fail", "data directory", detail)
        return
    if not path.is_dir() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Check("fail", "data directory", f"{path} is not a directory this user can write to")
        return
    private = [path / PEPPER_NAME, path / FILE_NAME, path]
    exposed = [file for file in private if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077]
    # Inside a private directory nobody else reaches the files, whatever their own modes are.
    if path in exposed and len(exposed) > 1:
        yield Check("warn", "data directory", f"other users can open {exposed[0]}; run: chmod 700 {path}")
    else:
        yield Check("ok", "data directory", str(path))


def _disk(config: Config) -> Iterator[Check]:
    free = shutil.disk_usage(_existing(Path(config.data_dir))).free
    status: Status = "ok"
    if free < FREE_BYTES_WARN:
        status = "warn" if free >= FREE_BYTES_FAIL else "fail"
    yield Check(status, "disk", f"{size(free)} free for the data directory")


def _database(config: Config) -> Iterator[Check]:
    if config.state.database is None and not (Path(config.data_dir) / FILE_NAME).exists():
        yield Check("ok", "database", "will be made at the first start")
        return
    try:
        yield from asyncio.run(_examine_database(config))
    except (DatabaseError, PepperError, OSError) as error:
        yield Check("fail", "database", str(error))


async def _examine_database(config: Config) -> list[Check]:
    database = await open_database(config, serve=False)
    try:
        checks = await _examine_server(database) if isinstance(database, Postgres) else await _examine_file(database)
        if any(check.status == "fail" for check in checks):
            return checks
        pending = await migrate.pending(database, migrate.known())
        if pending:
            return [*checks, Check("ok", "migrations", f"the next start applies {', '.join(pending)}")]
        keys = Keys(database, load_pepper(Path(config.data_dir), config.auth.pepper))
        await keys.open()
        count = await count_keys(database)
        checks += [Check("ok", "migrations", "all applied"), Check("ok", "keys", f"{count} not revoked")]
        money = [await _examine_money(config, database), await _send_canary(config, database)]
        return [*checks, *money, await _examine_audit(database), *await _examine_served(config, database)]
    finally:
        await database.close()


class _Still:
    """A moment of a database as a database, to be read from while others go on writing."""

    def __init__(self, moment: Statements) -> None:
        self.query = moment.query
        self.execute = moment.execute
        self.insert = moment.insert

    def transaction(self, *, concurrent: bool = False) -> AbstractAsyncContextManager[Statements]:
        raise AssertionError("nobody writes into the past")

    async def run(self, work: Callable[[Statements], Coroutine[Any, Any, T]]) -> T:
        raise AssertionError("nobody writes into the past")

    async def close(self) -> None: ...


async def _examine_money(config: Config, database: Sqlite | Postgres) -> Check:
    """Every balance derived anew from the entries and transfers it sums up, all as of one moment."""
    if (folder := _refused(Path(config.data_dir))) is not None:
        return Check("fail", "money", f"the database refuses entries of the ledger; they are kept in {folder}")
    async with database.snapshot() as moment:
        problems = await Ledger(_Still(moment)).problems() + await Wallets(_Still(moment)).problems()
    if problems:
        return Check("fail", "money", f"{problems[0]} ({len(problems)} in all)")
    return Check("ok", "money", "every balance is the sum of its entries")


def _refused(data_dir: Path) -> Path | None:
    """Where entries lie that the database did not take."""
    folders = map(refused_in, data_dir.glob("outbox*"))
    return next((folder for folder in folders if holds_records(folder)), None)


async def _send_canary(config: Config, database: Database) -> Check:
    """A key whose budget is zero asks for an answer."""
    shared = await open_shared(config)
    try:
        counters: Counters = LocalCounters()
        if config.state.redis is not None:
            counters = SharedCounters(shared, config.state.replicas, steady_us, grace_s=0)
        problem = await sing(config.limits, counters, database)
    except SharedStateError as error:
        problem = str(error)
    finally:
        await shared.close()
    return Check("fail", "canary", problem) if problem else Check("ok", "canary", "a key without a budget is refused")


async def _examine_audit(database: Database) -> Check:
    chain = await audit.verify(database)
    if chain.problem is not None:
        return Check("fail", "audit log", chain.problem)
    return Check("ok", "audit log", f"{chain.count} entries, nothing changed or missing")


async def _examine_file(database: Sqlite) -> list[Check]:
    problems = await integrity_problems(database)
    if problems:
        return [Check("fail", "database", f"{FILE_NAME} is damaged: {problems[0]}")]
    return [Check("ok", "database", f"{FILE_NAME} is sound")]


async def _examine_server(database: Postgres) -> list[Check]:
    facts = await database.facts()
    return [Check("ok", "database", f"PostgreSQL {facts.version}"), _clock("database clock", facts.clock_ahead_s)]


def _clock(name: str, ahead_s: float) -> Check:
    if abs(ahead_s) <= CLOCK_AHEAD_S_MAX:
        return Check("ok", name, f"{ahead_s:+.3f} s from this machine's")
    return Check("warn", name, f"{ahead_s:+.1f} s from this machine's: expiry and budget periods disagree; run NTP")


def _shared(config: Config) -> Iterator[Check]:
    if config.state.redis is None:
        return
    try:
        facts = asyncio.run(server_facts(config.state.redis.reveal(), timeout_s=config.state.redis_timeout_s))
    except SharedStateError as error:
        yield Check("fail", "redis", str(error))
        return
    if problem := facts.problem():
        yield Check("fail", "redis", problem)
    else:
        yield Check("ok", "redis", f"{facts.version}, keeps every key")
    yield _clock("redis clock", facts.clock_ahead_s)


async def _examine_served(config: Config, database: Database) -> list[Check]:
    """What was made at run time: whether it fits the configuration, and its secrets can be read."""
    made = [item for item in (await Stock(database, config).read()).items if item.row is not None]
    found = [Check("ok", "made at run time", f"{len(made)} providers, routes and prices")] if made else []
    for item in made:
        if item.problem is not None:
            found.append(Check("warn", f"{item.kind} {item.name}", f"not served: {item.problem.message}"))
        elif not item.open:
            found.append(Check("fail", f"{item.kind} {item.name}", "its secret cannot be read with the keys here"))
    return found


def _models(config: Config) -> Iterator[Check]:
    for model in config.models:
        file = describe(model)
        if model.pull is not None:
            yield Check("ok", f"model {model.name}", f"{model.pull}, pulled when it is needed")
        elif file.problem:
            yield Check("fail", f"model {model.name}", f"{model.file}: {file.problem}")
        else:
            kind = " ".join(filter(None, (file.architecture, file.quantisation)))
            yield Check("ok", f"model {model.name}", f"{model.file}, {escape(kind)}, {size(file.size_bytes or 0)}")


def _providers(config: Config) -> Iterator[Check]:
    """Each provider by what the configuration says of it; nothing is sent there."""
    for provider in config.providers:
        name = f"provider {provider.name}"
        problems = list(_provider_problems(provider))
        if problems:
            yield from (Check(status, name, detail) for status, detail in problems)
        else:
            yield Check("ok", name, f"{provider.kind} at {provider.base_url or 'its own address'}")


def _provider_problems(provider: ProviderConfig) -> Iterator[tuple[Status, str]]:
    for path in (provider.api_key_file, provider.google_file, provider.ca_file):
        if path is not None and not os.access(path, os.R_OK):
            yield "fail", f"{path} cannot be read"
    for path in (provider.api_key_file, provider.google_file):
        if path is not None and os.access(path, os.R_OK) and stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
            yield "warn", f"other users can read {path}; run: chmod 600 {path}"
    parts = urlsplit(provider.base_url or "")
    if parts.scheme == "http" and provider.api_key is not None and not is_loopback(parts.hostname or ""):
        yield "warn", f"its key goes unencrypted to {parts.hostname}"
    last = "/" + parts.path.rstrip("/").rpartition("/")[2]
    if last != "/" and any(path.startswith(f"{last}/") for path in PROVIDERS[provider.kind].paths.values()):
        yield "warn", f"its base_url should end before {last}, which is added for a provider of kind {provider.kind}"
    if not provider.verify:
        yield "warn", "its certificate is not verified, so that anybody on the way there can read its key"


async def _ask(provider: ProviderConfig, config: Config) -> Check:
    name = f"provider {provider.name}"
    try:
        listed = await ask(upstream_settings(provider))
    except AdapterError as error:
        return Check("fail", name, in_full(error))
    if listed is None:
        return Check("ok", name, "it has no list of models to ask for")
    answers = "it answers" + (", and takes its key" if PROVIDERS[provider.kind].key_needed or provider.api_key else "")
    targets = [one for route in config.routes for group in route.groups for one in group]
    wanted = dict.fromkeys(one.model for one in targets if one.provider == provider.name)
    for model in wanted if listed else ():
        if model not in listed:
            near = get_close_matches(model, listed, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return Check("warn", name, f"{answers}, but lists no model {model}{hint}")
    return Check("ok", name, answers)


def _routes(config: Config) -> Iterator[Check]:
    prices = price_table([*config.models, *config.routes], config.providers)
    for route in config.routes:
        unpriced = [
            f"{one.model} of {one.provider}"
            for group in route.groups
            for one in group
            if price_place(route.name, one.identity) not in prices
        ]
        if unpriced:
            why = f"without a price for {', '.join(unpriced)} no key with a budget may use it"
            yield Check("warn", f"route {route.name}", f"{route.ways}; {why}")
        else:
            yield Check("ok", f"route {route.name}", route.ways)


def _existing(path: Path) -> Path:
    """The nearest directory on the way up that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
