"""Whether prompt-lookup speculative decoding could pay: what a step that verifies k tokens costs against one token's.

    python -m tests.bench.speculation MODEL.gguf [CONTEXT_TOKENS]

A step that verifies k - 1 drafted tokens yields (1 - a^k) / (1 - a) tokens where each draft is accepted with
probability a (Leviathan et al., 2023). It pays where that exceeds its cost in single steps; printed are this cost, the
acceptance from which on it pays, and the gain when every draft is accepted.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.native import Context, Model, quiet

ROWS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16)
ROUNDS = 7
CHUNK = 256


def expected_tokens(rows: int, acceptance: float) -> float:
    return sum(acceptance**drafts for drafts in range(rows))


def break_even(rows: int, cost: float) -> float | None:
    """The acceptance at which a step of `rows` is worth its `cost`; None where even a perfect draft is not."""
    if cost >= rows:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(rows, middle) < cost else (low, middle)
    return high


def step_ms(context: Context, rows: int, position: int, outputs: int) -> float:
    batch = Batch(context.batch_tokens, context.slots)
    batch.add(np.arange(300, 300 + rows, dtype=np.int32), position, 0, outputs=outputs)
    began_s = time.perf_counter()
    assert context.decode(batch) == 0
    context.logits(outputs)
    return (time.perf_counter() - began_s) * 1000


def main(path: Path, context_tokens: int) -> None:
    quiet()
    model = Model(path, gpu_layers=0, progress=lambda fraction: None)
    cells = context_tokens + CHUNK
    context = Context(
        model, cells=cells, slots=max(ROWS), batch_tokens=CHUNK, outputs_max=max(ROWS), threads=1, lease=nullcontext()
    )
    for position in range(0, context_tokens, CHUNK):
        step_ms(context, min(CHUNK, context_tokens - position), position, 1)
    spent_ms: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in range(ROUNDS):
        for rows, times in spent_ms.items():
            times.append(step_ms(context, rows, context_tokens, rows))
            context.remove(0, context_tokens)
    one_ms = statistics.median(spent_ms[1])
    for rows, times in spent_ms.items():
        cost = statistics.median(times) / one_ms
        pays_from = break_even(rows, cost)
        shown = "never" if pays_from is None else f"{pays_from:.2f}"
        print(
            f"{rows:3} rows  {cost * one_ms:7.1f} ms  cost {cost:5.2f}  pays from {shown}  at most {rows / cost:.2f}x"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else CHUNK)
