from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from gateway.ledger import Entry, disk_first
from gateway.ledger.caught_up import CaughtUp
from gateway.ledger.disk_first import QUICK_TIMES, DiskFirst
from gateway.ledger.store import Filter, Ledger
from gateway.ledger.writer import Writer
from gateway.limits.wallets import Wallets
from gateway.state.outbox import Outbox, OutboxError
from tests.databases import open_migrated
from tests.gateway.ledger.test_entries import entry
from tests.gateway.ledger.test_store import Flaky, all_entries

Scenario = Callable[[Ledger, Flaky], Awaitable[None]]


def with_ledger(data_dir: Path, scenario: Scenario, *, segment_bytes_max: int = 4 << 20) -> None:
    async def run() -> None:
        database = Flaky(await open_migrated(data_dir, serve=True))
        try:
            outbox = Outbox(data_dir / "outbox", segment_bytes_max=segment_bytes_max)
            ledger = Ledger(database, outbox, disk_first=True, retry_s=0)
            await ledger.start()
            await scenario(ledger, database)
            await ledger.close()
            assert await Ledger(database).problems() == []
        finally:
            await database.close()

    asyncio.run(run())


def files(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "outbox").glob("*.outbox"))


def test_what_is_durable_is_in_the_database_for_whoever_asks(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        await ledger.add(entry("a", cost_nano=3, charged_nano=3, accounts=("k",)))
        assert (ledger.pending, ledger.complete, ledger.waiting_bytes > 0) == (0, False, True)
        assert [one.id for one in await all_entries(ledger)] == ["a"]
        assert (ledger.complete, ledger.waiting_bytes, ledger.written) == (True, 0, 1)
        await ledger.add(entry("b", cost_nano=4, charged_nano=4, accounts=("k",)))
        balances = await Wallets(CaughtUp(database, ledger.keeper.caught_up)).balances(["k"])
        assert balances["k"].debits_nano == 7

    with_ledger(tmp_path, scenario)
    assert files(tmp_path) == []


def test_the_next_process_brings_in_what_one_that_was_killed_had_not(tmp_path: Path) -> None:
    async def killed() -> None:
        database = Flaky(await open_migrated(tmp_path, serve=True))
        outbox = Outbox(tmp_path / "outbox")
        database.failures = ["before"] * 1000
        ledger = Ledger(database, outbox, disk_first=True)
        await ledger.start()
        await asyncio.gather(*(ledger.add(entry(f"{n}", charged_nano=n, accounts=("k",))) for n in range(50)))
        assert isinstance(ledger.keeper, DiskFirst) and ledger.keeper._following is not None
        ledger.keeper._following.cancel()
        outbox.close()
        await database.close()

    asyncio.run(killed())

    async def scenario(ledger: Ledger, database: Flaky) -> None:
        assert len(await all_entries(ledger)) == 50

    with_ledger(tmp_path, scenario)


@pytest.mark.parametrize("failures", [["before"] * 5, ["after"], ["after", "before", "after"]])
def test_a_database_that_fails_loses_and_doubles_nothing(tmp_path: Path, failures: list[str]) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = failures
        await asyncio.gather(
            *(ledger.add(entry(f"{n}", charged_nano=n, cost_nano=n, accounts=("a", "wallet:w"))) for n in range(50))
        )
        while not ledger.complete:
            await ledger.keeper.caught_up()
        balances = await Wallets(database).balances(["a", "wallet:w"])
        assert {balance.debits_nano for balance in balances.values()} == {sum(range(50))}

    with_ledger(tmp_path, scenario)


def test_what_the_database_missed_for_long_is_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_first, "BEHIND_MAX", 10)

    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = ["before"] * 3
        for turn in range(20):
            await asyncio.gather(*(ledger.add(entry(f"{turn} {n}")) for n in range(7)))
        assert isinstance(ledger.keeper, DiskFirst)
        assert len(ledger.keeper._behind) <= 17
        while not ledger.complete:
            await ledger.keeper.caught_up()
        assert len(await all_entries(ledger)) == 140
        await ledger.add(entry("later"))
        assert len(await all_entries(ledger)) == 141

    with_ledger(tmp_path, scenario, segment_bytes_max=3000)


def test_segments_go_when_the_database_has_all_of_them(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        database.failures = ["before"] * 1000
        for n in range(40):
            await ledger.add(entry(f"{n}"))
        assert len(files(tmp_path)) > 3
        database.failures = []
        assert len(await all_entries(ledger)) == 40
        await ledger.add(entry("one more"))
        await ledger.keeper.caught_up()
        assert len(files(tmp_path)) <= 2

    with_ledger(tmp_path, scenario, segment_bytes_max=1000)


def test_a_disk_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        assert isinstance(ledger.keeper, DiskFirst)
        append, refusals = ledger.keeper._outbox.append, ["full", "full"]

        def refuse(records: list[bytes]) -> int:
            if refusals:
                raise OutboxError(refusals.pop())
            return append(records)

        monkeypatch.setattr(ledger.keeper._outbox, "append", refuse)
        await ledger.add(entry("a"))
        assert [one.id for one in await all_entries(ledger)] == ["a"]

    with_ledger(tmp_path, scenario)


@pytest.mark.parametrize(("took_s", "in_threads"), [(0.0001, 2 * QUICK_TIMES), (0.1, 3 * QUICK_TIMES)])
def test_only_a_quick_disk_is_waited_for_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took_s: float, in_threads: int
) -> None:
    """One slow answer in the middle, and `took_s` for all the others."""
    times, handed = [0.0], list[bool]()

    def clock() -> float:
        times.append(times[-1] + (0.1 if len(times) == 4 * QUICK_TIMES else took_s))
        return times[-1]

    async def run() -> None:
        async def commit(entries: Sequence[Entry]) -> None:
            pass

        outbox = Outbox(tmp_path / "outbox")
        append = outbox.append

        def counted(records: Sequence[bytes]) -> int:
            handed.append(threading.current_thread() is not threading.main_thread())
            return append(records)

        monkeypatch.setattr(outbox, "append", counted)
        keeper = DiskFirst(commit, outbox, 0, clock=clock)
        for n in range(3 * QUICK_TIMES):
            await keeper.keep([entry(f"{n}")])
        await keeper.close()

    asyncio.run(run())
    assert (len(handed), sum(handed)) == (3 * QUICK_TIMES, in_threads)


def test_an_entry_that_comes_alone_to_a_quick_disk_is_durable_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, now_s = set[str](), 0.0

    async def commit(entries: Sequence[Entry]) -> None:
        committed.update(one.id for one in entries)

    async def run() -> list[bool]:
        nonlocal now_s
        outbox = Outbox(tmp_path / "outbox")
        keeper = DiskFirst(commit, outbox, 0, clock=lambda: 0.0)
        writer = Writer(keeper, commit, None, 0, clock=lambda: now_s)
        await writer.start()
        for n in range(QUICK_TIMES):
            await writer.add(entry(f"{n}"))
        now_s += 1
        alone, behind_it = writer.add(entry("alone")), writer.add(entry("behind it"))
        done = [alone.done, behind_it.done]
        await behind_it
        now_s += 1
        with monkeypatch.context() as patched:
            patched.setattr(outbox, "append", failing)
            unlucky = writer.add(entry("unlucky"))
        done.append(unlucky.done)
        await unlucky
        await writer.close()
        return done

    def failing(records: Sequence[bytes]) -> int:
        raise OutboxError("the disk is full")

    assert asyncio.run(run()) == [True, False, False]
    assert {"alone", "behind it", "unlucky"} < committed and len(committed) == QUICK_TIMES + 3


def test_what_comes_during_a_commit_waits_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_first, "FOLLOW_S", 3600)
    monkeypatch.setattr(disk_first, "GROUP_MAX", 4)

    async def run() -> tuple[list[int], list[int]]:
        groups, begun, go_on = list[int](), asyncio.Event(), asyncio.Event()

        async def commit(entries: Sequence[Entry]) -> None:
            groups.append(len(entries))
            begun.set()
            await go_on.wait()

        keeper = DiskFirst(commit, Outbox(tmp_path / "outbox"), 0)
        await keeper.start()
        await keeper.keep([entry(f"{n}") for n in range(4)])
        await begun.wait()
        await keeper.keep([entry("during the commit")])
        go_on.set()
        for _ in range(20):
            await asyncio.sleep(0)
        alone = groups.copy()
        await keeper.caught_up()
        await keeper.close()
        return alone, groups

    assert asyncio.run(run()) == ([4], [4, 1])


def test_every_segment_is_prepared_in_time(tmp_path: Path) -> None:
    async def run() -> None:
        loop, prepared = asyncio.get_running_loop(), asyncio.Event()

        class Noting(Outbox):
            def prepare(self) -> None:
                super().prepare()
                loop.call_soon_threadsafe(prepared.set)

        async def commit(entries: Sequence[Entry]) -> None: ...

        keeper = DiskFirst(commit, Noting(tmp_path / "outbox", segment_bytes_max=20_000), 0)
        await keeper.start()
        await prepared.wait()
        prepared.clear()
        spare = (tmp_path / "outbox/spare").stat().st_ino
        while not prepared.is_set():
            await keeper.keep([entry("a")])
            await keeper.caught_up()
        # What was prepared at the start is the first segment, and the next one is there before that is full.
        (first,) = files(tmp_path)
        assert (tmp_path / "outbox" / first).stat().st_ino == spare
        await keeper.close()

    asyncio.run(run())


def test_everything_can_be_asked_for(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger, database: Flaky) -> None:
        await ledger.add(entry("a", at_us=1))
        assert [one.id for one in await ledger.find("r")] == ["a"]
        await ledger.add(entry("b", at_us=2))
        assert [one.id for one in (await ledger.page(Filter(), 5))[0]] == ["b", "a"]
        await ledger.add(entry("c", at_us=3))
        assert (await ledger.summary((), Filter()))[0]["requests"] == 3

    with_ledger(tmp_path, scenario)
