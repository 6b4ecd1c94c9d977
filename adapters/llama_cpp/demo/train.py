"""Train the demo model: `python -m adapters.llama_cpp.demo.train --minutes 40 --threads 2 --out demo.gguf`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Parse the arguments and train; a run that was stopped goes on from the checkpoint next to the output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0, help="length of the training, resumed runs included")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--seed", type=int, default=1, help="seed of the text and of the weights")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between exports during the training")
    options = parser.parse_args()
    try:
        import torch

        from adapters.llama_cpp.demo.learner import Trainer
    except ImportError as missing:
        sys.exit(f"{missing}. Training needs: pip install torch tokenizers numpy gguf")
    torch.set_num_threads(options.threads)
    trainer = Trainer(options.out, options.seed)
    print(trainer, flush=True)
    trainer.run(options.minutes, options.save_every)


if __name__ == "__main__":
    main()
