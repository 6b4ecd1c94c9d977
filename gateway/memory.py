"""How the garbage collector goes about a process that serves."""

from __future__ import annotations

import gc

# New objects between two looks of the garbage collector at them.
GC_ALLOCATIONS = 10_000


def settle_memory() -> None:
    """Keep the garbage collector off what was built for good, and let it look at what is new less often: requests leave
    hardly any cycles behind, and looking for them took a tenth of the time of a request that is passed on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 50, 100)
