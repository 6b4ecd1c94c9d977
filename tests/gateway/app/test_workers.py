from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.app.workers import JOURNAL_NAME, left_behind, outbox_of
from gateway.state.journal import Journal
from gateway.state.outbox import Outbox


def test_each_process_has_an_outbox_of_its_own(tmp_path: Path) -> None:
    assert [outbox_of(tmp_path, number).name for number in range(3)] == ["outbox", "outbox-1", "outbox-2"]


def test_what_is_left_in_the_outbox_of_a_process_that_is_no_more_is_noticed(tmp_path: Path) -> None:
    assert left_behind(tmp_path, 1) is None
    for number in range(4):
        outbox = Outbox(outbox_of(tmp_path, number))
        if number == 2:
            outbox.append([b"an entry"])
        outbox.close()
    assert left_behind(tmp_path, 3) is None
    assert left_behind(tmp_path, 2) == left_behind(tmp_path, 1) == 3


def test_and_so_is_what_ran_when_it_died(tmp_path: Path) -> None:
    folder = outbox_of(tmp_path, 5)
    folder.mkdir()

    async def died() -> None:
        journal = Journal(folder / JOURNAL_NAME)
        journal.clear()
        journal.begin("id", "a record")
        journal.close()

    asyncio.run(died())
    assert left_behind(tmp_path, 2) == 6
