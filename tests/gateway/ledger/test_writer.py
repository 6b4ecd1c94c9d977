"""When the groups of the ledger's writer begin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.errors import GatewayError
from gateway.ledger import Entry
from gateway.ledger.writer import APART_S, APART_S_MAX, PATIENCE_S, DatabaseFirst, Writer
from gateway.state.database import DatabaseUnavailable
from tests.gateway.ledger.test_entries import entry


@pytest.mark.parametrize(("size", "waits_s"), [(1, []), (3, [3 * APART_S]), (100, [APART_S_MAX])])
def test_the_more_a_group_holds_the_later_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch, size: int, waits_s: list[float]
) -> None:
    now_s, groups, slept = 0.0, list[int](), list[float]()

    async def commit(entries: Sequence[Entry]) -> None:
        groups.append(len(entries))

    async def run() -> None:
        nonlocal now_s
        sleep = asyncio.sleep

        async def pause(delay_s: float) -> None:
            nonlocal now_s
            slept.append(delay_s)
            now_s += delay_s
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", pause)
        writer = Writer(DatabaseFirst(commit, None, 0), commit, None, 0, clock=lambda: now_s)
        await writer.start()
        await asyncio.gather(*(writer.add(entry(f"{number}")) for number in range(size)))
        await writer.add(entry("next"))
        now_s += 1
        await writer.add(entry("much later"))
        await writer.close()

    asyncio.run(run())
    assert groups == [size, 1, 1]
    assert slept == pytest.approx(waits_s), "less than timers can be trusted with is not waited for"


def test_a_client_waits_for_an_entry_only_so_long_and_others_for_as_long_as_it_takes() -> None:
    tries, now_s, written = 0, 0.0, list[str]()

    async def commit(entries: Sequence[Entry]) -> None:
        nonlocal tries, now_s
        tries += 1
        if tries < 10:
            now_s += PATIENCE_S / 4
            raise DatabaseUnavailable("the disk is full")
        written.extend(one.id for one in entries)

    async def run() -> None:
        writer = Writer(DatabaseFirst(commit, None, 0), commit, None, 0, clock=lambda: now_s)
        await writer.start()
        durable = writer.add(entry("a"))
        with pytest.raises(GatewayError, match="cannot be recorded"):
            await durable.in_time()
        assert PATIENCE_S <= now_s < 2 * PATIENCE_S and not written
        await durable
        await durable.in_time()
        await writer.close()

    asyncio.run(run())
    assert written == ["a"]
