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

from tests.faults.cost import durability, governance
from tests.faults.disconnects import disconnects
from tests.faults.fleet import build_shim
from tests.faults.kills import errors, kills
from tests.faults.outages import disk_full, outage
from tests.faults.race import Outcome, race
from tests.faults.replicas import everything_at_once, replica_kills
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


def replicas_killed(folder: Path, scale: float) -> Outcome:
    """kill -9 of replicas that share counters; what they had not told Redis yet has to be counted by others."""
    with stores() as both:
        return replica_kills(folder, build_shim(folder), count=scaled(300, scale), stores=both)


def leaving(folder: Path, scale: float) -> Outcome:
    """10,000 clients that leave at random points."""
    return disconnects(folder, count=scaled(10_000, scale))


def redis_killed(folder: Path, scale: float) -> Outcome:
    """Redis is killed and comes back empty."""
    return outage(folder, lambda valkey, _: valkey.kill(), lambda valkey, _: valkey.start(), 20 * scale)


def redis_killed_uneven(folder: Path, scale: float) -> Outcome:
    """As before, and one replica has used up the limit when it begins, while the others were idle."""
    return outage(folder, lambda valkey, _: valkey.kill(), lambda valkey, _: valkey.start(), 20 * scale, uneven=True)


def redis_stalled(folder: Path, scale: float) -> Outcome:
    """Redis keeps its connections and answers nothing."""
    return outage(folder, lambda valkey, _: valkey.stall(), lambda valkey, _: valkey.go_on(), 20 * scale)


def redis_slow(folder: Path, scale: float) -> Outcome:
    """Every call takes up to 150 ms."""
    return outage(folder, lambda valkey, _: valkey.slow(20 * scale), lambda valkey, _: valkey.go_on(), 0)


def postgres_stopped(folder: Path, scale: float) -> Outcome:
    """PostgreSQL is away for more than a minute."""
    return outage(folder, lambda _, postgres: postgres.stop(), lambda _, postgres: postgres.start(), 75 * scale)


def postgres_stalled(folder: Path, scale: float) -> Outcome:
    """PostgreSQL keeps its connections and answers nothing."""
    return outage(folder, lambda _, postgres: postgres.stall(), lambda _, postgres: postgres.go_on(), 30 * scale)


def governing(folder: Path, scale: float) -> Outcome:
    """Processor time per request that limits add, in memory and with Redis."""
    with Valkey() as valkey:
        return governance(valkey)


def durable(folder: Path, scale: float) -> Outcome:
    """How long entries wait to be durable on SQLite when a thousand come each second."""
    return durability(folder, 10 * scale)


def full_disk(folder: Path, scale: float) -> Outcome:
    """Neither the database nor the outbox can be written for a while."""
    return disk_full(folder, build_shim(folder), 15 * scale)


def at_once(folder: Path, scale: float) -> Outcome:
    """PostgreSQL away, Redis emptied and a replica killed, one into the other."""
    with stores() as both:
        return everything_at_once(folder, build_shim(folder), both)


SCENARIOS: dict[str, Scenario] = {
    "race-alone": race_alone,
    "race-three": race_three,
    "race-sixteen": race_sixteen,
    "kills": kills_alone,
    "errors": io_errors,
    "replicas-killed": replicas_killed,
    "disconnects": leaving,
    "governance": governing,
    "durability": durable,
    "redis-killed": redis_killed,
    "redis-killed-uneven": redis_killed_uneven,
    "redis-stalled": redis_stalled,
    "redis-slow": redis_slow,
    "postgres-stopped": postgres_stopped,
    "postgres-stalled": postgres_stalled,
    "disk-full": full_disk,
    "at-once": at_once,
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
        failed = failed or bool(outcome.wrong + outcome.slow)
        figures = ", ".join(f"{what} {figure}" for what, figure in outcome.figures.items())
        took_s = time.monotonic() - started_s
        verdict = "FAIL" if outcome.wrong else "slow" if outcome.slow else "ok  "
        print(f"{verdict}  {name} ({took_s:.0f} s): {figures}", flush=True)
        for problem in [*outcome.wrong[:10], *outcome.slow]:
            print(f"      {problem}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
