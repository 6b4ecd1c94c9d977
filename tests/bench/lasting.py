"""Many conversations on a pool that holds a few, also after both servers ended and began anew: `python -m
tests.bench.lasting`. The gateway keeps conversations in memory and on disk, llama-server in memory only."""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from gateway.bench import Endpoint, Outcome, open_client
from tests.bench.endpoints import Setup, bench_models, gateway_at, llama_endpoint, model_file
from tests.bench.llama_server import cache_dir
from tests.bench.processes import machine_to_itself, split_cores
from tests.bench.scenarios import Probe, greet

QUESTION_TOKENS = 32
ANSWER_TOKENS = 16
MIB = 1 << 20


class Round(msgspec.Struct, frozen=True):
    """One turn of every conversation."""

    turns_per_s: float
    first_token_ms: float
    cached_share: float


class Side:
    """One server with its conversations, which are only those it was asked in."""

    def __init__(self, start: Callable[[], AbstractContextManager[Endpoint]], arguments: argparse.Namespace) -> None:
        self._start = start
        self._arguments = arguments
        self._stack = contextlib.ExitStack()
        self._ids = bench_models()[arguments.model].token_ids
        draw = random.Random(arguments.seed)
        self._histories = [draw.choices(self._ids, k=arguments.tokens) for _ in range(arguments.conversations)]
        self._draw = draw
        self.restart()

    def restart(self) -> None:
        """Kill the server, if there is one, and start it."""
        self.stop()
        self._endpoint = self._stack.enter_context(self._start())
        asyncio.run(self._greet())

    def stop(self) -> None:
        self._stack.close()

    async def _greet(self) -> None:
        async with open_client() as client:
            await greet(Probe(client, self._endpoint, self._ids, "greeting"))

    def turn(self) -> Round:
        """Each conversation goes on by a question and an answer, in the same order, a few at a time."""
        outcomes, spent_s = asyncio.run(self._turn())
        return Round(
            turns_per_s=len(outcomes) / spent_s,
            first_token_ms=statistics.fmean(outcome.first_token_s or 0.0 for outcome in outcomes) * 1000,
            cached_share=statistics.fmean((one.cached_tokens or 0) / (one.input_tokens or 1) for one in outcomes),
        )

    async def _turn(self) -> tuple[list[Outcome], float]:
        places = asyncio.Semaphore(self._arguments.concurrency)

        async def ask(probe: Probe, history: list[int]) -> Outcome:
            history += self._draw.choices(self._ids, k=QUESTION_TOKENS)
            async with places:
                return await probe.send(history, ANSWER_TOKENS)

        async with open_client() as client:
            probe = Probe(client, self._endpoint, self._ids, "")
            began_s = time.perf_counter()
            outcomes = await asyncio.gather(*(ask(probe, history) for history in self._histories))
            return list(outcomes), time.perf_counter() - began_s


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lasting", description=__doc__)
    parser.add_argument("--model", choices=list(bench_models()), default="100m")
    parser.add_argument("--conversations", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=2000, help="of each conversation's first prompt")
    parser.add_argument("--cells", type=int, default=17_408)
    parser.add_argument("--ram-mib", type=int, default=8192, help="what each server may keep in memory")
    parser.add_argument("--concurrency", type=int, default=4)
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
        engine=(f"session_ram_bytes={arguments.ram_mib * MIB}",),
        llama=("--cache-ram", str(arguments.ram_mib)),
    )
    os.sched_setaffinity(0, load_cores | cpus)
    with machine_to_itself(cache_dir() / "bench.lock"), tempfile.TemporaryDirectory() as folder:
        sides = [
            Side(lambda: gateway_at(setup, Path(folder)), arguments),
            Side(lambda: llama_endpoint(setup), arguments),
        ]
        try:
            for name in ("first turns", "second turns", "third turns", "after a restart", "the turns after that"):
                if name == "after a restart":
                    for side in sides:
                        side.restart()
                show(name, *(side.turn() for side in sides))
        finally:
            for side in sides:
                side.stop()


def show(name: str, gateway: Round, llama: Round) -> None:
    for metric in Round.__struct_fields__:
        first, second = getattr(gateway, metric), getattr(llama, metric)
        ratio = f"{first / second:8.3f}" if second else "       -"
        print(f"{name:22}{metric:18}{first:10.2f}{second:10.2f}{ratio}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
