"""Whether llama.cpp computes on this machine: `python -m adapters.llama_cpp.trial`, in a process that may die of it.

The library is compiled for one CPU. On another one, or compiled wrongly for this one, it loads all the same and kills
its process when it computes.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np

from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.native import Context, Model, build, cpu_features, quiet

DEMO = Path(__file__).parent / "demo" / "demo.gguf"
# One row runs through other code than many.
ROWS = (32, 1)


def main() -> None:
    """Print the library's version and what it makes use of in this CPU, then compute."""
    print(build()[0], *cpu_features(), flush=True)
    quiet()
    model = Model(DEMO, gpu_layers=0, progress=lambda fraction: None)
    context = Context(model, cells=256, slots=1, batch_tokens=max(ROWS), outputs_max=1, threads=2, lease=nullcontext())
    batch, position = Batch(max(ROWS), 1), 0
    for rows in ROWS:
        batch.clear()
        batch.add(np.arange(1, rows + 1, dtype=np.int32), position, 0, outputs=1)
        if context.decode(batch) != 0 or not np.isfinite(context.logits(1)).all():
            raise SystemExit("llama.cpp computes no numbers")
        position += rows


if __name__ == "__main__":
    main()
