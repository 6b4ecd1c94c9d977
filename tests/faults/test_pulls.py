"""A little of what `python -m tests.faults.pulls` does at length."""

from __future__ import annotations

from pathlib import Path

from tests.faults.pulls import Many, pulls


def test_pulls_come_through(tmp_path: Path) -> None:
    outcome = pulls(tmp_path, Many(3, 3, 2), seed=3, sizes=(16 << 20, 24 << 20), kinds=("cut", "busy", "elsewhere"))
    assert outcome.wrong == []
