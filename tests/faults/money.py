"""`python -m tests.faults.money [SCENARIO ...]`: whether money is exact, by force. Exit code 1: it is not.

The full counts take their time; `--scale 0.1` runs a tenth of them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.disconnects import disconnects
from tests.faults.fleet import build_shim
from tests.faults.kills import errors, kills
from tests.faults.race import Outcome, race
from tests.stores import Postgres, Valkey

Scenario = Callable[[Path, float], Outcome]


def scaled(number: int, scale: float) -> int:
    return max(round(number * scale), 1)


def race_alone(folder: Path, scale: float) -> Outcome:
    """64 clients, 100 budgets, one process on SQLite."""
    return race(folder, processes=1, clients=64, budgets=scaled(100, scale), tokens=200, stores=None)


def race_three(folder: Path, scale: float) -> Outcome:
    """Three processes on PostgreSQL and Redis."""
    with stores() as both:
        return race(folder, processes=3, clients=64, budgets=scaled(100, scale), tokens=200, stores=both)


def race_sixteen(folder: Path, scale: float) -> Outcome:
    """Sixteen processes on PostgreSQL and Redis, 1,024 clients."""
    with stores() as both:
        return race(folder, processes=16, clients=64, budgets=scaled(100, scale), tokens=200, stores=both)


@contextlib.contextmanager
def stores() -> Iterator[tuple[Valkey, Postgres]]:
    with Valkey() as valkey, Postgres() as postgres:
        yield valkey, postgres


def kills_alone(folder: Path, scale: float) -> Outcome:
    """kill -9 at random and chosen points of gateways on SQLite."""
    return kills(folder, build_shim(folder), count=scaled(1000, scale), parallel=4)


def io_errors(folder: Path, scale: float) -> Outcome:
    """EIO and ENOSPC at all points where a commit touches the disk."""
    return errors(folder, build_shim(folder), count=scaled(200, scale), parallel=2)


def leaving(folder: Path, scale: float) -> Outcome:
    """10,000 clients that leave at random points."""
    return disconnects(folder, count=scaled(10_000, scale))


SCENARIOS: dict[str, Scenario] = {
    "race-alone": race_alone,
    "race-three": race_three,
    "race-sixteen": race_sixteen,
    "kills": kills_alone,
    "errors": io_errors,
    "disconnects": leaving,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.money", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; without: all")
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    failed = False
    for name in options.scenarios or SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="gateway-money-") as folder:
            started_s = time.monotonic()
            outcome = SCENARIOS[name](Path(folder), options.scale)
        failed = failed or bool(outcome.wrong)
        figures = ", ".join(f"{what} {figure}" for what, figure in outcome.figures.items())
        took_s = time.monotonic() - started_s
        print(f"{'FAIL' if outcome.wrong else 'ok  '}  {name} ({took_s:.0f} s): {figures}", flush=True)
        for problem in outcome.wrong[:10]:
            print(f"      {problem}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
