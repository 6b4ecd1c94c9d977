"""The memory of a machine, and of a container on it."""

from __future__ import annotations

from pathlib import Path

from gateway.library.hardware import memory_bytes, room_bytes


def test_a_container_has_what_it_is_bounded_to(tmp_path: Path) -> None:
    whole = memory_bytes(tmp_path)
    assert whole > 1 << 28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == whole
    (tmp_path / "memory.max").write_text("100000000\n")
    assert memory_bytes(tmp_path) == 100_000_000
    assert room_bytes(tmp_path) == 60_000_000
