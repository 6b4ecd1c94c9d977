"""What a worker does with this machine's memory; asked by the forecast and by the worker alike."""

from __future__ import annotations

import os
from pathlib import Path

from adapters.llama_cpp.messages import EngineSettings

CGROUP = Path("/sys/fs/cgroup")
CONTEXT_TOKENS_DEFAULT = 8192
CACHE_BYTES_DEFAULT = 2 << 30
KEPT_SLOTS = 32
# Sequences that one context may have in llama.cpp.
SLOTS_MAX = 256
# How many tokens of a prompt a worker computes before it is ready, to know how fast it is.
MEASURED_TOKENS = 32
# For how long a conversation memory is got ready, and what part of that for conversations may lie ready.
PREPARED_TOKENS = 2048
SPARE_SHARE = 8
# Weights are copied when what could be dropped of them is at most this part of the memory: there is no way back when it
# does not fit.
COPIED_SHARE = 0.25


def copies_weights(settings: EngineSettings, plain_bytes: int, cgroup: Path = CGROUP) -> bool:
    """Whether weights of which so many bytes stay in the order of their file are read into memory of their own instead
    of being mapped from it.

    There they lie in huge pages, which makes them 3-10 % faster (measured with Q8_0). Mapped ones can be dropped when
    memory runs out; but not those that llama.cpp packs in another order, which then only are in memory twice.
    """
    if settings.weights != "auto":
        return settings.weights == "copied"
    return not settings.gpu_layers and plain_bytes <= COPIED_SHARE * memory_bytes(cgroup)


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
