"""How the memory of a process that serves is looked after."""

from __future__ import annotations

import ctypes
import gc

# New objects between two looks of the garbage collector at them.
GC_ALLOCATIONS = 10_000
# Parameters of glibc's mallopt, and how much freed memory stays with the process. Large bodies are copied a few times,
# and fresh pages for each copy cost several times what copying does.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 32 << 20
MAPPED_BYTES_MIN = 8 << 20


def settle_memory() -> None:
    """Keep the garbage collector off what was built for good, and let it look at what is new less often: requests leave
    hardly any cycles behind, and looking for them took a tenth of the time of a request that is passed on. Keep freed
    memory, where the C library can be told to.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 50, 100)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
