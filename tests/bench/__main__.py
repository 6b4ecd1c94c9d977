"""Compares the gateway with llama-server: `python -m tests.bench`, also run by `make bench`.

Both serve the same generated model with the same threads on the same cores, the load comes from the other cores, and
they take turns. Printed are medians over the repetitions and the median of the ratios first/second, and no verdict.
"""

import argparse
import asyncio
import math
import os
import signal
import statistics
import sys
from pathlib import Path

import msgspec

from gateway.bench import Endpoint, open_client
from gateway.bench_report import compare_metrics
from tests.bench.endpoints import STARTS, Setup, bench_models, model_file
from tests.bench.llama_server import cache_dir
from tests.bench.processes import machine_to_itself, split_cores
from tests.bench.scenarios import Group, Probe, Scenario, ScenarioError, greet, groups


class Row(msgspec.Struct, frozen=True):
    """One number of one scenario: medians of both sides, and of the ratios where both sides have it."""

    model: str
    scenario: str
    metric: str
    first: float | None
    second: float | None
    ratio: float | None
    lowest: float | None
    highest: float | None


class Pair(msgspec.Struct, frozen=True):
    """Both endpoints while they run, and what is measured on them."""

    model: str
    first: Endpoint
    second: Endpoint
    repetitions: int
    seed: int

    async def rows(self, name: str, scenario: Scenario) -> list[Row]:
        """Measure one scenario on both sides, which take turns in changing order."""
        first: list[dict[str, float]] = []
        second: list[dict[str, float]] = []
        for repetition in range(self.repetitions):
            seed = f"{self.seed} {name} {repetition}"
            turns = [(self.first, first), (self.second, second)]
            for endpoint, results in turns if repetition % 2 == 0 else reversed(turns):
                results.append(await self._measure(scenario, endpoint, seed))
        ratios = {row.metric: row for row in compare_metrics(first, second)}
        rows = []
        for metric in dict.fromkeys(metric for numbers in (*first, *second) for metric in numbers):
            ratio = ratios.get(metric)
            if ratio and not math.isnan(ratio.ratio):
                sides = (ratio.first, ratio.second, ratio.ratio, ratio.lowest, ratio.highest)
                rows.append(Row(self.model, name, metric, *sides))
            else:
                medians = (_median(first, metric), _median(second, metric))
                rows.append(Row(self.model, name, metric, *medians, ratio=None, lowest=None, highest=None))
        return rows

    async def warm_up(self) -> None:
        """One small request to each side."""
        for endpoint in (self.first, self.second):
            await self._measure(greet, endpoint, "warm-up")

    async def _measure(self, scenario: Scenario, endpoint: Endpoint, seed: str) -> dict[str, float]:
        async with open_client() as client:
            return await scenario(Probe(client, endpoint, bench_models()[self.model].token_ids, seed))


def _median(results: list[dict[str, float]], metric: str) -> float | None:
    values = [numbers[metric] for numbers in results if metric in numbers]
    return statistics.median(values) if values else None


def run_group(arguments: argparse.Namespace, model: str, group: Group) -> list[Row]:
    """Start both servers for `group` and measure its chosen scenarios, printing rows as they come."""
    chosen = {name: scenario for name, scenario in group.scenarios.items() if is_chosen(name, arguments.scenario)}
    if not chosen:
        return []
    server_cores, load_cores = split_cores(arguments.cores)
    setup = Setup(
        model=model_file(model),
        threads=arguments.threads,
        cpus=server_cores,
        parallel=group.parallel,
        context_tokens=group.context_tokens,
        queue_depth=group.queue_depth,
        engine=tuple(arguments.engine),
    )
    rows: list[Row] = []
    with STARTS[arguments.first](setup) as first, STARTS[arguments.second](setup) as second:
        pair = Pair(model, first, second, arguments.repetitions, arguments.seed)
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, load_cores)
        try:
            asyncio.run(pair.warm_up())
            for name, scenario in chosen.items():
                rows += _measured(pair, name, scenario)
        finally:
            os.sched_setaffinity(0, own)
    return rows


def _measured(pair: Pair, name: str, scenario: Scenario) -> list[Row]:
    """The rows of one scenario, printed; one that an endpoint failed is reported and has none."""
    try:
        rows = asyncio.run(pair.rows(name, scenario))
    except ScenarioError as error:
        print(f"{pair.model} {name}: {error}", flush=True)
        return []
    for row in rows:
        numbers = "".join(f"{'-' if number is None else f'{number:.2f}':>11}" for number in (row.first, row.second))
        ratio = f"{row.ratio:>8.3f}  {row.lowest:.3f} to {row.highest:.3f}" if row.ratio else ""
        print(f"{row.model:<6}{row.scenario:<18}{row.metric:<44}{numbers}{ratio}", flush=True)
    return rows


def is_chosen(name: str, wanted: list[str] | None) -> bool:
    """Whether a scenario's name or its first words are among the wanted ones; None wants all."""
    return not wanted or any(name == word or name.startswith(word + "-") for word in wanted)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    names = [name for group in groups() for name in group.scenarios]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", action="append", choices=list(bench_models()), help="default: 100m and 0.5b")
    parser.add_argument("--scenario", action="append", help=f"one of, or the words one begins with: {', '.join(names)}")
    parser.add_argument("--first", choices=list(STARTS), default="gateway")
    parser.add_argument("--second", choices=list(STARTS), default="llama-server")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="compute threads of each server")
    parser.add_argument("--cores", type=int, default=2, help="cores both servers share; the load has the others")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=VALUE", help="a setting of the gateway")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Run every chosen scenario on every chosen model."""
    arguments = parse(argv)
    # Being terminated must stop the servers too, as an interrupt from the keyboard does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows: list[Row] = []
    with machine_to_itself(cache_dir() / "bench.lock"):
        print(
            f"{'model':<6}{'scenario':<18}{'metric':<44}{arguments.first:>11.10}{arguments.second:>11.10}{'ratio':>8}"
        )
        for model in arguments.model or ["100m", "0.5b"]:
            for group in groups():
                rows += run_group(arguments, model, group)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
