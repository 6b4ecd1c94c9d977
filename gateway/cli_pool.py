"""`gateway pool`: what a running server has in memory, and what it is to have there, asked over HTTP."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway import command

if TYPE_CHECKING:
    from gateway.chat import Server

VERBS: Mapping[str, str] = {
    "status": "what is loaded, what sleeps, and how busy it is",
    "load": "bring a model into memory, and back into service",
    "wake": "the same as load",
    "unload": "take a model out of service when what runs is done",
    "sleep": "take an idle model out of memory until somebody asks for it",
    "pin": "keep a model in memory",
    "unpin": "let a model go again",
    "reset": "forget that a model failed, and try again",
}
HEADINGS = ("MODEL", "STATE", "MEMORY", "RUNNING", "QUEUED", "WAITING", "ETA", "TOKENS/S", "KV USED", "SESSIONS", "")
POLL_S = 0.5
UNDER_WAY = ("loading", "pulling", "restarting")


def add_commands(commands: Any, url: str) -> None:
    verbs = command.group(commands, "pool", "see and change what a running server has in memory")
    for verb, summary in VERBS.items():
        command_ = command.add(verbs, verb, _pool, summary)
        command_.set_defaults(verb=verb, model=None, force=False, wait=False)
        if verb != "status":
            command_.add_argument("model", metavar="MODEL", help="its name or an alias of it")
        if verb == "unload":
            command_.add_argument("--force", action="store_true", help="end what runs")
        if verb in ("load", "wake", "reset"):
            command_.add_argument("--wait", action="store_true", help="until it is loaded, or has failed")
        command_.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_remote_options(command_, url)


def _pool(options: argparse.Namespace) -> int:
    from gateway.chat import administration

    with administration(options.url, options.key) as server:
        if options.verb == "status":
            shown = server.ask("GET", "/pool", dict[str, Any])
            engines = shown["data"]
        else:
            path = f"/pool/{quote(options.model, safe='')}/{options.verb}" + ("?force=true" if options.force else "")
            shown = server.ask("POST", path, dict[str, Any])
            if options.wait:
                shown = _waited(server, shown)
            engines = [shown]
    if options.json:
        command.print_json(shown)
    else:
        command.print_table([HEADINGS, *map(_row, engines)])
        if "memory_bytes_max" in shown:
            print(f"{_size(shown['memory_bytes'])} of {_size(shown['memory_bytes_max'])} of memory are taken")
    return int(options.wait and engines[0]["state"] != "ready")


def _waited(server: Server, engine: dict[str, Any]) -> dict[str, Any]:
    """The engine once its load is over."""
    while engine["state"] in UNDER_WAY:
        time.sleep(POLL_S)
        engines = server.ask("GET", "/pool", dict[str, Any])["data"]
        engine = next(one for one in engines if one["id"] == engine["id"])
    return engine


def _row(engine: Mapping[str, Any]) -> tuple[str, ...]:
    state = engine["state"] + (f" {engine['progress']:.0%}" if engine["state"] in UNDER_WAY else "")
    cells = "" if engine["kv_cells_max"] is None else f"{engine['kv_cells_used'] / engine['kv_cells_max']:.0%}"
    remarks = [name for name in ("pinned", "held", "lazy") if engine[name]]
    if engine["reason"] and engine["state"] != "ready":
        remarks.append(engine["reason"])
    return (
        engine["id"],
        state,
        _size(engine["memory_bytes"]),
        str(engine["running"]),
        str(engine["queue_depth"]),
        str(engine["waiting"]),
        "" if engine["eta_s"] is None else f"{engine['eta_s']:.1f} s",
        "" if engine["tokens_per_s"] is None else f"{engine['tokens_per_s']:.0f}",
        cells,
        "" if engine["sessions"] is None else str(engine["sessions"]),
        "; ".join(remarks),
    )


def _size(size_bytes: int | None) -> str:
    from gateway.model_files import size

    return "" if size_bytes is None else size(size_bytes)
