"""Many conversations on a pool that holds a few, also after both servers were killed and began anew: `python -m
tests.bench.lasting`. The gateway keeps conversations in memory and on disk, llama-server in memory only.

The conversations have names and take turns in a fixed order, a few at a time. The first turns compute every prompt,
which takes minutes on two cores; a later round ends when all had their turn or its time is over, and the next one goes
on there.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from gateway.bench import Endpoint, open_client
from gateway.bench_report import Outcome
from tests.bench.endpoints import Setup, bench_models, gateway_at, llama_endpoint, model_file
from tests.bench.llama_server import cache_dir
from tests.bench.processes import machine_to_itself, split_cores
from tests.bench.scenarios import Probe, greet

QUESTION_TOKENS = 32
ANSWER_TOKENS = 16
PROGRESS_S = 10.0
MIB = 1 << 20


class Round(msgspec.Struct, frozen=True):
    """One turn of every conversation, or of as many as there was time for."""

    turns: int
    turns_per_s: float
    first_token_ms: float
    cached_share: float


class Side:
    """One server with its conversations, which are only those it was asked in."""

    def __init__(
        self, name: str, start: Callable[[], AbstractContextManager[Endpoint]], arguments: argparse.Namespace
    ) -> None:
        self._name = name
        self._start = start
        self._arguments = arguments
        self._stack = contextlib.ExitStack()
        self._ids = bench_models()[arguments.model].token_ids
        self._draw = random.Random(arguments.seed)
        self._histories = [self._draw.choices(self._ids, k=arguments.tokens) for _ in range(arguments.conversations)]
        self._next = 0
        self.restart()

    def restart(self) -> None:
        """Stop the server, if there is one, and start it."""
        self.stop()
        self._endpoint = self._stack.enter_context(self._start())
        asyncio.run(self._greet())

    def stop(self) -> None:
        self._stack.close()

    async def _greet(self) -> None:
        async with open_client() as client:
            await greet(Probe(client, self._endpoint, self._ids, "greeting"))

    def turn(self, name: str, seconds: float) -> Round:
        """Conversations go on by a question and an answer each, in order, until each had one or time is over."""
        outcomes, spent_s = asyncio.run(self._turn(name, seconds))
        return Round(
            turns=len(outcomes),
            turns_per_s=len(outcomes) / spent_s,
            first_token_ms=statistics.fmean(outcome.first_token_s or 0.0 for outcome in outcomes) * 1000,
            cached_share=statistics.fmean((one.cached_tokens or 0) / (one.input_tokens or 1) for one in outcomes),
        )

    async def _turn(self, name: str, seconds: float) -> tuple[list[Outcome], float]:
        outcomes: list[Outcome] = []
        began_s = shown_s = time.perf_counter()

        def due() -> Iterator[int]:
            for _ in self._histories:
                if time.perf_counter() - began_s > seconds:
                    return
                number, self._next = self._next, (self._next + 1) % len(self._histories)
                yield number

        turns = due()

        async def ask(probe: Probe) -> None:
            nonlocal shown_s
            for number in turns:
                history = self._histories[number]
                history += self._draw.choices(self._ids, k=QUESTION_TOKENS)
                outcomes.append(await probe.send(history, ANSWER_TOKENS, f"conversation {number}"))
                if (now_s := time.perf_counter()) > shown_s + PROGRESS_S:
                    shown_s = now_s
                    print(f"{self._name}, {name}: {len(outcomes)} of {len(self._histories)}", file=sys.stderr)

        async with open_client() as client:
            probe = Probe(client, self._endpoint, self._ids, "")
            await asyncio.gather(*(ask(probe) for _ in range(self._arguments.concurrency)))
            return outcomes, time.perf_counter() - began_s


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lasting", description=__doc__)
    parser.add_argument("--model", choices=list(bench_models()), default="100m")
    parser.add_argument("--conversations", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=2000, help="of each conversation's first prompt")
    parser.add_argument("--cells", type=int, default=17_408)
    parser.add_argument("--ram-mib", type=int, default=8192, help="what each server may keep in memory")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="after the first turns, and before the restart")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each round after the first turns")
    parser.add_argument("--only", choices=("gateway", "llama-server"), help="one server instead of both")
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME=VALUE", help="a setting of the gateway's"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seed", default="0")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Print each round of both sides, and the ratio of the gateway to llama-server."""
    arguments = parse(argv)
    cpus, load_cores = split_cores(arguments.cores)
    setup = Setup(
        model=model_file(arguments.model),
        threads=arguments.threads,
        cpus=cpus,
        parallel=8,
        context_tokens=arguments.cells,
        engine=(f"session_ram_bytes={arguments.ram_mib * MIB}", *arguments.engine),
        llama=("--cache-ram", str(arguments.ram_mib)),
    )
    os.sched_setaffinity(0, load_cores | cpus)
    with (
        machine_to_itself(cache_dir() / "bench.lock"),
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
    ):
        starts = {"gateway": lambda: gateway_at(setup, Path(folder)), "llama-server": lambda: llama_endpoint(setup)}
        sides: list[Side] = []
        for name, start in starts.items():
            if arguments.only in (None, name):
                sides.append(Side(name, start, arguments))
                stack.callback(sides[-1].stop)
        compare(sides, arguments)


def compare(sides: list[Side], arguments: argparse.Namespace) -> None:
    """All rounds of both sides; after the restart the servers have nothing in memory."""
    later = [f"round {number}" for number in range(1, arguments.rounds + 1)]
    for name in ("first turns", *later, "after a restart", "the round after"):
        if name == "after a restart":
            for side in sides:
                side.restart()
        show(name, [side.turn(name, float("inf") if name == "first turns" else arguments.seconds) for side in sides])


def show(name: str, rounds: list[Round]) -> None:
    for metric in Round.__struct_fields__:
        values = [float(getattr(one, metric)) for one in rounds]
        ratio = f"{values[0] / values[1]:8.3f}" if len(values) == 2 and values[1] else "       -"
        print(f"{name:18}{metric:16}" + "".join(f"{value:10.2f}" for value in values) + ratio, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
