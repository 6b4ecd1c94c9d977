from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gateway.limits.book import Book
from gateway.limits.bound import Bound
from gateway.limits.windows import Account, Window
from tests.simulate.histories import STEPS, run_chunk
from tests.simulate.world import Broken, Disk, World


def test_histories_hold_every_promise() -> None:
    first = int(os.environ.get("SEED", "1"))
    assert run_chunk((first, int(os.environ.get("HISTORIES", "3000")))) is None


def test_they_run_in_processes_of_their_own() -> None:
    command = [sys.executable, "-m", "tests.simulate", "--histories", "2", "--processes", "1"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("2 histories") and "every promise held" in told


@pytest.mark.parametrize(
    ("where", "name", "bug"),
    [
        (Account, "charge", lambda self, held, nano, slot: setattr(self, "held", self.held - held)),
        (Account, "advance", lambda self, wall_us: None),
        (Bound, "occupy", lambda self, nano, now_us: None),
        (Bound, "slide", lambda self, wall_us: None),
        (Window, "advance", lambda self, now_us: self.amounts.clear()),
        (Window, "change", lambda self, slot, amount: None),
        (Book, "restore", lambda self, grant: None),
        (World, "tell_ends", lambda self: self.untold.clear()),
        (Disk, "drop", lambda self, ids: [self.gone.add(id) or self.entries.pop(id) for id in ids]),
    ],
)
def test_the_histories_find_bugs(monkeypatch: pytest.MonkeyPatch, where: type, name: str, bug: object) -> None:
    """A simulator that finds nothing in broken code would prove nothing about sound code."""
    monkeypatch.setattr(where, name, bug)
    assert run_chunk((1, 300)) is not None


def test_a_seed_always_tells_the_same_history() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        World(77, lines.append).run(STEPS)
    assert told[0] == told[1] and len(told[0]) > 10


def test_an_overspent_account_is_seen() -> None:
    world = World(1)
    world.disk.debits["key:1"] = world.limits["key"] + 1
    with pytest.raises(Broken):
        world.check()
