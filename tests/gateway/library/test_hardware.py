"""The memory of a machine, and of a container on it."""

from __future__ import annotations

from pathlib import Path

from adapters.llama_cpp.memory import memory_bytes
from gateway.library.hardware import available_bytes, room_bytes


def test_a_container_has_what_it_is_bounded_to(tmp_path: Path) -> None:
    whole = memory_bytes(tmp_path)
    assert whole > 1 << 28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == whole
    (tmp_path / "memory.max").write_text("100000000\n")
    assert memory_bytes(tmp_path) == 100_000_000
    assert room_bytes(tmp_path) == 60_000_000


def test_what_is_available_is_bounded_by_the_machine_and_by_the_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable: 300000 kB\n")
    assert available_bytes(tmp_path, meminfo) == 300_000 * 1024
    (tmp_path / "memory.max").write_text("100000000\n")
    (tmp_path / "memory.current").write_text("70000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 20000000\n")
    assert available_bytes(tmp_path, meminfo) == 50_000_000
