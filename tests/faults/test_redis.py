"""Shared state while its server is killed, stalled, slow, emptied or wrong: calls fail, and it comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis as Client
from redis.exceptions import ResponseError

from gateway.state.redis import Redis, open_redis, server_facts
from gateway.state.shared import Script, SharedStateLost, SharedStateMisused, SharedStateUnavailable
from tests.conformance.test_shared_state import ADD, READ
from tests.stores import Valkey

BACK_S_MAX = 10
# A machine that runs other suites beside it may stand still for half a second.
TIMEOUT_S = 1.5
ARGUMENTS = (1, 1000, 60_000)


def with_redis(work: Callable[[Redis, Valkey], Awaitable[None]], *arguments: str) -> None:
    with Valkey(*arguments) as server:

        async def run() -> None:
            state = await open_redis(server.url, timeout_s=TIMEOUT_S)
            try:
                await work(state, server)
            finally:
                await state.close()

        asyncio.run(run())


async def command(server: Valkey, *words: str) -> None:
    client = Client.from_url(server.url)
    await client.execute_command(*words)  # type: ignore[no-untyped-call]
    await client.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BACK_S_MAX):
        while not condition():  # noqa: ASYNC110 - the condition is another process's.
            await asyncio.sleep(0.01)


def test_killed_and_restarted_empty() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        heard: list[bytes | None] = []
        state.listen("x", heard.append)
        epoch = state.epoch
        assert await state.run(ADD, ["a"], ARGUMENTS) == [1]
        server.kill()
        await until(lambda: state.degraded)
        for call in (state.run(ADD, ["a"], ARGUMENTS), state.get("a"), state.set("a", b"", 1), state.publish("x", b"")):
            with pytest.raises(SharedStateUnavailable):
                await call
        server.start()
        await until(lambda: not state.degraded)
        assert state.epoch != epoch
        assert await state.run(ADD, ["a"], ARGUMENTS) == [1]
        assert heard == [None], "who listens learns that messages may have been missed"
        await state.publish("x", b"again")
        await until(lambda: heard == [None, b"again"])

    with_redis(work)


def test_stalled_and_woken() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        epoch = state.epoch
        assert await state.run(ADD, ["a"], ARGUMENTS) == [1]
        server.stall()
        replies = await asyncio.gather(*(state.run(ADD, ["a"], ARGUMENTS) for _ in range(20)), return_exceptions=True)
        assert {type(reply) for reply in replies} == {SharedStateUnavailable}
        assert state.degraded
        with pytest.raises(SharedStateUnavailable):
            await state.run(ADD, ["a"], ARGUMENTS)
        server.go_on()
        await until(lambda: not state.degraded)
        assert state.epoch == epoch, "nothing was lost"
        assert (await state.run(ADD, ["a"], ARGUMENTS))[0] in (2, 22), "whether calls took effect was unknown"

    with_redis(work)


def test_an_idle_connection_to_a_stalled_server_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.state.redis.QUIET_S", 0.1)

    async def work(state: Redis, server: Valkey) -> None:
        await asyncio.sleep(0.5)
        assert not state.degraded, "a server that answers pings is there"
        server.stall()
        await until(lambda: state.degraded)
        server.go_on()
        await until(lambda: not state.degraded)

    with_redis(work)


def test_slow_answers_reach_the_callers_they_belong_to() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        await command(server, "CLIENT", "PAUSE", "200", "ALL")
        tasks = [asyncio.ensure_future(state.run(ADD, [f"{i}"], (i, 1000, 60_000))) for i in range(1, 50)]
        await asyncio.sleep(0.05)
        for task in tasks[::3]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert [reply for reply in replies if isinstance(reply, list)] == [[i] for i in range(1, 50) if i % 3 != 1]
        assert not state.degraded

    with_redis(work)


def test_emptied_while_connected() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        epoch = state.epoch
        await state.run(ADD, ["a"], ARGUMENTS)
        await command(server, "FLUSHALL")
        with pytest.raises(SharedStateLost):
            await state.run(ADD, ["a"], ARGUMENTS)
        await until(lambda: not state.degraded)
        assert state.epoch != epoch
        assert await state.run(ADD, ["a"], ARGUMENTS) == [1]

    with_redis(work)


def test_a_restart_with_an_old_snapshot_is_a_new_epoch_too() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        epoch = state.epoch
        await state.run(ADD, ["a"], ARGUMENTS)
        await command(server, "SAVE")
        await state.run(ADD, ["a"], ARGUMENTS)
        server.kill()
        server.start()
        await until(lambda: not state.degraded and state.epoch != epoch)
        assert await state.run(READ, ["a"], []) == []

    with_redis(work)


def test_scripts_that_the_server_has_forgotten_are_sent_again() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        assert await state.run(ADD, ["a"], ARGUMENTS) == [1]
        await command(server, "SCRIPT", "FLUSH")
        assert await state.run(ADD, ["a"], ARGUMENTS) == [2]

    with_redis(work)


def test_a_step_that_fails_leaves_those_alone_that_travel_with_it() -> None:
    broken = Script("test.broken", 1, "return redis.call('NOSUCH')", ADD.step)

    async def work(state: Redis, server: Valkey) -> None:
        calls = [state.run(script, ["a"], ARGUMENTS) for script in (ADD, broken, ADD)]
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, third) == ([1], [2])
        assert isinstance(second, ResponseError)
        assert not state.degraded

    with_redis(work)


@pytest.mark.parametrize("calls", [1, 100, 101, 250])
def test_calls_of_one_moment_are_one_command_of_bounded_length(calls: int) -> None:
    async def work(state: Redis, server: Valkey) -> None:
        client = Client.from_url(server.url)
        await client.config_resetstat()
        replies = await asyncio.gather(*(state.run(ADD, ["a"], ARGUMENTS) for _ in range(calls)))
        assert replies == [[number] for number in range(1, calls + 1)]
        stats = await client.info("commandstats")
        assert sum(one["calls"] for name, one in stats.items() if "eval" in name) == -(-calls // 100)
        await client.aclose()

    with_redis(work)


def test_patient_calls_run_before_the_one_they_travel_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.state.redis_trips.PATIENCE_S", 3600.0)

    async def work(state: Redis, server: Valkey) -> None:
        patient = [state.run(ADD, ["a"], ARGUMENTS, patient=True) for _ in range(2)]
        await asyncio.sleep(0.05)
        last = state.run(ADD, ["a"], ARGUMENTS)
        patient.append(state.run(ADD, ["a"], ARGUMENTS, patient=True))
        assert await last == [4]
        assert await asyncio.gather(*patient) == [[1], [2], [3]]

    with_redis(work)


def test_replicas_agree_on_the_epoch_and_hear_each_other() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        other = await open_redis(server.url)
        try:
            assert other.epoch == state.epoch
            assert await state.run(ADD, ["a"], ARGUMENTS) == [1]
            assert await other.run(ADD, ["a"], ARGUMENTS) == [2]
            heard: list[bytes | None] = []
            other.listen("x", heard.append)
            await state.publish("x", b"hello")
            await until(lambda: heard == [b"hello"])
        finally:
            await other.close()

    with_redis(work)


def test_memory_that_is_full_is_an_outage_and_no_eviction() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        await state.run(ADD, ["a"], ARGUMENTS)
        await command(server, "CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(SharedStateUnavailable, match="maxmemory"):
            await state.run(ADD, ["a"], ARGUMENTS)
        await command(server, "CONFIG", "SET", "maxmemory", "0")
        assert await state.run(ADD, ["a"], ARGUMENTS) == [2]

    with_redis(work)


def test_a_server_that_becomes_a_replica_is_left() -> None:
    async def work(state: Redis, server: Valkey) -> None:
        await state.run(ADD, ["a"], ARGUMENTS)
        await command(server, "REPLICAOF", "127.0.0.1", "9")
        with pytest.raises(SharedStateUnavailable):
            await state.run(ADD, ["a"], ARGUMENTS)
        await until(lambda: state.degraded)
        await command(server, "REPLICAOF", "NO", "ONE")
        await until(lambda: not state.degraded)
        assert (await state.run(ADD, ["a"], ARGUMENTS))[0] in (1, 2)

    with_redis(work)


def test_a_server_that_is_away_at_the_start_is_found_later() -> None:
    with Valkey() as server:
        server.kill()

        async def run() -> None:
            state = await open_redis(server.url, timeout_s=TIMEOUT_S)
            try:
                assert state.degraded
                with pytest.raises(SharedStateUnavailable):
                    await state.get("a")
                server.start()
                await until(lambda: not state.degraded)
                assert await state.get("a") is None
            finally:
                await state.close()

        asyncio.run(run())


def refused(url: str) -> str:
    async def run() -> str:
        with pytest.raises(SharedStateMisused) as caught:
            await open_redis(url, timeout_s=TIMEOUT_S)
        return str(caught.value)

    return asyncio.run(run())


def test_a_server_that_evicts_is_refused() -> None:
    with Valkey("--maxmemory-policy", "allkeys-lru") as server:
        assert "maxmemory-policy allkeys-lru" in refused(server.url)


@pytest.mark.parametrize("url", ["redis://h:hidden/0", "redis://h/0?db=hidden"])
def test_what_is_no_address_is_refused_and_not_shown(url: str) -> None:
    assert "no address" in refused(url)
    assert "hidden" not in refused(url)


def test_a_wrong_password_is_refused_and_not_shown() -> None:
    with Valkey("--requirepass", "right-password") as server:
        url = f"redis://:wrong-hidden@127.0.0.1:{server.port}/0"
        assert "refuses to let the gateway in" in refused(url)
        assert "hidden" not in refused(url)
        facts = asyncio.run(server_facts(f"redis://:right-password@127.0.0.1:{server.port}/0", timeout_s=5))
        assert (facts.policy, facts.replica) == ("noeviction", False)
        assert abs(facts.clock_ahead_s) < 5
