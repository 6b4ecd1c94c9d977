"""Where to take checkpoints of a model that cannot forget a suffix: a recurrent one, or a hybrid of that and attention.

Such a model can only go on from a state it once had. The states worth having are those the next request may come back
to: just before the end of the prompt, for the same prompt again or an answer that comes back in other words, and where
the last messages begin, for a message that was edited or a conversation that shares its beginning.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.kept import Checkpoint

BOUNDARIES_MAX = 3
CHECKPOINTS_MAX = 8
CHECKPOINT_BYTES_MAX = 128 << 20
SPACING_TOKENS_MIN = 16


def places(prompt: Int32s, ends: Collection[int]) -> list[int]:
    """The positions of a prompt to stop at, in order; `ends` are the tokens that end a message."""
    boundaries = np.flatnonzero(np.isin(prompt, list(ends)))[-BOUNDARIES_MAX:] + 1
    chosen: list[int] = []
    for at in sorted({*boundaries.tolist(), len(prompt) - 1}, reverse=True):
        if at < len(prompt) and at >= SPACING_TOKENS_MIN and (not chosen or chosen[-1] - at >= SPACING_TOKENS_MIN):
            chosen.append(at)
    return chosen[::-1]


def bounded(checkpoints: list[Checkpoint]) -> tuple[Checkpoint, ...]:
    """As many as may be kept of one conversation, the latest."""
    chosen: list[Checkpoint] = []
    size_bytes = 0
    for checkpoint in sorted(checkpoints, key=lambda one: -one.position)[:CHECKPOINTS_MAX]:
        size_bytes += len(checkpoint.state)
        if size_bytes > CHECKPOINT_BYTES_MAX:
            break
        chosen.append(checkpoint)
    return tuple(chosen[::-1])
