"""The verbs of `gateway guardrails`, which ask a running server."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from gateway import command

HEADINGS = ("NAME", "KIND", "ACTION", "STAGES", "FOR", "CHECKED", "BLOCKED", "MASKED", "LOGGED", "FAILED", "SECONDS")


def add_commands(commands: Any, url: str) -> None:
    guardrails = commands.add_parser(
        "guardrails", help="what the guardrails of a running server did; try one out", description="Guardrails."
    )
    verbs = guardrails.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = command.add(verbs, "list", _list, "list them, with what each did since the server's start")
    test = command.add(verbs, "test", _test, "show what one would make of a text")
    test.add_argument("name", metavar="GUARDRAIL")
    test.add_argument("text")
    for verb in (listing, test):
        verb.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_remote_options(verb, url)


def _ask(options: argparse.Namespace, method: str, path: str, body: dict[str, object] | None = None) -> Any:
    from gateway.chat import administration

    with administration(options.url, options.key) as server:
        return server.ask(method, path, dict, body)


def _list(options: argparse.Namespace) -> int:
    found = _ask(options, "GET", "/guardrails")["data"]
    rows = [list(HEADINGS)]
    for one in found:
        to_whom = "all" if one["always"] else " ".join(one["models"]) or "who is given it"
        counts = [str(one[name]) for name in ("checked", "blocked", "masked", "logged", "failed")]
        stages, seconds = " ".join(one["stages"]), f"{one['seconds']:.3f}"
        rows.append([one["id"], one["kind"], one["action"], stages, to_whom, *counts, seconds])
    command.print_rows(rows, found, options)
    return 0


def _test(options: argparse.Namespace) -> int:
    path = f"/guardrails/{quote(options.name, safe='')}/test"
    verdict = _ask(options, "POST", path, {"text": options.text})
    if options.json:
        command.print_json(verdict)
        return 0
    print(verdict["outcome"])
    for one in verdict["findings"]:
        print(f"  {one['kind']}: characters {one['start']} to {one['end']}")
    if verdict["text"] is not None:
        print(verdict["text"])
    return 0
