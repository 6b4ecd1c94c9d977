from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest

from gateway.config_limits import BudgetConfig, LimitsConfig, RuleConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.ledger import Durable
from gateway.limits.book import Ask, Grant, Missing, Refusal
from gateway.limits.limiter import Balance, Limiter, Need, Reservation
from gateway.limits.shared import SharedCounters
from gateway.state.memory import Memory
from gateway.state.shared import Argument, Reply, Script, SharedStateUnavailable, Under
from tests.gateway.limits.test_limiter import PRICE, START_US, who

BUDGET = ScopeLimits(budgets=(BudgetConfig(usd="0.000000100", period="total", alert_percents=(50,)),))


class Fragile:
    """Shared state that can be taken away, lose everything, and be slow."""

    def __init__(self) -> None:
        self.inner = Memory()
        self.epochs = 1
        self.away = False
        self.slow: asyncio.Event | None = None
        self.later: asyncio.Event | None = None

    @property
    def epoch(self) -> str | None:
        return f"{self.epochs}"

    @property
    def degraded(self) -> bool:
        return self.away

    def lose(self) -> None:
        self.inner = Memory()
        self.epochs += 1

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
    ) -> Reply:
        if patient and self.later is not None:
            await self.later.wait()
        if self.away:
            raise SharedStateUnavailable("away")
        reply = await self.inner.run(script, keys, arguments)
        if self.slow is not None:
            await self.slow.wait()
        return reply

    async def get(self, key: str) -> bytes | None:
        return await self.inner.get(key)

    async def set(self, key: str, value: bytes, ttl_s: float, *, only_new: bool = False) -> bool:
        return await self.inner.set(key, value, ttl_s, only_new=only_new)

    async def publish(self, channel: str, message: bytes) -> None: ...

    def listen(self, channel: str, listener: Callable[[bytes | None], None]) -> Callable[[], None]:
        return lambda: None

    async def close(self) -> None: ...


class Replica:
    """One of several gateways over the same shared state and ledger."""

    def __init__(self, shared: Fragile, debits: dict[str, int], rules: tuple[RuleConfig, ...] = ()) -> None:
        self.counters = SharedCounters(shared, 2, lambda: START_US, grace_s=0, look_again_s=0)
        self.debits = debits
        self.alerts: list[int] = []
        self.number = 0
        self.limiter = Limiter(
            LimitsConfig(rules=rules),
            self.counters,
            self.read,
            now_us=lambda: START_US,
            steady_us=lambda: START_US,
            alert=lambda alert: self.alerts.append(alert.percent),
        )

    async def read(self, accounts: Sequence[str]) -> dict[str, Balance]:
        return {account: Balance(self.debits.get(account, 0)) for account in accounts}

    async def reserve(self, tokens: int, limits: ScopeLimits | None = BUDGET) -> Reservation | Refusal:
        self.number += 1
        plan = self.limiter.plan(who(limits=limits), "m")
        return await self.limiter.reserve(f"{id(self)}-{self.number}", plan, Need(tokens), PRICE)

    async def hold(self, tokens: int, limits: ScopeLimits | None = BUDGET) -> Reservation:
        reservation = await self.reserve(tokens, limits)
        assert isinstance(reservation, Reservation), reservation
        return reservation

    def settle(self, reservation: Reservation, nano: int) -> None:
        """The entry becomes durable, and then the counters learn of it."""
        for account in reservation.grant.accounts:
            self.debits[account] = self.debits.get(account, 0) + nano
        done = Durable()
        done.reach()
        self.limiter.settle(reservation, nano, nano, done)


def run(scenario: Callable[[Fragile, Replica, Replica], Coroutine[Any, Any, None]], *rules: RuleConfig) -> None:
    async def inside() -> None:
        shared, debits = Fragile(), dict[str, int]()
        first, second = Replica(shared, debits, rules), Replica(shared, debits, rules)
        await scenario(shared, first, second)
        for one in (first, second):
            shared.away, shared.slow = False, None
            await one.counters.close()

    asyncio.run(inside())


async def quiet(replica: Replica) -> None:
    while tasks := replica.counters._tasks:
        await asyncio.wait(tasks)
        await asyncio.sleep(0)


def test_replicas_share_a_budget() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        reservation = await first.hold(70)
        busy = await second.reserve(31)
        assert isinstance(busy, Refusal) and busy.retry_us == 1_000_000
        first.settle(reservation, 60)
        await quiet(first)
        assert (first.alerts, first.counters.holds) == ([50], 0)
        await second.hold(40)
        assert isinstance(await first.reserve(1), Refusal)

    run(scenario)


def test_what_has_ended_at_another_replica_refuses_nobody() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        later = shared.later = asyncio.Event()
        limits = ScopeLimits(concurrent_requests=1)
        first.settle(await first.hold(1, limits), 0)
        decide, refusals = second.counters._decide, list[object]()

        async def noting(ask: Ask) -> Grant | Refusal | Missing:
            decision = await decide(ask)
            if isinstance(decision, Refusal):
                refusals.append(decision)
                later.set()
                await quiet(first)
            return decision

        second.counters._decide = noting  # type: ignore[method-assign]
        await second.hold(1, limits)
        assert len(refusals) == 1
        assert isinstance(await first.reserve(1, limits), Refusal), "asked twice, it is still held"

    run(scenario)


def test_what_waits_to_be_settled_is_settled_at_the_end() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        shared.later = asyncio.Event()
        reservation = await first.hold(60)
        first.settle(reservation, 10)
        closing = asyncio.create_task(first.counters.close())
        await asyncio.sleep(0)
        shared.later.set()
        await closing
        assert first.counters.holds == 0
        await second.hold(90)

    run(scenario)


def test_while_the_counters_are_away_money_is_not_spent_and_rates_are_shared_out() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        limits = ScopeLimits(requests_per_minute=6, concurrent_requests=4)
        shared.away = True
        with pytest.raises(GatewayError) as refused:
            await first.reserve(1)
        assert (refused.value.status, refused.value.code) == (503, "budget_unavailable")
        held = [await first.hold(1, limits) for _ in range(2)]
        refusal = await first.reserve(1, limits)
        assert isinstance(refusal, Refusal) and (refusal.kind, refusal.limit) == ("concurrency", 2)
        first.settle(held[0], 0)
        await first.hold(1, limits)
        first.settle(held[1], 0)
        refusal = await first.reserve(1, limits)
        assert isinstance(refusal, Refusal) and (refusal.kind, refusal.limit) == ("requests", 3)
        shared.away = False
        first.counters._notice()
        await quiet(first)
        assert len([await second.hold(1, limits) for _ in range(3)]) == 3
        refusal = await second.reserve(1, limits)
        assert isinstance(refusal, Refusal) and (refusal.kind, refusal.limit) == ("requests", 6)

    run(scenario)


@pytest.mark.parametrize("lost", [False, True])
def test_an_outage_gives_nobody_a_window_twice(lost: bool) -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        limits = ScopeLimits(requests_per_minute=10, tokens_per_minute=1000)
        for replica in (first, second):
            replica.settle(await replica.hold(400, limits), 100)
            for _ in range(3):
                await replica.hold(1, limits)
            await quiet(replica)
        shared.away = True
        for replica in (first, second):
            await replica.hold(397, limits)
            for tokens in (1, 500):
                refusal = await replica.reserve(tokens, limits)
                assert isinstance(refusal, Refusal) and refusal.remaining == 0
        shared.away = False
        if lost:
            shared.lose()
        for replica in (first, second):
            replica.counters._notice()
            await quiet(replica)
        refusal = await first.reserve(1, limits)
        assert isinstance(refusal, Refusal) and refusal.requests_room is not None and refusal.tokens_room is not None
        assert (refusal.requests_room.limit, refusal.requests_room.remaining) == (10, 0)
        assert (refusal.tokens_room.limit, refusal.tokens_room.remaining) == (1000, 0)

    run(scenario)


def test_until_all_have_told_what_they_let_in_each_keeps_to_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        limits = ScopeLimits(requests_per_minute=10)
        await first.hold(1, limits)
        first.counters._grace_us = 1
        shared.away = True
        for _ in range(4):
            await second.hold(1, limits)
        shared.away = False
        shared.lose()
        for _ in range(4):
            await first.hold(1, limits)
        refusal = await first.reserve(1, limits)
        assert isinstance(refusal, Refusal) and refusal.limit == 5, "the second has not told of its four yet"
        second.counters._notice()
        await quiet(second)
        first.counters._careful_until_us = 0
        await first.hold(1, limits)
        refusal = await first.reserve(1, limits)
        assert isinstance(refusal, Refusal) and refusal.limit == 10

    run(scenario)


def test_a_settlement_waits_for_the_counters_to_come_back() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        reservation = await first.hold(100)
        shared.away = True
        first.settle(reservation, 30)
        await asyncio.sleep(0.01)
        assert first.counters.holds == 1
        shared.away = False
        await quiet(first)
        await second.hold(70)
        assert isinstance(await second.reserve(1), Refusal)

    run(scenario)


def test_lost_counters_come_back_from_the_ledger_and_from_who_still_runs() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        done, running = await first.hold(20), await second.hold(50)
        first.settle(done, 20)
        await quiet(first)
        shared.lose()
        for one in (first, second):
            one.counters._notice()
            await quiet(one)
        assert isinstance(await first.reserve(31), Refusal), "20 are spent and 50 are still held"
        await first.hold(30)
        second.settle(running, 10)
        await quiet(second)
        await first.hold(40)
        assert isinstance(await first.reserve(1), Refusal)

    run(scenario)


def test_what_is_charged_while_an_account_is_read_is_not_lost() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        running = await first.hold(60)
        shared.lose()
        read = second.read

        async def read_and_wait(accounts: Sequence[str]) -> dict[str, Balance]:
            found = await read(accounts)
            if running.grant.id in first.counters._live:
                first.settle(running, 60)
                await quiet(first)
            return found

        second.limiter._balances = read_and_wait
        assert isinstance(await second.reserve(41), Refusal), "60 of 100 are spent"
        assert isinstance(await second.reserve(40), Reservation)

    run(scenario)


def test_a_caller_who_gives_up_holds_nothing() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        await first.hold(1)
        shared.slow = asyncio.Event()
        asking = asyncio.create_task(first.reserve(99))
        for _ in range(5):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        shared.slow.set()
        await quiet(first)
        await second.hold(99)

    run(scenario)


def test_nothing_is_loaded_within_the_grace_after_a_loss() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        now_us = [START_US]
        counters = SharedCounters(shared, 2, lambda: now_us[0], grace_s=0.01)
        waiting = asyncio.create_task(counters.ready(["a"]))
        await asyncio.sleep(0.02)
        assert not waiting.done(), "its clock stands still"
        now_us[0] += 10_000
        await waiting

    run(scenario)


def test_holds_that_ran_out_during_an_outage_are_held_again() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        now_us = 1_700_000_000_000_000
        shared.inner = Memory(now_us=lambda: now_us)
        running = await first.hold(60)
        shared.away = True
        first.counters._notice()
        now_us += 600_000_000
        shared.away = False
        first.counters._notice()
        await quiet(first)
        assert isinstance(await second.reserve(41), Refusal), "60 of 100 are still held"
        first.settle(running, 10)
        await quiet(first)
        assert isinstance(await second.reserve(90), Reservation)

    run(scenario)


def test_a_watcher_holds_again_without_being_asked() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        reservation = await first.hold(60)
        first.counters.start()
        shared.lose()
        await asyncio.sleep(0)
        await quiet(first)
        assert isinstance(await second.reserve(41), Refusal)
        assert msgspec.structs.asdict(reservation.grant)["nano"] == 60

    run(scenario)


def test_what_still_runs_is_renewed() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        now_us = [START_US]
        first.counters._steady_us = lambda: now_us[0]
        await first.hold(60)
        seen: list[str] = []
        run_script = shared.run

        async def noting(
            script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool = False
        ) -> Reply:
            seen.append(script.name)
            return await run_script(script, keys, arguments)

        shared.run = noting  # type: ignore[method-assign]
        await first.counters._renew()
        assert seen == []
        now_us[0] += 60_000_000
        await first.counters._renew()
        await first.counters._renew()
        assert seen == ["limits-renew"]

    run(scenario)


def test_a_charge_that_the_loaded_balance_has_already_is_not_counted_twice() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        held, other = await first.hold(30), await first.hold(20)
        shared.lose()
        first.counters._notice()
        await quiet(first)
        for account in held.grant.accounts:
            first.debits[account] = 30  # Durable, and not yet told to the counters.
        loading = await second.hold(20)
        first.debits.clear()
        first.settle(held, 30)
        await quiet(first)
        first.settle(other, 20)
        second.settle(loading, 20)
        await quiet(first)
        await quiet(second)
        await second.hold(30)
        assert isinstance(await first.reserve(1), Refusal)

    run(scenario)


def test_a_charge_that_comes_between_reading_a_balance_and_loading_it_is_not_lost() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        held = await first.hold(60)
        shared.lose()
        first.counters._notice()
        await quiet(first)
        read, reads = second.read, 0

        async def late(accounts: Sequence[str]) -> dict[str, Balance]:
            nonlocal reads
            reads += 1
            balances = await read(accounts)
            if reads == 1:
                first.settle(held, 60)
                await quiet(first)
            return balances

        second.limiter._balances = late
        assert isinstance(await second.reserve(41), Refusal)
        assert reads == 2
        await second.hold(40)

    run(scenario)


def test_accounts_of_another_money_epoch_begin_with_what_the_database_says() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        first.settle(await first.hold(60), 60)
        await quiet(first)
        second.counters = SharedCounters(Under(shared, "later:"), 2, lambda: START_US, grace_s=0)
        second.limiter._counters = second.counters
        first.debits.clear()
        second.settle(await second.hold(100), 10)
        await quiet(second)
        await second.hold(90)
        assert isinstance(await second.reserve(1), Refusal)

    run(scenario)


def test_no_account_is_opened_while_entries_that_lost_counters_knew_are_not_in_the_ledger() -> None:
    async def scenario(shared: Fragile, first: Replica, second: Replica) -> None:
        complete = [True]
        first.counters._complete = lambda: complete[0]
        first.settle(await first.hold(60), 60)
        await quiet(first)
        spent = dict(first.debits)
        first.debits.clear()  # The charge is in the outbox of the first replica.
        complete[0] = False
        await first.counters._warn()
        assert isinstance(await second.reserve(41), Refusal), "the counters know it"
        shared.lose()
        for one in (first, second):
            one.counters._notice()
            await one.counters._warn()
            await quiet(one)
        with pytest.raises(GatewayError) as refused:
            await second.reserve(1)
        assert refused.value.code == "budget_unavailable"
        first.debits.update(spent)
        complete[0] = True
        await first.counters._warn()
        shared.inner = Memory()  # What it said has run out.
        await second.hold(40)
        assert isinstance(await second.reserve(1), Refusal)

    run(scenario)
