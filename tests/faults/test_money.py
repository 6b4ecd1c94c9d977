"""A little of what `python -m tests.faults.money` does at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.money import SCENARIOS

SCALES = {"race-alone": 0.05, "race-three": 0.05, "kills": 0.02, "errors": 0.1, "disconnects": 0.03}


@pytest.mark.parametrize("name", SCALES)
def test_money_is_exact(name: str, tmp_path: Path) -> None:
    assert SCENARIOS[name](tmp_path, SCALES[name]).wrong == []
