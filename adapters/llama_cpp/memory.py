"""What this machine's memory means for how weights are held; asked by the forecast and by the worker alike."""

from __future__ import annotations

import os
from pathlib import Path

from adapters.llama_cpp.messages import EngineSettings

# Weights are copied when they take at most this part of the memory: there is no way back when they do not fit.
COPIED_SHARE = 0.25


def copies_weights(settings: EngineSettings, size_bytes: int, cgroup: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether weights of that size are read into memory of their own instead of being mapped from their file.

    There they lie in huge pages, which makes those that llama.cpp does not repack 3-10 % faster (measured with Q8_0);
    those it repacks are in memory once instead of twice. Mapped ones can be dropped when memory runs out.
    """
    if settings.weights != "auto":
        return settings.weights == "copied"
    return not settings.gpu_layers and size_bytes <= COPIED_SHARE * _memory_bytes(cgroup)


def _memory_bytes(cgroup: Path) -> int:
    """The memory of this machine, or of the container it is bounded to."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = (cgroup / "memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical
