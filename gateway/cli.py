"""The `gateway` command. Each verb imports what it needs when it runs, so that `gateway --help` is quick."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway import (
    cli_audit,
    cli_bench,
    cli_datasets,
    cli_guardrails,
    cli_keys,
    cli_models,
    cli_money,
    cli_people,
    cli_pool,
    cli_pull,
    cli_served,
    cli_sessions,
    cli_upkeep,
    command,
)

if TYPE_CHECKING:
    from gateway.bench import BenchOptions

DEFAULT_URL = "http://127.0.0.1:8000"


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
    from gateway.auth.key_text import PepperError
    from gateway.chat import ChatError
    from gateway.config import ConfigError
    from gateway.state.database import DatabaseError
    from gateway.state.shared import SharedStateError
    from gateway.usage import UsageError

    ours = (command.CommandError, ConfigError, DatabaseError, SharedStateError, PepperError, ChatError, UsageError)
    return (*ours, AdapterError)


def parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="gateway",
        description="OpenAI-compatible inference gateway.",
        epilog="Every setting is also an environment variable, such as GATEWAY_PORT or GATEWAY_LOG__LEVEL.",
    )
    parser.add_argument("--version", action="version", version=f"gateway {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    check = command.add(commands, "check", _check, "validate the configuration and print a summary")
    doctor = command.add(commands, "doctor", _doctor, "check this machine, the data directory and the configuration")
    doctor.add_argument(
        "--online", action="store_true", help="ask each provider whether it takes its key and has the models of routes"
    )
    for verb in (check, doctor):
        command.add_config_options(verb)
    cli_keys.add_commands(commands)
    cli_people.add_commands(commands)
    cli_served.add_commands(commands)
    cli_guardrails.add_commands(commands, DEFAULT_URL)
    _add_money(commands)
    cli_upkeep.add_commands(commands)
    cli_audit.add_commands(commands)
    _add_models(commands)
    cli_pull.add_commands(commands)
    cli_pool.add_commands(commands, DEFAULT_URL)
    cli_datasets.add_commands(commands, DEFAULT_URL)
    _add_sessions(commands)
    _add_chat(commands)
    _add_bench(commands)
    return parser


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("inference-gateway")


def _add_serve(commands: Any) -> None:
    serve = command.add(commands, "serve", _serve, "serve models to OpenAI clients")
    serve.add_argument(
        "models", nargs="*", metavar="MODEL.gguf", help="served under its file name; replaces the models of the config"
    )
    command.add_config_options(serve)
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    serve.add_argument(
        "--workers", type=int, metavar="N", help="processes that answer requests; above 1 with PostgreSQL and Redis"
    )
    serve.add_argument("--no-auth", action="store_true", help="let everybody in; only on a loopback address")


def _add_money(commands: Any) -> None:
    summing = command.add(commands, "usage", _usage, "what was used and what it cost, from the ledger")
    cli_money.add_usage_options(summing)
    wallets = command.add(
        commands, "wallets", _wallets, "prepaid credit: list, open, top up, refund, transfer, statement"
    )
    cli_money.add_wallet_options(wallets)
    command.add_remote_options(wallets, DEFAULT_URL)
    for verb in (summing, wallets):
        command.add_config_options(verb)


def _add_models(commands: Any) -> None:
    models = command.add(commands, "models", _models, "list the configured models, or those of a running server")
    models.add_argument("--json", action="store_true", help="machine-readable output")
    command.add_config_options(models)
    command.add_remote_options(models, None)
    cli_models.add_verbs(models)


def _add_sessions(commands: Any) -> None:
    for verb in cli_sessions.add_verbs(commands):
        verb.set_defaults(run=_sessions)
        command.add_remote_options(verb, DEFAULT_URL)


def _add_chat(commands: Any) -> None:
    chat = command.add(commands, "chat", _chat, "talk to a model of a running server; piped input is answered once")
    chat.add_argument("model", nargs="?", metavar="MODEL", help="default: the server's first model")
    chat.add_argument("--system", metavar="TEXT", help="instructions for the model")
    command.add_remote_options(chat, DEFAULT_URL)


def _add_bench(commands: Any) -> None:
    bench = command.add(commands, "bench", _bench, "measure the speed of any OpenAI-compatible server, or compare two")
    bench.add_argument("server", nargs="?", metavar="URL", help="the same as --url")
    command.add_remote_options(bench, DEFAULT_URL)
    cli_bench.add_bench_options(bench)


def _serve(options: argparse.Namespace) -> int:
    config = command.load(options, options.models)
    command.require_models(config)
    from gateway import app

    return app.serve(config)


def _check(options: argparse.Namespace) -> int:
    from gateway import engines
    from gateway.model_files import describe

    config = command.load(options)
    command.require_models(config)
    for model in config.models:
        if (problem := describe(model).problem) is not None:
            raise command.CommandError(f"model {model.name}: {model.file}: {problem}")
    print(f"listen on   {config.server.host}:{config.server.port}")
    print(f"keys        {'required' if config.auth.enabled else 'not required'}")
    print(f"data        {config.data_dir}")
    engines.scripts(config)
    print(f"sessions    {'encrypted' if engines.encryption_key(config.sessions) else 'not encrypted'}")
    for model in config.models:
        names = " ".join((model.name, *model.aliases))
        print(f"model       {names}: {model.file or model.pull}")
    for route in config.routes:
        names = " ".join((route.name, *route.aliases))
        print(f"route       {names}: {route.ways}")
    print("The configuration is valid.")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from gateway import doctor
    from gateway.config import ConfigError

    try:
        config = command.load(options)
    except ConfigError as error:
        print(f"fail  config: {error}")
        return 1
    print("ok    config: valid")
    failed = False
    for check in doctor.examine(config, online=options.online):
        failed = failed or check.status == "fail"
        print(f"{check.status:<6}{check.name}: {check.detail}", flush=True)
    return int(failed)


def _usage(options: argparse.Namespace) -> int:
    from gateway import usage

    config = command.load(options)
    command.print_table(command.with_database(options, lambda database: usage.usage(database, options, config)))
    return 0


def _wallets(options: argparse.Namespace) -> int:
    from gateway import usage

    if options.verb == "transfer":
        # Only the process that serves knows what running requests hold of a wallet.
        print(usage.transfer(options))
        return 0
    head, *rows = command.with_database(options, lambda database: usage.wallets(database, options))
    if options.json:
        names = [name.lower() for name in head]
        command.print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        command.print_table([head, *rows])
    return 0


def _models(options: argparse.Namespace) -> int:
    from gateway import chat, model_files

    if options.url:
        with chat.Server(options.url, options.key) as server:
            names = server.models()
        if options.json:
            command.print_json(names)
        else:
            print("\n".join(map(chat.escape, names)))
        return 0
    config = command.load(options)
    files = [model_files.describe(model) for model in config.models]
    if options.json:
        command.print_json(files)
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
    for route in config.routes:
        for target in (one for group in route.groups for one in group):
            context = str(target.context_tokens or "")
            rows.append((route.name, "", "", "", context, "", f"{target.model} of {target.provider}"))
    command.print_table(rows)
    return int(any(file.problem for file in files))


def _sessions(options: argparse.Namespace) -> int:
    from gateway import chat, kept_sessions

    with chat.Server(options.url, options.key) as server:
        desk = kept_sessions.Desk(server, options.model, options.tenant)
        found = desk.carry_out(options.verb, options.name, options.new_id)
    if options.json:
        command.print_json(found)
    else:
        command.print_table(kept_sessions.table(found if isinstance(found, list) else [found]))
    return 0


def _chat(options: argparse.Namespace) -> int:
    from gateway import chat

    with contextlib.suppress(ImportError):
        # Its mere presence gives `input` line editing and a history.
        import readline  # noqa: F401
    with chat.Server(options.url, options.key) as server:
        return chat.chat(server, options.model, options.system, sys.stdin, sys.stdout, chat.read_turn)


def _bench(options: argparse.Namespace) -> int:
    from gateway import bench, bench_report

    settings = _bench_options(options)
    try:
        if options.compare:
            other = bench.Endpoint(
                url=options.compare,
                model=options.compare_model or settings.endpoint.model,
                api_key=options.compare_key,
            )
            result: bench_report.BenchReport | bench_report.BenchComparison = asyncio.run(
                bench.compare(settings, other)
            )
        else:
            result = asyncio.run(bench.run(settings))
    except (OSError, ValueError) as error:
        raise command.CommandError(str(error)) from None
    if options.json:
        command.print_json(result)
    else:
        print(bench_report.render(result))
    reports = (result,) if isinstance(result, bench_report.BenchReport) else result.first + result.second
    return 0 if all(report.succeeded for report in reports) else 1


def _bench_options(options: argparse.Namespace) -> BenchOptions:
    from gateway import bench, chat

    url, model = options.server or options.url, options.model
    if model is None:
        with chat.Server(url, options.key) as server:
            model = chat.first_model(server)
    endpoint = bench.Endpoint(url=url, model=model, api_key=options.key)
    names = set(bench.BenchOptions.__struct_fields__) - {"endpoint"}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    return bench.BenchOptions(endpoint=endpoint, **given)
