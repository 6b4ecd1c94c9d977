from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from gateway.state.appender import Appender


def test_groups_are_added_one_after_the_other_by_a_thread_of_its_own() -> None:
    added: list[tuple[bytes, ...]] = []
    threads = set[threading.Thread]()

    def append(records: Sequence[bytes]) -> int:
        threads.add(threading.current_thread())
        added.append(tuple(records))
        if records == [b"2"]:
            raise OSError("the disk is full")
        return len(added)

    async def run() -> list[int | BaseException]:
        appender = Appender(append)
        outcomes = await asyncio.gather(
            *(appender.append([b"%d" % number]) for number in range(4)), return_exceptions=True
        )
        appender.close()
        return outcomes

    outcomes = asyncio.run(run())
    assert added == [(b"0",), (b"1",), (b"2",), (b"3",)]
    assert (outcomes[:2], repr(outcomes[2]), outcomes[3:]) == ([1, 2], "OSError('the disk is full')", [4])
    (thread,) = threads
    assert thread is not threading.main_thread() and not thread.is_alive(), "it ended with the appender"


def test_whoever_stops_waiting_leaves_the_rest_to_be_done() -> None:
    begun, go_on, added = threading.Event(), threading.Event(), list[bytes]()

    def append(records: Sequence[bytes]) -> None:
        begun.set()
        go_on.wait()
        added.extend(records)

    async def run() -> None:
        appender = Appender(append)
        waiting = asyncio.create_task(appender.append([b"first"]))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        await appender.append([b"second"])
        appender.close()

    asyncio.run(run())
    assert added == [b"first", b"second"]


def test_one_that_was_never_used_has_nothing_to_end() -> None:
    Appender(lambda records: None).close()
