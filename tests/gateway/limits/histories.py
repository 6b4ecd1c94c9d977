"""Random histories of admissions and ends, to hold implementations of the limiter's counters against each other."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import strategies as st

from gateway.limits.book import (
    Ask,
    Book,
    Budget,
    Charged,
    Gate,
    Grant,
    Missing,
    NotHeld,
    Rate,
    Refusal,
)
from gateway.limits.orphans import BEFORE_US, DEAD_US, Charge, Orphans
from gateway.limits.scripts import ADMIT, LOAD, MINUTE_US, RENEW, SETTLE, TELL
from gateway.limits.shared import _arguments, _decision, _keys, _settle_arguments
from gateway.limits.windows import durable_account
from gateway.state.shared import Reply, SharedState

START_US = 1_700_000_000_000_000
HOLD_US = 5 * MINUTE_US

Outcome = Grant | Refusal | Missing | tuple[Charged, ...] | None


class Step(msgspec.Struct, frozen=True):
    """After `wait_us`: a request, or the end of the one `ends` steps ago."""

    wait_us: int
    ask: Ask | None
    ends: int = 0
    tokens: int = 0
    nano: int = 0


RATES = (
    Rate("r1", "requests", 3, 60_000_000),
    Rate("r2", "requests", 5, 7_000_001),
    Rate("t1", "tokens", 120, 60_000_000),
    Rate("t2", "tokens", 200, 3_600_000_000),
    Rate("r3", "requests", 4, 86_400_000_000, START_US + 200_000_000),
    Rate("t3", "tokens", 150, 86_400_000_000, START_US + 100_000_000),
)
GATES = (Gate("g1", 2), Gate("g2", 0))
BUDGETS = (
    Budget("a1", 400),
    Budget("a2", 100),
    Budget("a4", 150, 60_000_000),
    Budget("a5", 90, 7_000_001),
    Budget("a3", 0),
)
LOADED = {"a4": {START_US // 1_000_000 - 50: 6, START_US // 1_000_000: 4}}


def _some(items: tuple[object, ...]) -> st.SearchStrategy[tuple[object, ...]]:
    chosen = st.lists(st.sampled_from(range(len(items))), unique=True, max_size=len(items))
    return chosen.map(lambda places: tuple(items[i] for i in sorted(places)))


asks = st.builds(
    Ask,
    id=st.just(""),
    now_us=st.just(0),
    expires_us=st.just(0),
    rates=_some(RATES),
    gates=st.one_of(st.just(GATES[:1]), _some(GATES), st.just(())),
    budgets=st.one_of(_some(BUDGETS[:2]), _some(BUDGETS[:4]), _some(BUDGETS)),
    input_tokens=st.integers(0, 60),
    input_nano=st.integers(0, 60),
    output_tokens=st.integers(0, 60),
    choices=st.integers(1, 3),
    unit_nano=st.integers(0, 4),
    output_tokens_min=st.sampled_from((None, 0, 16)),
)
waits = st.one_of(st.integers(0, 3_000_000), st.integers(0, 70_000_000), st.just(0))
steps = st.one_of(
    st.builds(Step, waits, asks),
    st.builds(Step, waits, st.none(), st.integers(0, 6), st.integers(0, 300), st.integers(0, 300)),
)
histories = st.lists(steps, max_size=30)


def _comparable(charged: Iterable[Charged]) -> tuple[Charged, ...]:
    """Without the sums of windows: they are as of the last admission, and a refused one leaves no trace in records."""
    windowed = {budget.account for budget in BUDGETS if budget.window_us is not None}
    return tuple(msgspec.structs.replace(one, spent_nano=0) if one.account in windowed else one for one in charged)


def numbered(history: list[Step]) -> list[tuple[int, Step, str]]:
    """Each step with its moment and the id of its request."""
    now_us, told = START_US, []
    for number, step in enumerate(history):
        now_us += step.wait_us
        told.append((now_us, step, f"i{number if step.ask is not None else number - 1 - step.ends}"))
    return told


def play_book(history: list[Step]) -> list[Outcome]:
    """What the book makes of a history; holds expire by whole minutes, as they do in records."""
    book, outcomes = Book(), list[Outcome]()
    for now_us, step, identity in numbered(history):
        book.expire(now_us // MINUTE_US * MINUTE_US)
        if step.ask is None:
            try:
                outcomes.append(_comparable(book.settle(identity, step.tokens, step.nano)))
            except NotHeld:
                outcomes.append(None)
            continue
        minute_end_us = ((now_us + HOLD_US) // MINUTE_US + 1) * MINUTE_US
        ask = msgspec.structs.replace(step.ask, id=identity, now_us=now_us, wall_us=now_us, expires_us=minute_end_us)
        decision = book.admit(ask)
        outcomes.append(decision)
        if isinstance(decision, Missing):
            for account in decision.accounts:
                windows_us = {budget.account: budget.window_us for budget in BUDGETS}
                slots = LOADED.get(account, {})
                book.load(
                    account, 10 if windows_us[account] is None else sum(slots.values()), windows_us[account], slots
                )
    return outcomes


async def play_scripts(history: list[Step], state: SharedState, set_clock: list[int]) -> list[Outcome]:
    """What the scripts make of a history; `set_clock[0]` is the moment of the next call."""
    outcomes, live = list[Outcome](), dict[str, tuple[Ask, Grant, int]]()
    for now_us, step, identity in numbered(history):
        set_clock[0] = now_us
        if step.ask is None:
            held = live.pop(identity, None)
            if held is None or held[1].expires_us <= now_us // MINUTE_US * MINUTE_US:
                outcomes.append(None)
                continue
            ask, grant, _ = held
            nano = min(step.nano, grant.nano)
            reply = await state.run(SETTLE, _keys(ask), _settle_arguments(ask, step.tokens, nano, grant.places))
            assert reply[0] == 1
            again = await state.run(SETTLE, _keys(ask), _settle_arguments(ask, step.tokens, nano, grant.places))
            assert again == [0], "settling twice changes nothing"
            charged = (Charged(name, nano, spent) for name, spent in zip(grant.accounts, reply[1:], strict=True))
            outcomes.append(_comparable(charged))
            continue
        minute_end_us = ((now_us + HOLD_US) // MINUTE_US + 1) * MINUTE_US
        ask = msgspec.structs.replace(step.ask, id=identity, now_us=now_us, wall_us=now_us, expires_us=now_us + HOLD_US)
        decision = _decision(ask, await state.run(ADMIT, _keys(ask), _arguments(ask)))
        if isinstance(decision, Grant):
            decision = msgspec.structs.replace(decision, expires_us=minute_end_us)
            live[identity] = ask, decision, now_us
        outcomes.append(decision)
        if isinstance(decision, Missing):
            for account in decision.accounts:
                slots = LOADED.get(account, {})
                windowed = {budget.account for budget in BUDGETS if budget.window_us is not None}
                by_slot = [value for item in slots.items() for value in item]
                spent = sum(slots.values()) if account in windowed else 10
                await state.run(LOAD, [f"a:{account}"], [0, 0, 1, 0, spent, *by_slot])
    return outcomes


async def play_renewal(state: SharedState, set_clock: list[int]) -> None:
    """A hold that is renewed outlives its first end; one that is not comes back."""
    ask = Ask("kept", 0, HOLD_US, gates=(Gate("g", 2),), budgets=(Budget("a", 100),), input_nano=60)
    other = msgspec.structs.replace(ask, id="lost", input_nano=40)
    third = msgspec.structs.replace(ask, id="third", input_nano=40)
    await state.run(LOAD, ["a:a"], [0, 0, 1, 0, 0])
    for one in (ask, other):
        assert isinstance(_decision(one, await state.run(ADMIT, _keys(one), _arguments(one))), Grant)
    for minutes in (1, 4, 7):
        set_clock[0] = START_US + minutes * MINUTE_US
        assert await state.run(RENEW, _keys(ask), [0, 1, 1, HOLD_US]) == [1]
        decision = _decision(third, await state.run(ADMIT, _keys(third), _arguments(third)))
        assert isinstance(decision, Grant if minutes == 7 else Refusal)
    # Far too late it is held again, and what it comes to is charged once.
    set_clock[0] = START_US + 60 * MINUTE_US
    assert await state.run(RENEW, _keys(ask), [0, 1, 1, HOLD_US]) == [1]
    last = msgspec.structs.replace(ask, id="last", input_nano=41)
    assert isinstance(_decision(last, await state.run(ADMIT, _keys(last), _arguments(last))), Refusal)
    assert await state.run(SETTLE, _keys(ask), _settle_arguments(ask, 0, 50)) == [1, 50]
    assert await state.run(RENEW, _keys(ask), [0, 1, 1, HOLD_US]) == [0]
    assert isinstance(_decision(last, await state.run(ADMIT, _keys(last), _arguments(last))), Grant)


async def play_orphans(state: SharedState, set_clock: list[int]) -> None:
    """What a process that died had recorded is counted by another one: once, whether its holds have run out or not."""
    window = Budget("w:60s", 1000, 60_000_000)
    ask = Ask("", 0, HOLD_US, gates=(Gate("g", 9),), budgets=(Budget("a", 1000), window), input_nano=100)
    await state.run(LOAD, ["a:a"], [0, 0, 1, 0, 7])
    await state.run(LOAD, ["a:w:60s"], [0, 0, 1, 0, 0])
    places: dict[str, int | None] = {}
    for id in ("settled", "recorded", "late", "running", "unknown"):
        one = msgspec.structs.replace(ask, id=id)
        grant = _decision(one, await state.run(ADMIT, _keys(one), _arguments(one)))
        assert isinstance(grant, Grant)
        places[id] = grant.places[1]

    def charge(id: str, nano: int) -> Charge:
        return Charge(id, ("a", durable_account("w:60s", places.get(id, places["late"]))), nano)

    one = msgspec.structs.replace(ask, id="settled")
    await state.run(SETTLE, _keys(one), _settle_arguments(one, 0, 50, (None, places["settled"])))
    asked: list[tuple[str, int]] = []
    recorded = [charge("settled", 50), charge("recorded", 60)]

    async def charges(prefix: str, since_us: int) -> list[Charge]:
        asked.append((prefix, since_us))
        return recorded

    dead, alive = (Orphans(state, name, charges) for name in ("00000000ff", "0a00000000"))
    await dead.beat()
    await alive.beat()
    await beats(alive, set_clock, DEAD_US)
    assert asked == [], "it may still live"
    set_clock[0] += 1
    await alive.beat()
    assert asked == [("00000000ff", START_US - BEFORE_US)]
    assert await spent(state, ask) == [7 + 50 + 60, 50 + 60]
    assert await free(state, ask) == 1000 - 117 - 300, "three still hold something"
    await alive.beat()
    assert len(asked) == 1, "it was buried"
    await dead.beat()
    set_clock[0] += 60 * MINUTE_US
    recorded[:] = [charge("late", 70), charge("recorded", 60)]
    await alive.beat()
    assert len(asked) == 1, "nobody was heard for an hour, so that tells nothing of the others"
    await beats(alive, set_clock, DEAD_US + 5_000_000)
    assert await spent(state, ask) == [7 + 50 + 60 + 70, 0]
    await alive.leave()
    await dead.beat()
    assert len(asked) == 2, "who leaves in order is not dead"
    assert await alive.adopt([charge("told before the counters were lost", 5)]) == 1
    again = _decision(ask, await state.run(ADMIT, _keys(ask), _arguments(ask)))
    assert again == Missing(("a", "w:60s")), "nobody knows whether it was read with that charge or without"


async def beats(one: Orphans, set_clock: list[int], for_us: int) -> None:
    """Let time pass in which a process says again and again that it lives."""
    for _ in range(for_us // 5_000_000):
        set_clock[0] += 5_000_000
        await one.beat()


async def play_deaths(state: SharedState, set_clock: list[int]) -> None:
    """The slots of a process that died are free again, once; its money is held until the holds run out."""
    ask = Ask("", 0, HOLD_US, gates=(Gate("g", 2), Gate("h", 300)), budgets=(Budget("a", 1000),), input_nano=100)
    await state.run(LOAD, ["a:a"], [0, 0, 1, 0, 0])

    async def admitted(*ids: str, gates: tuple[Gate, ...] = ask.gates) -> list[bool]:
        replies = []
        for id in ids:
            one = msgspec.structs.replace(ask, id=id, gates=gates)
            replies.append(isinstance(_decision(one, await state.run(ADMIT, _keys(one), _arguments(one))), Grant))
        return replies

    async def settled(id: str, gates: tuple[Gate, ...] = ask.gates) -> Reply:
        one = msgspec.structs.replace(ask, id=id, gates=gates)
        return await state.run(SETTLE, _keys(one), _settle_arguments(one, 0, 10))

    async def charges(prefix: str, since_us: int) -> list[Charge]:
        return [Charge("00000000ff-recorded", ("a",), 60)]

    dead, alive = (Orphans(state, name, charges) for name in ("00000000ff", "0a00000000"))
    free_gate = (Gate("i", 1000),)
    assert await admitted("00000000ff-ended", "00000000ff-recorded") == [True, True]
    assert await settled("00000000ff-ended") == [1, 10]
    assert await admitted("00000000ff-running", "0a00000000-1") == [True, False]
    many = [f"00000000ff-{number}" for number in range(250)]
    ask = msgspec.structs.replace(ask, budgets=())
    assert await admitted(*many, gates=free_gate) == [True] * 250
    await dead.beat()
    await alive.beat()
    await beats(alive, set_clock, DEAD_US)
    assert await admitted("0a00000000-1") == [False], "it may still live"
    await beats(alive, set_clock, 5_000_000)
    # One was recorded, the other one only ran.
    assert await admitted("0a00000000-1", "0a00000000-2", "0a00000000-3") == [True, True, False]
    assert await admitted("0a00000000-4", gates=(Gate("i", 1),)) == [True], "all 250 are free"
    ask = msgspec.structs.replace(ask, budgets=(Budget("a", 1000),), gates=())
    assert (await spent(state, ask), await free(state, ask)) == ([70], 1000 - 70 - 100)
    # It was only out of reach: what it ends frees no slot that is another's by now, and is charged.
    assert await settled("00000000ff-running") == [1, 80]
    assert await free(state, ask) == 1000 - 80
    ask = msgspec.structs.replace(ask, budgets=())
    assert await settled(many[0], free_gate) == [1]
    assert await admitted("0a00000000-5") == [False]
    assert await admitted("0a00000000-5", gates=(Gate("i", 1),)) == [False]


async def play_return(state: SharedState, set_clock: list[int]) -> None:
    """A process that was taken for dead has its slots again when it renews its holds, and frees them once."""
    ask = Ask("00000000ff-1", 0, HOLD_US, gates=(Gate("g", 2),))
    other = msgspec.structs.replace(ask, id="0a00000000-1")

    async def charges(prefix: str, since_us: int) -> list[Charge]:
        return []

    async def room() -> int:
        """How many more find a slot."""
        asks = [msgspec.structs.replace(other, id=f"0b00000000-{set_clock[0]}-{number}") for number in range(3)]
        found = [one for one in asks if (await state.run(ADMIT, _keys(one), _arguments(one)))[0] == 0]
        for one in found:
            await state.run(SETTLE, _keys(one), _settle_arguments(one, 0, 0))
        return len(found)

    lost, alive = (Orphans(state, name, charges) for name in ("00000000ff", "0a00000000"))
    await state.run(ADMIT, _keys(ask), _arguments(ask))
    await lost.beat()
    await alive.beat()
    assert await room() == 1
    await beats(alive, set_clock, DEAD_US + 5_000_000)
    assert await room() == 2
    assert await state.run(RENEW, _keys(ask), [0, 1, 0, HOLD_US]) == [1]
    assert await room() == 1
    await lost.beat()
    await beats(alive, set_clock, DEAD_US + 5_000_000)
    assert await room() == 2, "it died after all"
    assert await state.run(SETTLE, _keys(ask), _settle_arguments(ask, 0, 0)) == [1]
    assert await room() == 2


async def spent(state: SharedState, ask: Ask) -> list[int]:
    """What its accounts have spent, as a settlement tells that costs nothing."""
    one = msgspec.structs.replace(ask, id="spent?", gates=(), input_nano=0)
    assert isinstance(_decision(one, await state.run(ADMIT, _keys(one), _arguments(one))), Grant)
    return (await state.run(SETTLE, _keys(one), _settle_arguments(one, 0, 0)))[1:]


async def free(state: SharedState, ask: Ask) -> int:
    """What its first account still has."""
    one = msgspec.structs.replace(ask, id="free?", gates=(), budgets=ask.budgets[:1], input_nano=10**9)
    refusal = _decision(one, await state.run(ADMIT, _keys(one), _arguments(one)))
    assert isinstance(refusal, Refusal)
    return refusal.remaining


async def play_telling(state: SharedState, set_clock: list[int]) -> None:
    """What was let in elsewhere counts from when it was, in sliding windows and in calendar periods."""
    rates = (Rate("slide", "requests", 10, 60_000_000), Rate("day", "tokens", 100, 86_400_000_000, START_US + 10**9))
    one = Ask("one", 0, HOLD_US, rates=rates, input_tokens=50)
    assert await state.run(TELL, ["w:slide"], [0, 0, 0, 1_000_000, 0, 0, 4, 30, 5]) == [1]
    assert await state.run(TELL, ["w:day"], [0, 0, 0, 1_440_000_000, 1, 0, 40]) == [1]
    grant = _decision(one, await state.run(ADMIT, _keys(one), _arguments(one)))
    assert isinstance(grant, Grant) and grant.requests_room is not None and grant.tokens_room is not None
    assert (grant.requests_room.remaining, grant.tokens_room.remaining) == (0, 10)
    two = msgspec.structs.replace(one, id="two", input_tokens=1)
    refusal = _decision(two, await state.run(ADMIT, _keys(two), _arguments(two)))
    assert isinstance(refusal, Refusal) and refusal.retry_us is not None and refusal.retry_us <= 31_000_000
    set_clock[0] += 31_000_000
    assert isinstance(_decision(two, await state.run(ADMIT, _keys(two), _arguments(two))), Grant)
