"""What waits of a stream."""

import asyncio

from adapters.backlog import Backlog


def test_what_waits_is_taken_as_one_piece() -> None:
    backlog = Backlog(10)
    waits = [backlog.waits]
    assert backlog.write(b"ab", 1)
    assert backlog.write(b"cd", 1)
    waits.append(backlog.waits)
    assert backlog.take() == b"abcd"
    assert [*waits, backlog.waits] == [False, True, False]


def test_a_stream_pauses_at_the_bound_and_goes_on_once_when_all_is_taken() -> None:
    backlog, told = Backlog(4), list[str]()
    assert backlog.write(b"abc", 1)
    assert not backlog.write(b"d", 1)
    backlog.when_drained(lambda: told.append("on"))
    assert told == []
    backlog.take()
    assert told == ["on"]
    assert backlog.write(b"abc", 1)
    backlog.take()
    assert told == ["on"]


def test_a_piece_and_any_other_change_wake_who_waits() -> None:
    async def run() -> None:
        backlog = Backlog(4)
        for change in (lambda: backlog.write(b"a", 1), backlog.changed.set):
            waiting = asyncio.create_task(backlog.change())
            await asyncio.sleep(0)
            assert not waiting.done()
            change()
            await waiting

    asyncio.run(run())
