"""Writes of one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from adapters.bursts import WRITES_MAX, Burst, Writing
from adapters.connection import Bounds, Connection, Timeouts
from adapters.errors import BrokeOff
from tests.adapters.upstream import OK, Kept, run


class Written:
    def __init__(self, flush: Callable[[], None]) -> None:
        self.flush = flush


def add(burst: Burst, write: Callable[[], None]) -> None:
    if burst.first():
        write()
    else:
        burst.wait(Written(write))


def test_the_first_of_a_moment_is_written_at_once_and_what_follows_when_the_loop_comes_round() -> None:
    async def main() -> list[list[str]]:
        loop, burst, written, seen = asyncio.get_running_loop(), Burst(), list[str](), list[list[str]]()
        clock = [5.0]
        loop.time = lambda: clock[0]  # type: ignore[method-assign]
        for name in ("a", "b"):
            add(burst, partial(written.append, name))
        clock[0] = 5.001  # What waits goes first, whenever that is.
        add(burst, partial(written.append, "c"))
        seen.append(written[:])
        await asyncio.sleep(0)
        seen.append(written[:])
        add(burst, partial(written.append, "d"))
        seen.append(written[:])
        return seen

    assert asyncio.run(main()) == [["a"], ["a", "b", "c"], ["a", "b", "c", "d"]]


def test_many_do_not_wait_for_the_loop() -> None:
    async def main() -> list[int]:
        loop, burst, written, counts = asyncio.get_running_loop(), Burst(), list[int](), list[int]()
        loop.time = lambda: 5.0  # type: ignore[method-assign]
        for number in range(WRITES_MAX + 2):
            add(burst, partial(written.append, number))
            counts.append(len(written))
        await asyncio.sleep(0)
        assert written == list(range(WRITES_MAX + 2))
        return counts

    assert asyncio.run(main()) == [*[1] * WRITES_MAX, *[WRITES_MAX + 1] * 2]


def test_by_a_clock_that_goes_on_everybody_writes_at_once() -> None:
    async def main() -> int:
        loop, burst, written = asyncio.get_running_loop(), Burst(), list[int]()
        ticks = iter(range(100))
        loop.time = lambda: float(next(ticks))  # type: ignore[method-assign]
        for number in range(3):
            add(burst, partial(written.append, number))
        return len(written)

    assert asyncio.run(main()) == 3


def test_a_write_that_fails_keeps_nobody_else_from_writing() -> None:
    async def main() -> list[str]:
        loop, burst, written, failed = asyncio.get_running_loop(), Burst(), list[str](), list[object]()
        loop.time = lambda: 5.0  # type: ignore[method-assign]
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
        for write in (list[str]().clear, partial(list[str]().remove, "b"), partial(written.append, "a")):
            add(burst, write)
        for _ in range(2):
            await asyncio.sleep(0)
        assert [type(one) for one in failed] == [ValueError]
        return written

    assert asyncio.run(main()) == ["a"]


class Held(Burst):
    """Lets nothing out."""

    def first(self) -> bool:
        return False

    def wait(self, writing: Writing) -> None:
        self.held = writing


class Silent(asyncio.Transport):
    """A wire on which nothing may be written."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


def test_an_answer_that_comes_before_its_request_was_sent_is_none() -> None:
    """Such as the word of a server that just gave up an idle connection: the request goes to another one."""

    async def main() -> None:
        ended: list[bool] = []
        held, loop = Held(), asyncio.get_running_loop()
        connection = Connection(loop, Bounds(), lambda _, again: ended.append(again), held)
        connection.connection_made(Silent())
        running = asyncio.create_task(connection.run(b"POST / HTTP/1.1\r\n\r\n", Kept(), Timeouts()))
        await asyncio.sleep(0)
        connection.data_received(OK)
        held.held.flush()
        with pytest.raises(BrokeOff):
            await running
        assert ended == [False] and not connection.answered

    run(main())
