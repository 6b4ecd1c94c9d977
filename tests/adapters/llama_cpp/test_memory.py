"""Which weights are copied into memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.llama_cpp.memory import copies_weights, has_amx
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
def test_weights_up_to_a_quarter_of_the_memory_are_copied_unless_told(
    tmp_path: Path, limit: str, settings: EngineSettings, copied: bool
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    assert copies_weights(settings, 1000, tmp_path) is copied


def test_without_a_bound_the_whole_machine_counts(tmp_path: Path) -> None:
    assert copies_weights(EngineSettings(), 1, tmp_path)
    assert not copies_weights(EngineSettings(), 1 << 60, tmp_path)


@pytest.mark.parametrize(
    ("flags", "amx"),
    [
        ("fpu avx2 avx512_vnni amx_bf16 amx_tile amx_int8", True),
        ("fpu avx2 avx512_vnni", False),
        ("fpu avx2 amx_int8", False),
        ("", False),
    ],
)
def test_amx_is_seen_in_the_flags_of_the_processor(tmp_path: Path, flags: str, amx: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_int8 avx512_vnni\n")
    assert has_amx(cpuinfo) is amx


def test_processors_that_say_nothing_have_no_amx(tmp_path: Path) -> None:
    assert not has_amx(tmp_path / "cpuinfo")
