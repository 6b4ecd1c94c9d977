"""The options of `gateway sessions`, apart from what it does, so that `gateway --help` stays quick."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

VERBS: Mapping[str, str] = {
    "list": "list them",
    "show": "show one",
    "pin": "never drop one to make room",
    "unpin": "let one be dropped again",
    "reset": "forget the history of one, keep its name",
    "delete": "erase one everywhere",
    "fork": "copy one under another key",
}


def add_verbs(commands: Any) -> Iterator[argparse.ArgumentParser]:
    """Each verb's command, which leaves its `verb`, `name` and `new_id` in the options."""
    sessions = commands.add_parser(
        "sessions",
        help="list and change the kept conversations of a running server",
        description="The conversations whose computed history a running server keeps.",
    )
    verbs = sessions.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb, summary in VERBS.items():
        command = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:])
        command.set_defaults(verb=verb, name="", new_id=None)
        if verb != "list":
            command.add_argument("name", metavar="SESSION", help="its key or its id")
        if verb == "fork":
            command.add_argument("--new-id", metavar="KEY", help="key of the copy (default: made up)")
        command.add_argument("--model", help="where to look (default: in all models)")
        command.add_argument("--tenant", help="whose, * for everybody's; needs an admin key (default: your own)")
        command.add_argument("--json", action="store_true", help="machine-readable output")
        yield command
