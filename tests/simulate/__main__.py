"""`make simulate SEED=1 HISTORIES=1000000`: run histories on all cores; one history alone is told step by step."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from tests.simulate.histories import STEPS, run_chunk
from tests.simulate.world import World

CHUNK = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--histories", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.histories == 1:
        World(options.seed, print).run(STEPS)
        print("every promise held")
        return 0
    started_s = time.monotonic()
    jobs = [
        (first, min(CHUNK, options.seed + options.histories - first))
        for first in range(options.seed, options.seed + options.histories, CHUNK)
    ]
    with multiprocessing.Pool(options.processes) as pool:
        for failure in pool.imap_unordered(run_chunk, jobs):
            if failure is not None:
                seed, problem = failure
                print(f"{problem}\nreplay it with: make simulate SEED={seed} HISTORIES=1", file=sys.stderr)
                return 1
    took_s = time.monotonic() - started_s
    print(f"{options.histories} histories of {STEPS} steps in {took_s:.0f} s: every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
