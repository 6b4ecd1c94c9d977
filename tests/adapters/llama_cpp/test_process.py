"""A supervised worker process: starting, dying in every way, restarting, stopping."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from adapters.errors import ModelLoading, ModelUnavailable
from adapters.llama_cpp.messages import Delta, EngineSettings, Inspect, Prepare, Prepared, Start, TextPrompt
from adapters.llama_cpp.process import Answer, Timing, Worker, restart_delay_s, worker_environment

FAKE = str(Path(__file__).with_name("fake_worker.py"))
PATIENCE_S = 20.0

RunLoop = Callable[[Coroutine[Any, Any, None]], None]


def argv(scenario: str) -> tuple[str, ...]:
    return sys.executable, "-P", FAKE, scenario


class Clock:
    """Time that passes only in sleeps, which are over at once; `gate` holds them back."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []
        self.asleep = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        self.asleep.set()
        await self.gate.wait()
        self.now_s += delay_s


class Listener:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.answers: list[Answer] = []
        self.lost_because: str | None = None
        self.heard = asyncio.Event()

    def delta(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.heard.set()

    def answer(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.heard.set()

    def lost(self, reason: str) -> None:
        self.lost_because = reason
        self.heard.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.heard.clear()
            await self.heard.wait()


async def wait_for_state(worker: Worker, *states: str) -> None:
    while worker.state not in states:
        await worker._changed.wait()


def run(test: Callable[[], Awaitable[None]], run_loop: RunLoop = asyncio.run) -> None:
    """Run a test with a bound on its time, and check that it leaves no process and no descriptor behind."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    # libuv keeps a pipe for signals from its first loop on.
    uvloop.run(asyncio.sleep(0))
    before = len(list(Path("/proc/self/fd").iterdir())), children()
    run_loop(bounded())
    assert (len(list(Path("/proc/self/fd").iterdir())), children()) == before


def children() -> set[str]:
    """The processes that this one has started, which may be those of fixtures that tests share."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile; its children go to another one.
        with suppress(FileNotFoundError, ProcessLookupError):
            found.update((task / "children").read_text().split())
    return found


def new_worker(scenario: str, timing: Timing | None = None) -> Worker:
    return Worker("model.gguf", EngineSettings(), argv=argv(scenario), timing=timing)


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run])
def test_loads_answers_and_stops(run_loop: RunLoop) -> None:
    async def test() -> None:
        worker = new_worker("plain")
        with pytest.raises(ModelUnavailable):
            worker.register(Listener())
        worker.start()
        with pytest.raises(ModelLoading) as loading:
            worker.register(Listener())
        assert loading.value.retry_after_s is not None
        await worker.settled()
        assert (worker.state, worker.progress) == ("ready", 1.0)
        assert worker.info is not None
        listener = Listener()
        number = worker.register(listener)
        worker.send(Prepare(number, "a", TextPrompt("say 2 hi")))
        await listener.until(lambda: bool(listener.answers))
        assert listener.answers == [Prepared(number, 3, 100)]
        worker.send(Start(number))
        await listener.until(lambda: len(listener.deltas) == 2)
        assert [delta.text for delta in listener.deltas] == [" hi", " hi"]
        assert worker.busyness is not None
        await worker.stop()
        assert worker.state == "stopped"
        assert listener.lost_because is not None
        with pytest.raises(ModelUnavailable):
            worker.register(Listener())

    run(test, run_loop)


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run])
def test_a_crash_tells_everybody_at_once_and_restarts(run_loop: RunLoop) -> None:
    async def test() -> None:
        clock = Clock()
        worker = new_worker("plain", Timing(clock=clock, sleep=clock.sleep))
        worker.start()
        await worker.settled()
        first_pid = worker.pid
        running, waiting = Listener(), Listener()
        number = worker.register(running)
        worker.register(waiting)
        worker.send(Prepare(number, "a", TextPrompt("crash")))
        worker.send(Start(number))
        await running.until(lambda: running.lost_because is not None)
        assert len(running.deltas) == 2
        assert waiting.lost_because is not None
        with pytest.raises(ModelLoading):
            worker.register(Listener())
        await wait_for_state(worker, "ready")
        assert worker.pid != first_pid
        assert (worker.restarts, clock.slept_s) == (1, [])
        assert worker.register(Listener()) > number
        await worker.stop()

    run(test, run_loop)


def test_crashes_in_a_row_are_backed_off_and_a_stable_run_resets() -> None:
    async def test() -> None:
        clock = Clock()
        worker = new_worker("plain", Timing(clock=clock, sleep=clock.sleep))
        worker.start()
        for lived_s in (0.0, 0.0, 0.0, 0.0, 60.0, 0.0):
            await wait_for_state(worker, "ready")
            clock.now_s += lived_s
            listener = Listener()
            worker.send(Inspect(worker.register(listener), TextPrompt("crash")))
            await listener.until(lambda heard=listener: heard.lost_because is not None)  # type: ignore[misc]
        await wait_for_state(worker, "ready")
        assert clock.slept_s == [0.5, 1.0, 2.0, 0.5]
        await worker.stop()

    run(test)


def test_the_delays_grow_to_half_a_minute() -> None:
    assert [restart_delay_s(failures) for failures in range(1, 10)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert restart_delay_s(10_000) == 30


def test_an_invalid_model_is_not_tried_again() -> None:
    async def test() -> None:
        worker = new_worker("invalid")
        worker.start()
        await wait_for_state(worker, "failed")
        with pytest.raises(ModelUnavailable) as refusal:
            worker.register(Listener())
        assert refusal.value.code == "model_invalid"
        assert (worker.reason or "").endswith("not a GGUF file"), "that the process ended well is no part of it"
        assert worker.restarts == 0
        await worker.stop()

    run(test)


def test_a_file_that_crashes_every_load_is_invalid(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        clock = Clock()
        worker = new_worker("crash-load", Timing(clock=clock, sleep=clock.sleep))
        worker.start()
        await wait_for_state(worker, "failed")
        error = worker.unavailable()
        assert error is not None
        assert error.code == "model_invalid"
        assert "SIGABRT" in (worker.reason or "")
        assert "about to \\x1b[31mdie" in (worker.reason or ""), "the last words are kept, escaped"
        assert "a worker says: about to \\x1b[31mdie" in caplog.messages
        assert worker.restarts == 2
        await worker.stop()

    run(test)


def test_three_failed_loads_in_five_minutes_are_enough_until_a_reset() -> None:
    async def test() -> None:
        clock = Clock()
        worker = new_worker("no-memory", Timing(clock=clock, sleep=clock.sleep))
        worker.start()
        await worker.settled()
        assert worker.state == "restarting"
        assert isinstance(worker.unavailable(), ModelLoading)
        await worker.decided()
        assert (worker.state, worker.restarts) == ("failed", 2)
        error = worker.unavailable()
        assert isinstance(error, ModelUnavailable)
        assert (error.code, error.retry_after_s) == ("model_unavailable", None)
        assert "too big" in (worker.reason or "")
        await worker.stop()
        worker.reset()
        worker.start()
        await worker.settled()
        assert worker.state == "restarting"
        await worker.stop()

    run(test)


def test_failed_loads_that_lie_far_apart_do_not_add_up() -> None:
    async def test() -> None:
        clock = Clock()
        clock.gate.clear()
        worker = new_worker("no-memory", Timing(clock=clock, sleep=clock.sleep))
        worker.start()
        for _ in range(4):
            clock.asleep.clear()
            await clock.asleep.wait()
            clock.now_s += 400
            clock.gate.set()
            await asyncio.sleep(0)
            clock.gate.clear()
        assert worker.state == "restarting"
        await worker.stop()

    run(test)


@pytest.mark.parametrize("scenario", ["garbage", "huge"])
def test_garbage_ends_a_life(scenario: str) -> None:
    async def test() -> None:
        clock = Clock()
        clock.gate.clear()
        worker = new_worker(scenario, Timing(clock=clock, sleep=clock.sleep))
        worker.start()
        await clock.asleep.wait()
        assert "garbage" in (worker.reason or "")
        assert isinstance(worker.unavailable(), ModelLoading)
        await worker.stop()
        assert worker.state == "stopped"

    run(test)


def test_a_worker_that_never_answers_is_replaced() -> None:
    async def test() -> None:
        worker = new_worker("silent", Timing(silence_s=0.2))
        worker.start()
        await worker.settled()
        assert worker.state == "restarting"
        assert "silent" in (worker.reason or "")
        await worker.stop()

    run(test)


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run])
def test_a_stubborn_worker_is_killed(run_loop: RunLoop) -> None:
    async def test() -> None:
        worker = new_worker("stubborn", Timing(exit_wait_s=0.1, terminate_wait_s=0.1))
        worker.start()
        await worker.settled()
        pid = worker.pid
        assert pid is not None
        await worker.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(test, run_loop)


def test_an_executable_that_is_not_there() -> None:
    async def test() -> None:
        clock = Clock()
        clock.gate.clear()
        worker = Worker(
            "model.gguf",
            EngineSettings(),
            argv=["/nonexistent/python"],
            timing=Timing(clock=clock, sleep=clock.sleep),
        )
        worker.start()
        await clock.asleep.wait()
        assert "could not be started" in (worker.reason or "")
        await worker.stop()

    run(test)


def test_stopping_in_the_middle_of_a_load() -> None:
    async def test() -> None:
        worker = new_worker("silent")
        worker.start()
        await asyncio.sleep(0)
        await worker.stop()
        assert worker.state == "stopped"

    run(test)


def test_a_worker_sees_almost_nothing_of_the_environment() -> None:
    seen = worker_environment({"LD_LIBRARY_PATH": "/lib", "GATEWAY_ADMIN_KEY": "secret", "HOME": "/root"})
    assert seen.keys() <= {"GGML_NO_BACKTRACE", "GLIBC_TUNABLES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PYTHONPATH"}
    assert worker_environment({}).get("OMP_NUM_THREADS") == "1" and "LD_LIBRARY_PATH" not in worker_environment({})
