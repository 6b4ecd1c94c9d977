"""`gateway datasets`: requests made of the rows of files, and what they would cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from gateway import command
from gateway.cli_links import with_imports

if TYPE_CHECKING:
    from gateway.library.files import File
    from gateway.library.importing import Imports
    from gateway.library.requests import Wish
    from gateway.state.database import Database


def add_commands(commands: Any, url: str) -> None:
    datasets = commands.add_parser("datasets", help="requests made of the rows of files, and what they would cost")
    verbs = datasets.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = command.add(verbs, "list", _list, "what there is")
    listing.add_argument("words", nargs="*", metavar="WORD", help="only those with words that begin so")
    making = command.add(verbs, "make", _make, "make a dataset of JSONL, CSV or Parquet files; print where it is")
    making.add_argument("paths", nargs="+", type=Path, metavar="FILE")
    add_wish_options(making)
    showing = command.add(verbs, "show", _show, "everything about one, also which rows are no requests")
    deleting = command.add(verbs, "delete", _delete, "delete one; the files that it was made of stay")
    for verb in (showing, deleting):
        verb.add_argument("id")
    for verb in (listing, making, showing, deleting):
        verb.add_argument("--json", action="store_true", help="machine-readable output")
        command.add_config_options(verb)
    forecast = command.add(verbs, "forecast", _forecast, "how many tokens it has and what it may cost; asks a server")
    forecast.add_argument("id")
    forecast.add_argument("--model", help="which is to answer (default: the one that its requests name)")
    forecast.add_argument("--output-tokens", type=int, metavar="N", help="of an answer that is not bounded")
    forecast.add_argument("--json", action="store_true", help="machine-readable output")
    command.add_remote_options(forecast, url)


def add_wish_options(verb: argparse.ArgumentParser) -> None:
    """What a dataset is to be made of rows."""
    group = verb.add_argument_group("datasets")
    group.add_argument("--model", help="which is to answer; rows that are requests already name their own")
    group.add_argument("--column", help="where the question is (default: messages, prompt, question or text)")
    group.add_argument("--limit", type=int, metavar="N", help="take so many rows at most")
    group.add_argument("--request", choices=("chat", "completion", "embedding"), default="chat")
    group.add_argument("--max-tokens", type=int, metavar="N", help="the longest that an answer may be")


def wish_of(options: argparse.Namespace) -> Wish:
    from gateway.library.requests import ROWS_MAX, Wish

    limit = ROWS_MAX if options.limit is None else options.limit
    if not 1 <= limit <= ROWS_MAX:
        raise command.CommandError(f"--limit: expected 1 to {ROWS_MAX}")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise command.CommandError("--max-tokens: expected at least 1")
    return Wish(
        request=options.request,
        model=options.model,
        column=options.column,
        limit=limit,
        max_tokens=options.max_tokens,
    )


def make(options: argparse.Namespace, paths: Sequence[Path], name: str, source: str) -> int:
    """Make a dataset of files beside a running server if there is one, and say what came of it."""
    wish = wish_of(options)

    async def work(imports: Imports, database: Database) -> File:
        from gateway import audit
        from gateway.library.datasets import Datasets

        file = await Datasets(imports).make(paths, name, source, wish)
        await audit.note(database, "dataset.make", file.id, source=source)
        return await imports.wait(file.id)

    file = with_imports(options, work)
    if getattr(options, "json", False):
        command.print_json(file)
    elif file.dataset is not None:
        for problem in file.dataset.problems:
            print(f"{problem.file}, line {problem.line}: {problem.reason}", file=sys.stderr)
        more = "" if file.dataset.whole else "; there are more rows than that"
        print(f"{file.id}: requests: {file.dataset.rows}, rows left out: {file.dataset.skipped}{more}", file=sys.stderr)
        print(file.path)
    if file.status != "ready":
        print(f"{name}: {file.status}: {file.reason}", file=sys.stderr)
    return int(file.status != "ready")


def _make(options: argparse.Namespace) -> int:
    from gateway.library.datasets import name_of

    source = ", ".join(str(path.absolute()) for path in options.paths[:3])
    return make(options, options.paths, name_of(options.paths), source)


def _list(options: argparse.Namespace) -> int:
    from gateway import model_files

    async def work(imports: Imports, database: Database) -> list[File]:
        from gateway.library.datasets import MADE
        from gateway.library.files import Wanted

        wanted = Wanted(text=" ".join(options.words) or None, kind="dataset", how=MADE)
        return (await imports.files.page(wanted, 1000))[0]

    files = with_imports(options, work)
    rows = [("ID", "NAME", "STATUS", "REQUESTS", "SKIPPED", "SIZE", "SOURCE")]
    for file in files:
        counts = ("", "") if file.dataset is None else (str(file.dataset.rows), str(file.dataset.skipped))
        rows.append((file.id, file.name, file.status, *counts, model_files.size(file.size_bytes), file.source))
    command.print_rows(rows, files, options)
    return 0


def _show(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> File:
        from gateway.library.datasets import Datasets

        return await Datasets(imports).get(options.id)

    command.print_record(with_imports(options, work), options)
    return 0


def _delete(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> None:
        from gateway import audit
        from gateway.library.datasets import Datasets

        file = await Datasets(imports).get(options.id)
        await imports.delete(file.id)
        await audit.note(database, "dataset.delete", file.id, name=file.name)

    with_imports(options, work)
    return 0


def _forecast(options: argparse.Namespace) -> int:
    from gateway.chat import administration

    asked = {"model": options.model, "output_tokens": options.output_tokens}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    with administration(options.url, options.key) as server:
        told = server.ask("GET", f"/datasets/{quote(options.id, safe='')}/forecast?{query}", dict[str, Any])
    if options.json:
        command.print_json(told)
        return 0
    how = "counted by the model" if told["tokenised"] else "estimated from bytes"
    if told["counted_rows"] < told["rows"]:
        how += f" in {told['counted_rows']} requests"
    cost = "has no price" if told["cost_usd"] is None else f"{told['cost_usd']} USD at most"
    rows = [
        ("model", told["model"]),
        ("requests", f"{told['rows']}" + (f", {told['invalid_rows']} invalid" if told["invalid_rows"] else "")),
        ("input tokens", f"{told['input_tokens']}, {how}"),
        ("output tokens", f"{told['output_tokens']} at most, or as long as an answer is taken to be"),
        ("cost", cost),
    ]
    command.print_table(rows)
    return 0
