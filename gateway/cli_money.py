"""The options of the commands about money, apart from what they do, so that `gateway --help` stays quick."""

from __future__ import annotations

import argparse
import re

from gateway.moments import moment_us

GROUPS = "hour,day,month,tenant,key,user,team,org,model,provider"


def add_limit_options(command: argparse.ArgumentParser, of: str) -> None:
    """The limits of one key, team or the like."""
    limits = command.add_argument_group(f"limits of this {of}, in place of the configured ones for every {of}")
    limits.add_argument("--rpm", type=_count, metavar="N", help="requests per minute")
    limits.add_argument("--tpm", type=_count, metavar="N", help="tokens per minute, input and output together")
    limits.add_argument("--concurrent", type=_count, metavar="N", help="requests at the same time")
    limits.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="N:UNIT:WINDOW",
        help="such as 1000:requests:1h, or 1000:requests:day for calendar days (repeatable)",
    )
    limits.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="USD[/PERIOD]",
        help="such as 5/day, or 5/24h for any 24 hours; repeatable",
    )
    limits.add_argument("--time-zone", metavar="ZONE", help="where its days begin, such as Europe/Berlin")
    limits.add_argument("--wallet", metavar="NAME", help="prepaid credit that pays for it")


def add_usage_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--by", default="model", metavar="NAMES", help=f"sum up by any of {GROUPS} (default: model)")
    command.add_argument("--since", type=date_us, default=0, metavar="DATE")
    command.add_argument("--until", type=date_us, default=2**62, metavar="DATE")
    command.add_argument("--tenant", metavar="NAME", help="only this tenant")
    command.add_argument("--model", metavar="NAME", help="only this model")
    command.add_argument("--provider", metavar="NAME", help="only this provider")
    for what in ("key", "user", "team", "org"):
        command.add_argument(f"--{what}-id", metavar="ID", help=f"only this {what}")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="every entry as CSV")
    form.add_argument("--jsonl", action="store_true", help="every entry as JSON lines")
    form.add_argument("--json", action="store_true", help="the sums as JSON")
    form.add_argument("--reprice", action="store_true", help="correct the entries to the prices configured now")


def add_wallet_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("verb", choices=("list", "open", "top-up", "refund", "transfer", "statement"))
    command.add_argument("name", nargs="?", help="the wallet")
    command.add_argument("usd", nargs="?", help="amount in US dollars")
    command.add_argument("--tenant", default="default", help="whom a new wallet belongs to")
    command.add_argument("--to", metavar="NAME", help="the wallet that a transfer goes to, by way of a running server")
    command.add_argument("--idempotency-key", metavar="TEXT", help="a change with the same key happens once")
    command.add_argument("--note", default="", help="kept with the change")
    command.add_argument("--json", action="store_true", help="machine-readable output")


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a whole number of at most 12 digits, not {text!r}")
    return int(text)


def date_us(text: str) -> int:
    """A date of an option, in microseconds."""
    try:
        return moment_us(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
