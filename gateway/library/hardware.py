"""What this machine has, as far as models care."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# What weights may take of the memory: the rest is for conversations, and for everything else that runs.
WEIGHTS_SHARE = 0.6


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """The memory of this machine, or of the container it is bounded to."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bounds = [physical]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            bounds.append(int(text))
    return min(bounds)


def room_bytes(cgroup: Path = CGROUP) -> int:
    """How large a model may be."""
    return int(memory_bytes(cgroup) * WEIGHTS_SHARE)
