from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.state.journal import Journal


def test_what_was_begun_and_not_ended_is_left_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "j"

    async def die() -> None:
        journal = Journal(path)
        journal.clear()
        for id in "abc":
            journal.begin(id, {"of": id})
        journal.end(["b"])
        journal.end(["b", "unknown"])
        journal.flush()

    asyncio.run(die())
    with path.open("ab") as file:
        file.write(b'+d {"of"')
    journal = Journal(path)
    assert journal.left == {"a": b'{"of":"a"}', "c": b'{"of":"c"}'}
    journal.clear()
    assert Journal(path).left == {}
    journal.close()


def test_what_ends_before_it_is_written_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "j"

    async def run() -> None:
        journal = Journal(path)
        journal.clear()
        journal.begin("a", {})
        journal.end(["a"])
        journal.close()

    asyncio.run(run())
    assert path.read_bytes() == b""


def test_what_is_old_is_written_and_what_somebody_sees_at_once(tmp_path: Path) -> None:
    path = tmp_path / "j"

    async def run() -> None:
        journal = Journal(path)
        journal.clear()
        journal.begin("old", {})
        journal._turn()
        journal.begin("young", {})
        journal.begin("quick", {})
        assert Journal(path).left == {}
        journal._turn()
        assert set(Journal(path).left) == {"old"}
        journal.begin("seen", {})
        journal.show("seen")
        journal.show("seen")
        assert list(Journal(path).left) == ["old", "seen"]
        journal.end(["quick", "old"])
        journal._turn()
        assert list(Journal(path).left) == ["seen", "young"]
        assert b"quick" not in path.read_bytes()
        journal.end(["seen"])
        journal.close()
        assert list(Journal(path).left) == ["young"]

    asyncio.run(run())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200), st.integers(50, 300))
def test_a_journal_stays_small_and_true(steps: list[tuple[int, bool]], bytes_max: int) -> None:
    async def run(path: Path) -> None:
        journal, running = Journal(path, bytes_max=bytes_max), set[int]()
        journal.clear()
        for n, begins in steps:
            if begins and n not in running:
                running.add(n)
                journal.begin(f"{n}", "record")
            elif not begins:
                running.discard(n)
                journal.end([f"{n}"])
            journal.flush()
        assert set(Journal(path).left) == {f"{n}" for n in running}
        journal.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(path := Path(folder) / "j"))
        assert path.stat().st_size < bytes_max + 31 * 30


def test_a_journal_that_cannot_be_written_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        journal = Journal(tmp_path / "missing" / "j")
        journal.clear()
        journal.begin("a", {})
        journal.end(["a"])
        journal.close()

    asyncio.run(run())
