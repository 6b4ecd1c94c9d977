"""Which weights are copied into memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.llama_cpp.memory import copies_weights
from adapters.llama_cpp.messages import EngineSettings


@pytest.mark.parametrize(
    ("limit", "settings", "copied"),
    [
        ("4000\n", EngineSettings(), True),
        ("3999\n", EngineSettings(), False),
        ("max\n", EngineSettings(), True),
        ("4000\n", EngineSettings(gpu_layers=1), False),
        ("3999\n", EngineSettings(weights="copied"), True),
        ("4000\n", EngineSettings(weights="mapped"), False),
    ],
)
def test_weights_that_stay_in_order_up_to_a_quarter_of_the_memory_are_copied_unless_told(
    tmp_path: Path, limit: str, settings: EngineSettings, copied: bool
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    assert copies_weights(settings, 1000, tmp_path) is copied


def test_without_a_bound_the_whole_machine_counts(tmp_path: Path) -> None:
    assert copies_weights(EngineSettings(), 1, tmp_path)
    assert not copies_weights(EngineSettings(), 1 << 60, tmp_path)
