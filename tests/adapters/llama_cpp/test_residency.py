"""The pure decision, branch by branch, and how often models change places on a trace against an offline optimum."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from adapters.llama_cpp.pool import PoolSettings
from adapters.llama_cpp.residency import Plan, Rules, Seat, plan
from adapters.llama_cpp.resident import Residence
from tests import virtual
from tests.adapters.llama_cpp.fake_models import Bench, FakeModel, Recorder

RECORDED = Path(__file__).parents[2] / "recorded"
RULES = Rules(memory_bytes=20)
NOW_S = 1000.0


def seat(name: str, place: str = "out", **more: object) -> Seat:
    return Seat(**{"name": name, "size_bytes": 10, "place": place} | more)  # type: ignore[arg-type]


OUT = seat("w", wanted_s=990.0)
TABLE: dict[str, tuple[list[Seat], Plan]] = {
    "1 expired": ([seat("a", "in", ttl_s=60.0, used_s=930)], Plan(evict=("a",))),
    "1 not yet": ([seat("a", "in", ttl_s=60.0, used_s=950)], Plan()),
    "1 pinned": ([seat("a", "in", ttl_s=60.0, pinned=True)], Plan()),
    "1 leaving": ([seat("a", "in", leaving=True, pinned=True)], Plan(evict=("a",))),
    "1 leaving, busy": ([seat("a", "in", leaving=True, busy=True)], Plan()),
    "2 grown": ([seat("a", "in", size_bytes=15), seat("b", "in", used_s=990)], Plan(evict=("a",))),
    "3 longest first": (
        [seat("a", wanted_s=995.0, size_bytes=15), seat("b", wanted_s=994.0, size_bytes=15)],
        Plan(load=("b",), begins_s={"b": 0.0, "a": 0.5}),
    ),
    "3 priority first": (
        [seat("a", wanted_s=995.0, priority=1), seat("b", "in", busy=True), seat("c", wanted_s=1.0)],
        Plan(load=("a",), hold=("b",), begins_s={"a": 0.0, "c": 0.5}),
    ),
    "3.1 too large": ([seat("w", wanted_s=1.0, size_bytes=21)], Plan(impossible=("w",))),
    "3.1 beside a pinned one": (
        [seat("w", wanted_s=1.0, size_bytes=11), seat("a", "in", pinned=True)],
        Plan(impossible=("w",)),
    ),
    "3.2 fits": ([OUT, seat("a", "in")], Plan(load=("w",), begins_s={"w": 0.0})),
    "3.2 not beside one that is going": ([OUT, seat("a", "going"), seat("b", "in")], Plan(begins_s={"w": 0.5})),
    "3.2 too many load": (
        [OUT, seat("a", "coming", size_bytes=1, left_s=4.0), seat("b", "coming", size_bytes=1, left_s=3.0)],
        Plan(begins_s={"w": 3.0}),
    ),
    "3.3 least recently used": (
        [OUT, seat("a", "in", used_s=900), seat("b", "in", used_s=800)],
        Plan(evict=("b",), begins_s={"w": 0.5}),
    ),
    "3.3 cheapest to load again": (
        [OUT, seat("a", "in", used_s=900, load_s=1.0), seat("b", "in", used_s=800, load_s=10.0)],
        Plan(evict=("a",), begins_s={"w": 0.5}),
    ),
    "3.3 least asked of late": (
        [OUT, seat("a", "in", used_s=900, uses=1.0), seat("b", "in", used_s=800, uses=3.0)],
        Plan(evict=("a",), begins_s={"w": 0.5}),
    ),
    "3.3 least priority": (
        [OUT, seat("a", "in", used_s=900), seat("b", "in", used_s=800, priority=1)],
        Plan(evict=("a",), begins_s={"w": 0.5}),
    ),
    "3.3 no more than needed": (
        [
            seat("w", wanted_s=1.0, size_bytes=9),
            seat("a", "in", size_bytes=2, used_s=1),
            seat("b", "in", size_bytes=9, used_s=2),
            seat("c", "in", size_bytes=9, used_s=3),
        ],
        Plan(evict=("b",), begins_s={"w": 0.5}),
    ),
    "3.4 held": (
        [OUT, seat("a", "in", busy=True, left_s=7.0), seat("b", "in", pinned=True)],
        Plan(hold=("a",), begins_s={"w": 7.5}),
    ),
    "3.4 still held": (
        [OUT, seat("a", "in", busy=True, used_s=1.0), seat("b", "in", busy=True, held=True)],
        Plan(hold=("b",), begins_s={"w": 0.5}),
    ),
    "3.4 it came only lately": (
        [OUT, seat("a", "in", since_s=999.0), seat("b", "in", busy=True, since_s=998.0, left_s=1.0)],
        Plan(begins_s={"w": 4.5}),
    ),
    "3 nobody takes what is claimed": (
        [OUT, seat("a", "in", busy=True, left_s=7.0, size_bytes=15), seat("b", wanted_s=999.0, size_bytes=11)],
        Plan(hold=("a",), begins_s={"w": 7.5, "b": 8.5}),
    ),
    "3 what is left beside the claim is used": (
        [
            seat("w", wanted_s=1.0),
            seat("a", "in", busy=True, left_s=7.0, size_bytes=15),
            seat("b", wanted_s=2.0, size_bytes=5),
        ],
        Plan(load=("b",), hold=("a",), begins_s={"w": 7.5, "b": 0.0}),
    ),
    "4 eager where it fits": (
        [seat("a", eager=True), seat("b", eager=True, priority=1), seat("c", eager=True)],
        Plan(load=("b", "a")),
    ),
    "4 eager ones push nobody out": ([seat("a", eager=True, size_bytes=15), seat("b", "in")], Plan()),
}


@pytest.mark.parametrize("case", TABLE)
def test_decisions(case: str) -> None:
    seats, expected = TABLE[case]
    assert plan(seats, RULES, NOW_S) == expected


def test_the_least_residency_can_be_set() -> None:
    seats = [OUT, seat("a", "in", since_s=950.0), seat("b", "in", pinned=True)]
    assert plan(seats, RULES, NOW_S).evict == ("a",)
    assert plan(seats, Rules(memory_bytes=20, residency_s_min=60.0), NOW_S).evict == ()


Trace = list[tuple[float, str, float]]


def conversations(seed: int) -> Trace:
    """Ten minutes of twelve people, each with one conversation after the other: (when, model, how long it runs)."""
    draw, trace = random.Random(seed), []
    for _ in range(12):
        at_s = draw.uniform(0, 180)
        while at_s < 600:
            model = draw.choice("abc")
            for _ in range(draw.randint(3, 12)):
                trace.append((at_s, model, draw.uniform(0.2, 3)))
                at_s += draw.uniform(2, 15)
            at_s += draw.uniform(5, 60)
    return sorted(one for one in trace if one[0] < 600)


def fewest_loads(trace: Trace, seats: int = 2) -> int:
    """Belady's offline optimum (1966): whoever is needed last in the future goes. Requests are served as they come."""
    loaded, loads = set[str](), 0
    for index, (_, model, _) in enumerate(trace):
        if model not in loaded:
            loads += 1
            if len(loaded) == seats:
                later = [name for _, name, _ in trace[index:]]
                loaded.remove(max(loaded, key=lambda name: later.index(name) if name in later else len(later)))
            loaded.add(model)
    return loads


def replayed(trace: Trace, load_s: float) -> tuple[int, float]:
    """How many loads the pool needs for a trace, with memory for two, and the longest wait in seconds."""

    async def replay() -> tuple[int, float]:
        models = {name: (FakeModel(name, Recorder(0), load_s=load_s), Residence(lazy=True)) for name in "abc"}
        it = Bench(20, PoolSettings(memory_bytes=20, chosen=True), 1000, **models)
        await it.pool.start()
        loop, waits_s = asyncio.get_running_loop(), []

        async def ask(at_s: float, model: str, runs_s: float) -> None:
            await asyncio.sleep(at_s)
            assert await it.ask(model, runs_s) == "ok"
            waits_s.append(loop.time() - at_s - runs_s)

        await asyncio.gather(*(ask(*one) for one in trace))
        await it.pool.close()
        return len(it.recorder.loads), max(waits_s)

    return virtual.run(replay())


@pytest.mark.parametrize("seed", range(3))
def test_models_change_places_seldom(seed: int) -> None:
    trace = conversations(seed)
    loads, longest_wait_s = replayed(trace, load_s=2.0)
    assert loads <= 1.2 * fewest_loads(trace)
    assert longest_wait_s < 30


def test_models_change_places_seldom_on_a_recorded_trace() -> None:
    """`python -m tests.bench.pool_trace` wrote down what a real server was asked, and how often it loaded."""
    head, *lines = (RECORDED / "pool_trace.jsonl").read_text().splitlines()
    trace: Trace = [tuple(json.loads(line)) for line in lines]
    real = json.loads(head)
    fewest = fewest_loads(trace)
    assert sum(real["loads"].values()) <= 1.2 * fewest
    loads, longest_wait_s = replayed(trace, real["load_s"])
    assert loads <= 1.2 * fewest
    assert longest_wait_s < 30
