"""What drawing a token costs beside the step that computes its logits.

    python -m tests.bench.sampling MODEL.gguf [STEPS]

Each step's logits are drawn from in every way in turn, so that all see the same machine. Printed are medians: a draw in
milliseconds, and what it adds to taking the largest logit, in percent of a step. A model with random weights has flat
logits, of which the smallest set that holds top-p is most of the vocabulary; `peaked` are the same, sharpened until
they look like those of a trained one.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from adapters.llama_cpp.arrays import Float32s
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.native import Context, Model, quiet
from adapters.llama_cpp.sampling import Sampler
from adapters.types import Sampling

STEPS = 60
CELLS = 256
PEAKED_SPREAD = 3.0
WAYS = {
    "greedy": Sampling(temperature=0.0),
    "temperature": Sampling(temperature=1.0, seed=1),
    "top_p 0.95": Sampling(temperature=1.0, top_p=0.95, seed=1),
    "top_p 0.9": Sampling(temperature=0.7, top_p=0.9, seed=1),
    "top_p 0.5": Sampling(temperature=1.0, top_p=0.5, seed=1),
    "top_k 40, top_p 0.95": Sampling(temperature=1.0, top_k=40, top_p=0.95, seed=1),
}


def peaked(row: Float32s) -> Float32s:
    return row * np.float32(PEAKED_SPREAD / row.std())


def pick_ms(sampler: Sampler, row: Float32s) -> float:
    row = row.copy()
    began_s = time.perf_counter()
    sampler.pick(row)
    return (time.perf_counter() - began_s) * 1000


def main(path: Path, steps: int) -> None:
    quiet()
    model = Model(path, gpu_layers=0, progress=lambda fraction: None)
    context = Context(model, cells=CELLS, slots=1, batch_tokens=16, outputs_max=1, threads=1, lease=nullcontext())
    samplers = {name: Sampler(sampling, np.empty(0, np.int64)) for name, sampling in WAYS.items()}
    step_ms: list[float] = []
    spent_ms: dict[tuple[str, str], list[float]] = {}
    for position in range(min(steps, CELLS)):
        batch = Batch(context.batch_tokens, context.slots)
        batch.add(np.array([300 + position], dtype=np.int32), position, 0, outputs=1)
        began_s = time.perf_counter()
        assert context.decode(batch) == 0
        flat = context.logits(1)[0].copy()
        step_ms.append((time.perf_counter() - began_s) * 1000)
        for kind, row in (("flat", flat), ("peaked", peaked(flat))):
            for name, sampler in samplers.items():
                spent_ms.setdefault((kind, name), []).append(pick_ms(sampler, row))
    whole_ms = statistics.median(step_ms)
    print(f"a step takes {whole_ms:.1f} ms, {len(flat)} logits")
    for (kind, name), times in spent_ms.items():
        cost_ms = statistics.median(times)
        added = (cost_ms - statistics.median(spent_ms[kind, "greedy"])) / whole_ms
        print(f"{kind:6} {name:22} {cost_ms:6.3f} ms  {added:+6.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
