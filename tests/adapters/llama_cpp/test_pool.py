"""The pool in made-up time: who is loaded, who waits, who goes, and that it never breaks a promise."""

from __future__ import annotations

import asyncio
import random

import pytest

from adapters import open_adapter
from adapters.errors import ModelLoading, ModelUnavailable
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.pool import Entry, Pool, PoolSettings
from adapters.llama_cpp.resident import FetchFailed, Need, Residence
from tests import virtual
from tests.adapters.llama_cpp.fake_models import Bench, FakeModel, Recorder, bench, entry
from tests.adapters.llama_cpp.test_process import run

EAGER = Residence()
LAZY = Residence(lazy=True)


def test_with_memory_for_all_they_are_loaded_at_start_two_at_a_time() -> None:
    async def test() -> None:
        it = bench("abc", memory_bytes=30, how=EAGER)
        starting = asyncio.create_task(it.pool.start())
        await asyncio.sleep(0.5)
        assert it.states() == {"a": "coming", "b": "coming", "c": "out"}
        assert it.pool.residents["c"].state == "loading"
        await starting
        assert set(it.states().values()) == {"in"}
        await it.pool.close()
        assert it.recorder.taken == {}

    virtual.run(test())


def test_a_model_that_is_loaded_when_the_gateway_ends_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        it = bench("a", how=EAGER)
        starting = asyncio.create_task(it.pool.start())
        it.models["a"].failures = 1
        await asyncio.sleep(0.9)
        await it.pool.close()
        starting.cancel()
        assert not caplog.messages

    virtual.run(test())


def test_without_memory_for_all_the_rest_sleeps_until_it_is_asked_for() -> None:
    async def test() -> None:
        it = Bench(20, a=(None, EAGER), b=(None, Residence(priority=1)), c=(None, Residence(priority=2)))
        await it.pool.start()
        assert it.states() == {"a": "out", "b": "in", "c": "in"}
        assert it.pool.residents["a"].state == "sleeping"
        await asyncio.sleep(10)
        assert await it.ask("a") == "ok"
        assert it.states() == {"a": "in", "b": "out", "c": "in"}, "the one of less priority had to go"
        await it.pool.close()

    virtual.run(test())


def test_one_load_serves_all_who_wait_and_the_rest_is_told_when_to_come_back() -> None:
    async def test() -> None:
        it = bench("a")
        await it.pool.start()
        ends = await asyncio.gather(*(it.ask("a", tenant=f"t{number % 100}") for number in range(500)))
        assert (ends.count("ok"), ends.count("model_loading")) == (64, 436)
        assert it.recorder.loads == ["a"]
        await it.pool.close()

    virtual.run(test())


def test_places_in_line_are_shared_among_tenants() -> None:
    async def test() -> None:
        it = bench("a", depth_max=4)
        await it.pool.start()
        greedy = [asyncio.create_task(it.ask("a", tenant="greedy")) for _ in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(ModelLoading, match="too many"):
            await it.pool.residents["a"].enter("greedy")
        assert await it.ask("a", tenant="modest") == "ok"
        assert sorted([await one for one in greedy]) == ["model_loading", "ok", "ok", "ok"]
        assert it.pool.sleep("a")
        others = [asyncio.create_task(it.ask("a", tenant=name)) for name in "bcde"]
        await asyncio.sleep(0.1)
        with pytest.raises(ModelLoading, match="too many"):
            await it.pool.residents["a"].enter("f")
        await asyncio.gather(*others)
        await it.pool.close()

    virtual.run(test())


def test_a_load_that_takes_too_long_is_not_waited_for_but_happens() -> None:
    async def test() -> None:
        it = Bench(20, a=(FakeModel("a", Recorder(0), load_s=100.0), LAZY))
        await it.pool.start()
        assert await it.ask("a") == "model_loading", "nobody knew: it waited as long as anybody does"
        with pytest.raises(ModelLoading) as told:
            await it.pool.residents["a"].enter("t")
        assert asyncio.get_running_loop().time() == pytest.approx(30)
        assert told.value.retry_after_s == pytest.approx(70)
        await asyncio.sleep(70.1)
        assert await it.ask("a") == "ok"
        await it.pool.close()

    virtual.run(test())


def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    async def test() -> None:
        it = bench("a", depth_max=1)
        await it.pool.start()
        gone = asyncio.create_task(it.ask("a"))
        await asyncio.sleep(0.5)
        gone.cancel()
        await asyncio.sleep(0)
        assert await it.ask("a") == "ok"
        await it.pool.close()

    virtual.run(test())


def test_a_busy_model_is_held_until_it_is_idle_and_its_newcomers_wait() -> None:
    async def test() -> None:
        it = bench("ab", memory_bytes=10)
        await it.pool.start()
        order: list[str] = []

        async def ask(name: str, seconds: float) -> None:
            order.append(f"{name} {await it.ask(name, seconds)}")

        long = asyncio.create_task(ask("a", 12))
        await asyncio.sleep(8)
        other = asyncio.create_task(ask("b", 1))
        await asyncio.sleep(1)
        assert it.pool.residents["a"].held
        late = asyncio.create_task(ask("a", 1))
        await asyncio.gather(long, other, late)
        assert order == ["a ok", "b ok", "a ok"]
        assert it.recorder.loads == ["a", "b", "a"]
        await it.pool.close()

    virtual.run(test())


def test_time_to_live_pins_and_what_an_operator_does() -> None:
    async def test() -> None:
        it = bench("ab", how=Residence(lazy=True, ttl_s=60))
        await it.pool.start()
        assert (await it.ask("a"), await it.ask("b")) == ("ok", "ok")
        it.pool.pin("b", True)
        await asyncio.sleep(70)
        assert it.states() == {"a": "out", "b": "in"}
        it.pool.pin("b", False)
        assert it.states()["b"] == "going"
        await asyncio.sleep(1)
        it.pool.load("a")
        await asyncio.sleep(2)
        running = asyncio.create_task(it.ask("a", 5))
        await asyncio.sleep(0.1)
        assert not it.pool.sleep("a"), "it is busy"
        it.pool.unload("a")
        assert await it.ask("a") == "model_unavailable"
        assert await running == "ok"
        await asyncio.sleep(5)
        assert (it.states()["a"], it.pool.residents["a"].state) == ("out", "stopped")
        it.pool.load("a")
        assert await it.ask("a") == "ok"
        with pytest.raises(KeyError):
            it.pool.load("unknown")
        await it.pool.close()

    virtual.run(test())


def test_unloading_a_model_that_is_being_loaded_ends_that() -> None:
    async def test() -> None:
        it = bench("a")
        await it.pool.start()
        waiting = asyncio.create_task(it.ask("a"))
        await asyncio.sleep(0.5)
        it.pool.unload("a")
        assert await waiting == "model_unavailable"
        await asyncio.sleep(5)
        assert it.recorder.taken == {}
        await it.pool.close()

    virtual.run(test())


def test_a_model_that_failed_is_left_alone_until_a_reset() -> None:
    async def test() -> None:
        it = bench("ab", how=EAGER)
        it.models["a"].failures = 1
        await it.pool.start()
        assert it.states() == {"a": "out", "b": "in"}
        assert await it.ask("a") == "model_unavailable"
        assert it.recorder.loads == ["a", "b"]
        it.pool.reset("a")
        assert await it.ask("a") == "ok"
        await it.pool.close()

    virtual.run(test())


@pytest.mark.parametrize("chosen", [True, False])
def test_a_model_larger_than_the_memory(chosen: bool) -> None:
    async def test() -> None:
        big = FakeModel("big", Recorder(0), size_bytes=50)
        settings = PoolSettings(memory_bytes=20, chosen=chosen)
        it = Bench(20 if chosen else 50, settings, big=(big, LAZY), a=(None, LAZY))
        await it.pool.start()
        assert await it.ask("a") == "ok"
        assert await it.ask("big") == ("model_unavailable" if chosen else "ok")
        assert it.states() == ({"big": "out", "a": "in"} if chosen else {"big": "in", "a": "out"})
        await it.pool.close()

    virtual.run(test())


def test_what_was_measured_counts_once_it_is_loaded() -> None:
    async def test() -> None:
        recorder = Recorder(40)
        models = [FakeModel(name, recorder) for name in "ab"]
        taken = {"a": 0, "b": 0}
        pool = Pool(
            [entry(model, LAZY) for model in models],
            PoolSettings(memory_bytes=30, chosen=True),
            clock=lambda: asyncio.get_running_loop().time(),
            resident_bytes=lambda model: taken[model.name],
        )
        taken["a"] = 12
        for name in "ab":
            await pool.residents[name].enter("t")
        assert [one.size_bytes for one in pool.residents.values()] == [12, 10]
        taken["b"] = 25
        await asyncio.sleep(20)
        assert [one.place for one in pool.residents.values()] == ["out", "in"], "one grew, and the other had to go"
        await pool.close()

    virtual.run(test())


class Shop:
    """Files that come after three seconds, once `failures` are over."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.fetches = 0

    async def fetch(self) -> None:
        self.fetches += 1
        await asyncio.sleep(3)
        if self.failures:
            self.failures -= 1
            raise FetchFailed("the shop is closed")

    def progress(self) -> tuple[float, float]:
        return 0.5, 3.0


@pytest.mark.parametrize("lazy", [True, False])
def test_files_are_fetched_first(lazy: bool) -> None:
    async def test() -> None:
        recorder, shop = Recorder(10), Shop(failures=1)
        model = FakeModel("a", recorder)
        clock = asyncio.get_running_loop().time
        entries = [entry(model, Residence(lazy=lazy), source=shop)]
        pool = Pool(entries, PoolSettings(memory_bytes=10, chosen=True), clock=clock)
        resident = pool.residents["a"]
        await pool.start()
        assert resident.state == ("sleeping" if lazy else "pulling")
        with pytest.raises(ModelUnavailable, match="cannot be fetched") as told:
            await resident.enter("t")
        assert (clock(), told.value.retry_after_s) == (3, 5)
        assert (resident.state, resident.trouble) == ("failed", "the shop is closed")
        await asyncio.sleep(5.2)
        await resident.enter("t")
        assert (shop.fetches, recorder.loads, resident.trouble) == (2, ["a"], None)
        await pool.close()

    virtual.run(test())


def test_what_nobody_expected_of_a_file_is_tried_again_later_too(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        looks: list[float] = []
        clock = asyncio.get_running_loop().time

        async def look() -> Need:
            looks.append(clock())
            raise ZeroDivisionError

        model = FakeModel("a", Recorder(10))
        broken = Entry(model=model, look=look, how=Residence(lazy=True), source=Shop())
        pool = Pool([broken], PoolSettings(memory_bytes=10, chosen=True), clock=clock)
        await pool.start()
        with pytest.raises(ModelUnavailable, match="cannot be fetched"):
            await pool.residents["a"].enter("t")
        pool.load("a")
        await asyncio.sleep(9)
        assert len(looks) == 2 and looks[1] - looks[0] > 5
        await pool.close()

    virtual.run(test())
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("seed", range(12))
def test_nothing_goes_wrong_whatever_happens(seed: int) -> None:
    """The recorder raises on running out of memory, a second load, or an eviction of a busy model."""

    async def test() -> None:
        draw = random.Random(seed)
        sizes = {name: draw.randint(3, 12) for name in "abcde"}
        models = {
            name: (
                FakeModel(name, Recorder(0), size, draw.choice([0.2, 1.0, 4.0])),
                Residence(lazy=draw.random() < 0.5, priority=draw.randint(0, 1), ttl_s=draw.choice([None, 5.0])),
            )
            for name, size in sizes.items()
        }
        it = Bench(draw.randint(12, 26), **models)  # type: ignore[arg-type]
        it.models["e"].failures = draw.randint(0, 1)
        starting = asyncio.create_task(it.pool.start())
        asked = []
        for _ in range(300):
            await asyncio.sleep(draw.choice([0, 0.01, 0.3, 2.0]))
            asked.append(asyncio.create_task(it.ask(draw.choice("abcde"), draw.choice([0, 0.1, 3.0]))))
            if draw.random() < 0.05:
                draw.choice(asked).cancel()
            if draw.random() < 0.03:
                name = draw.choice("abcde")
                draw.choice([it.pool.unload, it.pool.load, it.pool.sleep, it.pool.reset])(name)
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(end, str | asyncio.CancelledError) for end in ends), "everybody is served or refused"
        assert ends.count("ok") > 50
        await starting
        await it.pool.close()
        assert it.recorder.taken == {}

    virtual.run(test())


def test_open_adapter_builds_without_starting() -> None:
    async def test() -> None:
        adapter = open_adapter("name", "m.gguf", EngineSettings(), queue_depth_max=3)
        assert (adapter.name, adapter.status().state) == ("name", "stopped")
        assert adapter.card.context_tokens is None
        await adapter.close()

    run(test)
