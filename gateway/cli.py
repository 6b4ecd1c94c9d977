"""The `gateway` command. Each verb imports what it needs when it runs, so that `gateway --help` is quick."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import cli_audit, cli_bench, cli_money, cli_sessions, upkeep

if TYPE_CHECKING:
    from gateway.auth.keys import Key, Keys
    from gateway.bench import BenchOptions
    from gateway.config import Config
    from gateway.state.database import Database

DEFAULT_URL = "http://127.0.0.1:8000"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

T = TypeVar("T")


class CommandError(Exception):
    """What the person asked for cannot be done; the message is all they need."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone, as in `gateway keys list | head`; the flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not isinstance(error, _expected_errors()):
            raise
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return code


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that say to a person what is wrong; everything else is a bug and shows its traceback."""
    from adapters.errors import AdapterError
    from gateway.auth.keys import PepperError
    from gateway.chat import ChatError
    from gateway.config import ConfigError
    from gateway.state.database import DatabaseError
    from gateway.state.shared import SharedStateError
    from gateway.usage import UsageError

    ours = (CommandError, ConfigError, DatabaseError, SharedStateError, PepperError, ChatError, UsageError)
    return (*ours, AdapterError)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway",
        description="OpenAI-compatible inference gateway.",
        epilog="Every setting is also an environment variable, such as GATEWAY_PORT or GATEWAY_LOG__LEVEL.",
    )
    parser.add_argument("--version", action="version", version=f"gateway {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    check = _add(commands, "check", _check, "validate the configuration and print a summary")
    doctor = _add(commands, "doctor", _doctor, "check this machine, the data directory and the configuration")
    for command in (check, doctor):
        _add_config_options(command)
    _add_keys(commands)
    _add_money(commands)
    upkeep.add_commands(commands, _add, _add_config_options)
    cli_audit.add_commands(commands, _add, _add_config_options)
    _add_models(commands)
    _add_sessions(commands)
    _add_chat(commands)
    _add_bench(commands)
    return parser


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("inference-gateway")


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:]
    )
    command.set_defaults(run=run)
    return command


def _add_config_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: ./config.yaml if there is one)"
    )
    command.add_argument("--data-dir", metavar="DIR", help="where keys and other state are kept")
    command.set_defaults(load=_load)


def _add_serve(commands: Any) -> None:
    serve = _add(commands, "serve", _serve, "serve models to OpenAI clients")
    serve.add_argument(
        "models", nargs="*", metavar="MODEL.gguf", help="served under its file name; replaces the models of the config"
    )
    _add_config_options(serve)
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    serve.add_argument("--no-auth", action="store_true", help="let everybody in; only on a loopback address")


def _add_money(commands: Any) -> None:
    summing = _add(commands, "usage", _usage, "what was used and what it cost, from the ledger")
    cli_money.add_usage_options(summing)
    wallets = _add(commands, "wallets", _wallets, "prepaid credit: list, open, top up, refund, statement")
    cli_money.add_wallet_options(wallets)
    for command in (summing, wallets):
        _add_config_options(command)


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="create, list and revoke API keys", description="Manage API keys.")
    verbs = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = _add(verbs, "create", _keys_create, "create a key and print it, once")
    create.add_argument("name", help="what the key is for")
    create.add_argument("--tenant", help="share everything with the other keys of this tenant (default: its own)")
    create.add_argument("--admin", action="store_true", help="the key may administrate")
    cli_money.add_limit_options(create)
    create.add_argument("--expires", type=_expiry_us, metavar="WHEN", help="after 12h, 30d or 4w, or at 2030-12-31")
    listing = _add(verbs, "list", _keys_list, "list all keys")
    revoke = _add(verbs, "revoke", _keys_revoke, "withdraw a key; a running server follows within five seconds")
    revoke.add_argument("id", help="the key's id, or the key itself")
    revoke.add_argument("--reason", default="", help="kept with the key")
    for command in (create, listing, revoke):
        command.add_argument("--json", action="store_true", help="machine-readable output")
        _add_config_options(command)


def _add_remote_options(command: argparse.ArgumentParser, url: str | None) -> None:
    fallback = f", else {url}" if url else ""
    command.add_argument(
        "--url",
        default=os.environ.get("GATEWAY_URL") or url,
        help=f"the server, with or without /v1 (default: GATEWAY_URL{fallback})",
    )
    command.add_argument(
        "--key", "--api-key", default=os.environ.get("GATEWAY_API_KEY"), help="API key (default: GATEWAY_API_KEY)"
    )


def _add_models(commands: Any) -> None:
    models = _add(commands, "models", _models, "list the configured models, or those of a running server")
    models.add_argument("--json", action="store_true", help="machine-readable output")
    _add_config_options(models)
    _add_remote_options(models, None)


def _add_sessions(commands: Any) -> None:
    for command in cli_sessions.add_verbs(commands):
        command.set_defaults(run=_sessions)
        _add_remote_options(command, DEFAULT_URL)


def _add_chat(commands: Any) -> None:
    chat = _add(commands, "chat", _chat, "talk to a model of a running server; piped input is answered once")
    chat.add_argument("model", nargs="?", metavar="MODEL", help="default: the server's first model")
    chat.add_argument("--system", metavar="TEXT", help="instructions for the model")
    _add_remote_options(chat, DEFAULT_URL)


def _add_bench(commands: Any) -> None:
    bench = _add(commands, "bench", _bench, "measure the speed of any OpenAI-compatible server, or compare two")
    _add_remote_options(bench, DEFAULT_URL)
    cli_bench.add_bench_options(bench)


def _expiry_us(text: str) -> int:
    """A span from now such as `30d`, or a date, as microseconds since 1970."""
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return time.time_ns() // 1000 + int(match[1]) * _UNITS_S[match[2]] * 1_000_000
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            "expected a span such as 12h, 30d or 4w, or a date such as 2030-12-31"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    if moment.timestamp() <= time.time():
        raise argparse.ArgumentTypeError("that moment has passed")
    return int(moment.timestamp() * 1_000_000)


def _load(options: argparse.Namespace, models: Sequence[str] = ()) -> Config:
    """The configuration as the options, the environment and the file say."""
    from gateway import config

    path: Path | None = options.config
    if path is None and not os.environ.get("GATEWAY_CONFIG") and Path("config.yaml").is_file():
        path = Path("config.yaml")
    given = {
        "server.host": getattr(options, "host", None),
        "server.port": getattr(options, "port", None),
        "data_dir": options.data_dir,
        "auth.enabled": False if getattr(options, "no_auth", False) else None,
        "models": [{"name": config.name_of_file(model), "path": model} for model in models] or None,
    }
    return config.load(path, os.environ, {name: value for name, value in given.items() if value is not None})


def _require_models(config: Config) -> None:
    for model in config.models:
        if not Path(model.path).is_file():
            raise CommandError(f"model {model.name}: there is no file {model.path}")


def _serve(options: argparse.Namespace) -> int:
    config = _load(options, options.models)
    _require_models(config)
    from gateway import app

    return app.serve(config)


def _check(options: argparse.Namespace) -> int:
    from gateway import engines

    config = _load(options)
    _require_models(config)
    print(f"listen on   {config.server.host}:{config.server.port}")
    print(f"keys        {'required' if config.auth.enabled else 'not required'}")
    print(f"data        {config.data_dir}")
    print(f"sessions    {'encrypted' if engines.encryption_key(config.sessions) else 'not encrypted'}")
    for model in config.models:
        names = " ".join((model.name, *model.aliases))
        print(f"model       {names}: {model.path}")
    print("The configuration is valid.")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from gateway import doctor
    from gateway.config import ConfigError

    try:
        config = _load(options)
    except ConfigError as error:
        print(f"fail  config: {error}")
        return 1
    print("ok    config: valid")
    failed = False
    for check in doctor.examine(config):
        failed = failed or check.status == "fail"
        print(f"{check.status:<6}{check.name}: {check.detail}", flush=True)
    return int(failed)


def _with_keys(options: argparse.Namespace, work: Callable[[Keys, Database], Awaitable[T]]) -> T:
    """Do `work` on the table of keys, beside a running server if there is one."""
    from gateway.auth.keys import Keys, load_pepper
    from gateway.stores import open_shared

    config = _load(options)

    async def run(database: Database) -> T:
        shared = await open_shared(config)
        try:
            keys = Keys(database, load_pepper(Path(config.data_dir), config.auth.pepper), shared=shared)
            await keys.open()
            return await work(keys, database)
        finally:
            await shared.close()

    return _with_database(options, run)


def _with_database(options: argparse.Namespace, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do `work` on the database, beside a running server if there is one."""
    from gateway.state.migrate import known, migrate
    from gateway.stores import with_database

    async def run(database: Database) -> T:
        await migrate(database, known())
        return await work(database)

    return with_database(_load(options), run)


def _usage(options: argparse.Namespace) -> int:
    from gateway import usage

    models = _load(options).models
    _print_table(_with_database(options, lambda database: usage.usage(database, options, models)))
    return 0


def _wallets(options: argparse.Namespace) -> int:
    import msgspec

    from gateway import usage

    head, *rows = _with_database(options, lambda database: usage.wallets(database, options))
    if options.json:
        names = [name.lower() for name in head]
        print(msgspec.json.encode([dict(zip(names, row, strict=True)) for row in rows]).decode())
    else:
        _print_table([head, *rows])
    return 0


def _keys_create(options: argparse.Namespace) -> int:
    import msgspec

    from gateway import audit, usage
    from gateway.auth.keys import InvalidName

    async def create(keys: Keys, database: Database) -> tuple[Key, str]:
        key, text = await keys.create(
            options.name, options.tenant, admin=options.admin, expires_us=options.expires, limits=limits
        )
        await audit.note(database, "key.create", key.id, name=key.name, tenant=key.tenant, admin=key.admin)
        return key, text

    try:
        limits = usage.limits_of(options)
        key, text = _with_keys(options, create)
    except InvalidName as error:
        raise CommandError(str(error)) from None
    if options.json:
        print(msgspec.json.encode(msgspec.to_builtins(key) | {"key": text}).decode())
    else:
        print(text)
        print(f"Key {key.id} of tenant {key.tenant}. It is shown only now; keep it safe.", file=sys.stderr)
    return 0


def _keys_list(options: argparse.Namespace) -> int:
    import msgspec

    keys: list[Key] = _with_keys(options, lambda keys, _: keys.list())
    if options.json:
        print(msgspec.json.encode(keys).decode())
        return 0
    now_us = time.time_ns() // 1000
    rows = [["ID", "NAME", "TENANT", "ADMIN", "STATUS", "CREATED", "EXPIRES", "LAST USED"]]
    for key in keys:
        times = [_moment(time_us) for time_us in (key.created_us, key.expires_us, key.last_used_us)]
        rows.append([key.id, key.name, key.tenant, "yes" if key.admin else "", key.status(now_us), *times])
    _print_table(rows)
    return 0


def _keys_revoke(options: argparse.Namespace) -> int:
    from gateway import audit
    from gateway.auth.keys import key_id

    identity = key_id(options.id) or options.id

    async def revoke(keys: Keys, database: Database) -> bool:
        revoked = await keys.revoke(identity, options.reason)
        if revoked:
            await audit.note(database, "key.revoke", identity, reason=options.reason)
        return revoked

    if not _with_keys(options, revoke):
        raise CommandError(f"there is no active key {identity}")
    print(f'{{"id":"{identity}","revoked":true}}' if options.json else f"Key {identity} is revoked.")
    return 0


def _moment(time_us: int | None) -> str:
    if time_us is None:
        return ""
    return datetime.datetime.fromtimestamp(time_us / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from gateway.logs import escape

    rows = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _models(options: argparse.Namespace) -> int:
    import msgspec

    from gateway import chat, model_files

    if options.url:
        with chat.Server(options.url, options.key) as server:
            names = server.models()
        print(msgspec.json.encode(names).decode() if options.json else "\n".join(map(chat.escape, names)))
        return 0
    files = [model_files.describe(model) for model in _load(options).models]
    if options.json:
        print(msgspec.json.encode(files).decode())
        return 0
    rows = [("NAME", "ARCHITECTURE", "PARAMETERS", "QUANTISATION", "CONTEXT", "SIZE", "FILE")]
    for file in files:
        facts = (
            file.architecture or "",
            "" if file.parameters is None else model_files.count(file.parameters),
            file.quantisation or "",
            str(file.context_tokens or ""),
            "" if file.size_bytes is None else model_files.size(file.size_bytes),
        )
        rows.append((file.name, *facts, file.path + (f" ({file.problem})" if file.problem else "")))
    _print_table(rows)
    return int(any(file.problem for file in files))


def _sessions(options: argparse.Namespace) -> int:
    import msgspec

    from gateway import chat, kept_sessions

    with chat.Server(options.url, options.key) as server:
        desk = kept_sessions.Desk(server, options.model, options.tenant)
        found = desk.carry_out(options.verb, options.name, options.new_id)
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        _print_table(kept_sessions.table(found if isinstance(found, list) else [found]))
    return 0


def _chat(options: argparse.Namespace) -> int:
    from gateway import chat

    with contextlib.suppress(ImportError):
        # Its mere presence gives `input` line editing and a history.
        import readline  # noqa: F401
    with chat.Server(options.url, options.key) as server:
        return chat.chat(server, options.model, options.system, sys.stdin, sys.stdout, chat.read_turn)


def _bench(options: argparse.Namespace) -> int:
    import msgspec

    from gateway import bench

    settings = _bench_options(options)
    try:
        if options.compare:
            other = bench.Endpoint(
                url=options.compare,
                model=options.compare_model or settings.endpoint.model,
                api_key=options.compare_key,
            )
            result: bench.BenchReport | bench.BenchComparison = asyncio.run(bench.compare(settings, other))
        else:
            result = asyncio.run(bench.run(settings))
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from None
    print(msgspec.json.encode(result).decode() if options.json else bench.render(result))
    reports = (result,) if isinstance(result, bench.BenchReport) else result.first + result.second
    return 0 if all(report.succeeded for report in reports) else 1


def _bench_options(options: argparse.Namespace) -> BenchOptions:
    from gateway import bench, chat

    model = options.model
    if model is None:
        with chat.Server(options.url, options.key) as server:
            model = chat.first_model(server)
    endpoint = bench.Endpoint(url=options.url, model=model, api_key=options.key)
    names = set(bench.BenchOptions.__struct_fields__) - {"endpoint"}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    return bench.BenchOptions(endpoint=endpoint, **given)
