"""`gateway pull`: bring a model here, and say where it lies."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any, TextIO

from gateway import command

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.library.pull import Progress

BAR_CELLS = 30
LINE_EVERY_S = 5.0


def add_commands(commands: Any) -> None:
    pull = command.add(commands, "pull", _pull, "fetch a model from a hub, going on where it stopped; print its path")
    pull.add_argument("name", help="owner/repo, owner/repo:Q4_K_M or owner/repo/file.gguf, each with @revision")
    pull.add_argument("--dataset", action="store_true", help="a dataset's JSONL, Parquet and CSV files instead")
    pull.add_argument("--update", action="store_true", help="look the name up anew instead of as it was pulled first")
    command.add_config_options(pull)


def _pull(options: argparse.Namespace) -> int:
    from gateway.library.errors import LibraryError
    from gateway.library.names import parse

    config = command.load(options)
    try:
        progress = asyncio.run(_carry_out(config, options, parse(options.name)))
    except LibraryError as error:
        raise command.CommandError(str(error)) from None
    if progress.status == "paused":
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    if progress.error is not None:
        raise command.CommandError(progress.error)
    print(progress.path)
    return 0


async def _carry_out(config: Config, options: argparse.Namespace, reference: Any) -> Progress:
    from gateway.hubs import open_pulls

    pulls = open_pulls(config)
    pull = pulls.start(reference, "dataset" if options.dataset else "model", update=options.update)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, pulls.pause, pull)
    bar = Bar(sys.stderr)
    try:
        async for progress in pulls.watch(pull):
            bar.show(progress)
            if progress.status == "paused":
                break
    finally:
        bar.end()
        await pulls.close()
    return pull.progress()


class Bar:
    """Shows progress: a bar that redraws itself on a terminal, a line now and then elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._line = ""
        self._shown_s = float("-inf")

    def show(self, progress: Progress) -> None:
        line = text_of(progress)
        if self._terminal:
            self._out.write("\r" + line.ljust(len(self._line)))
        else:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._shown_s < LINE_EVERY_S and progress.status == "running":
                return
            self._shown_s = now_s
            self._out.write(line + "\n")
        self._out.flush()
        self._line = line

    def end(self) -> None:
        if self._terminal and self._line:
            self._out.write("\n")
            self._out.flush()


def text_of(progress: Progress) -> str:
    """One line about a pull."""
    from gateway.library.names import gigabytes

    if not progress.total_bytes:
        return f"{progress.reference}: {progress.status}"
    share = progress.done_bytes / progress.total_bytes
    full = int(share * BAR_CELLS)
    rate = f"  {gigabytes(int(progress.bytes_per_s))}/s" if progress.bytes_per_s else ""
    left = f"  {_span(progress.eta_s)} left" if progress.eta_s else ""
    return (
        f"{progress.reference}: [{'=' * full}{' ' * (BAR_CELLS - full)}] {share:4.0%}  "
        f"{gigabytes(progress.done_bytes)} of {gigabytes(progress.total_bytes)}{rate}{left}  {progress.status}"
    )


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
