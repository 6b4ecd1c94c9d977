"""What this machine has, as far as models care."""

from __future__ import annotations

from pathlib import Path

from adapters.llama_cpp.memory import CGROUP, memory_bytes

MEMINFO = Path("/proc/meminfo")
# What weights may take of the memory: the rest is for conversations, and for everything else that runs.
WEIGHTS_SHARE = 0.6


def room_bytes(cgroup: Path = CGROUP) -> int:
    """How large a model may be."""
    return int(memory_bytes(cgroup) * WEIGHTS_SHARE)


def available_bytes(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int:
    """The memory that could be taken now without anything being swapped out or killed; caches of files give way."""
    available = [int(line.split()[1]) * 1024 for line in _lines(meminfo) if line.startswith("MemAvailable:")]
    bounds = [memory_bytes(cgroup), *available]
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        files = [int(line.split()[1]) for line in _lines(cgroup / "memory.stat") if line.startswith("inactive_file ")]
        bounds.append(max(limit - used + sum(files), 0))
    return min(bounds)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None
