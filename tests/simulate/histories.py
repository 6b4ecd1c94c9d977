"""Ranges of histories, run in processes that find this module by its name, as they could not find `__main__`."""

from __future__ import annotations

import traceback

from tests.simulate.world import World

STEPS = 40


def run_chunk(job: tuple[int, int]) -> tuple[int, str] | None:
    """The first seed of a range that breaks a promise, and how."""
    first, count = job
    for seed in range(first, first + count):
        try:
            World(seed).run(STEPS)
        except Exception:
            return seed, traceback.format_exc(limit=-2)
    return None
