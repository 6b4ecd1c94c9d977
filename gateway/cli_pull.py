"""`gateway pull`: bring a model here, and say where it lies."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from gateway import cli_datasets, command

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.library.messages import Progress
    from gateway.library.names import Kind, Reference
    from gateway.library.pulls import Pull
    from gateway.library.shelf import Shelf

CELLS_MIN, CELLS_MAX = 10, 30
COLUMNS = 120
LINE_EVERY_S = 5.0


def add_commands(commands: Any) -> None:
    pull = command.add(commands, "pull", _pull, "fetch a model from a hub, going on where it stopped; print its path")
    pull.add_argument("name", help="owner/repo, owner/repo:Q4_K_M or owner/repo/file.gguf, each with @revision")
    pull.add_argument("--dataset", action="store_true", help="make a dataset of JSONL, Parquet and CSV files")
    cli_datasets.add_wish_options(pull)
    pull.add_argument("--update", action="store_true", help="look the name up anew instead of as it was pulled first")
    command.add_config_options(pull)


def _pull(options: argparse.Namespace) -> int:
    from gateway.library.errors import LibraryError
    from gateway.library.names import parse

    config = command.load(options)
    kind: Kind = "dataset" if options.dataset else "model"
    if options.dataset:
        cli_datasets.wish_of(options)
    try:
        pull = asyncio.run(_known_to_the_library(config, options, parse(options.name, kind)))
    except LibraryError as error:
        raise command.CommandError(str(error)) from None
    progress = pull.progress()
    if progress.status == "paused":
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    if progress.error is not None:
        raise command.CommandError(progress.error)
    if options.dataset:
        from gateway.library.datasets import name_of

        return cli_datasets.make(options, pull.paths, name_of(pull.paths), f"hf:{pull.reference}")
    print(progress.path)
    return 0


async def _known_to_the_library(config: Config, options: argparse.Namespace, reference: Reference) -> Pull:
    """Pull, and let the library know, also that of a server beside this; without one it is pulled all the same."""
    from gateway.hubs import open_shelf
    from gateway.state.database import DatabaseError
    from gateway.state.migrate import known, migrate
    from gateway.stores import open_database

    shelf = None
    async with AsyncExitStack() as stack:
        try:
            database = await open_database(config, serve=False)
            stack.push_async_callback(database.close)
            await migrate(database, known())
            shelf = await open_shelf(config, database)
        except (DatabaseError, OSError) as error:
            print(f"The library will not know of this pull: {error}", file=sys.stderr)
        return await _carry_out(config, options, reference, shelf)


async def _carry_out(config: Config, options: argparse.Namespace, reference: Reference, shelf: Shelf | None) -> Pull:
    from gateway.hubs import open_pulls
    from gateway.library.messages import answer, watch

    pulls = open_pulls(config, shelf)
    pull = pulls.start(reference, "dataset" if options.dataset else "model", update=options.update)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, pulls.pause, pull)
    bar = Bar(sys.stderr)
    try:
        async for progress in watch(partial(answer, lambda: pulls), pull.progress()):
            bar.show(progress)
            if progress.status == "paused":
                break
    finally:
        bar.end()
        await pulls.close()
    return pull


class Bar:
    """Shows progress: a bar that redraws itself on a terminal, a line now and then elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._begun = False
        self._shown_s = float("-inf")

    def show(self, progress: Progress) -> None:
        if self._terminal:
            # A line that is as wide as the terminal would begin another one.
            self._out.write(f"\r{text_of(progress, self._columns() - 1)}\x1b[K")
        else:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._shown_s < LINE_EVERY_S and progress.status in ("running", "verifying"):
                return
            self._shown_s = now_s
            self._out.write(text_of(progress) + "\n")
        self._out.flush()
        self._begun = True

    def end(self) -> None:
        if self._terminal and self._begun:
            self._out.write("\n")
            self._out.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or COLUMNS
        except OSError:
            return COLUMNS


def text_of(progress: Progress, columns: int = COLUMNS) -> str:
    """One line about a pull, of at most so many columns."""
    from gateway.library.names import gigabytes

    if not progress.total_bytes:
        return f"{progress.reference}: {progress.status}"[:columns]
    share = progress.done_bytes / progress.total_bytes
    # Nothing is whole before it is.
    text = f" {int(share * 100):3}%  {_amount(progress.done_bytes, progress.total_bytes)}"
    if progress.bytes_per_s:
        text += f"  {gigabytes(int(progress.bytes_per_s))}/s"
    if progress.status != "running":
        text += f"  {progress.status}"
    elif progress.eta_s is not None:
        text += f"  {_span(progress.eta_s)} left"
    room = columns - len(text) - len(": []")
    name = _shortened(progress.reference, room - CELLS_MIN)
    cells = max(0, min(CELLS_MAX, room - len(name)))
    full = int(share * cells)
    return f"{name}: [{'=' * full}{' ' * (cells - full)}]{text}"[:columns]


def _amount(done_bytes: int, total_bytes: int) -> str:
    """Both in one unit, finely enough to be seen growing."""
    if total_bytes >= 10**9:
        return f"{done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
    if total_bytes < 10**6:
        return f"{done_bytes / 1e3:.0f} of {total_bytes / 1e3:.0f} kB"
    return f"{done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"


def _shortened(name: str, columns: int) -> str:
    """A name whose end, which says the most, is kept."""
    return name if len(name) <= columns else f"...{name[len(name) - max(0, columns - 3) :]}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
