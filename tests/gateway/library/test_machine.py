from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.llama_cpp import devices
from adapters.llama_cpp.memory import memory_bytes
from gateway.library.machine import advise, available_bytes, machine, room_bytes

GIB = 1 << 30


def test_this_machine(tmp_path: Path) -> None:
    found = asyncio.run(machine([tmp_path, tmp_path / "not" / "there", tmp_path]))
    assert found.problem is None and found.build is not None
    assert "CPU" in found.build.backends
    assert any(device.kind == "cpu" and device.total_bytes > 0 for device in found.build.devices)
    assert 1 <= found.threads <= found.cores
    assert 0 < found.available_bytes <= found.memory_bytes
    assert [disk.folder for disk in found.disks] == [str(tmp_path), str(tmp_path / "not" / "there")]
    assert all(0 < disk.free_bytes <= disk.total_bytes and not disk.read_only for disk in found.disks)


@pytest.mark.parametrize(
    ("room", "speed", "largest"),
    [
        (2 * GIB, 1e10, (1.5, "Q4_K_M")),
        (16 * GIB, 2e10, (32, "IQ2_M")),
        (64 * GIB, 1e12, (70, "Q6_K")),
        (GIB // 2, 1e10, None),
    ],
)
def test_what_is_recommended_fits_and_loses_least(room: int, speed: float, largest: tuple[float, str] | None) -> None:
    found = advise(room, speed)
    assert (found[0].parameters_billions, found[0].quantisation) == largest if largest else found == ()
    for one in found:
        assert one.size_bytes < room
        assert 4096 <= one.context_tokens <= 32_768
    if found:
        assert found[-1].quantisation == "Q8_0"


def test_a_llama_cpp_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices.sys, "executable", "/bin/false")  # type: ignore[attr-defined]
    found = asyncio.run(machine([]))
    assert (found.build, found.problem) == (None, "llama.cpp cannot be loaded: exit code 1")


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
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert available_bytes(tmp_path, meminfo) == 300_000 * 1024
    (tmp_path / "memory.max").write_text("100000000\n")
    (tmp_path / "memory.current").write_text("70000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 20000000\n")
    assert available_bytes(tmp_path, meminfo) == 50_000_000
