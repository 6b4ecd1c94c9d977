"""Drawing tokens from logits with numpy: whole rows at a time, never token by token, and never a full sort.

Temperature comes first, then top-k, min-p and top-p, each on the renormalised rest. The nucleus is sampled by rejection
with a rising pivot, as in FlashInfer's sorting-free kernels (Ye et al., 2025): draw from the whole distribution, accept
when less than top-p of the mass lies above the drawn probability, otherwise drop everything up to it and draw again.
That is exact, and costs a few passes over the vocabulary where sorting 152,000 flat logits costs milliseconds.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from adapters.llama_cpp.arrays import Float32s, Int64s
from adapters.types import Sampling

BLOCK = 64
GREEDY_TEMPERATURE = 1e-3


def top(row: Float32s, count: int) -> Int64s:
    """Indices of the `count` largest values, largest first. One pass plus work on the few candidates left.

    The count-th largest block maximum is a lower bound of the count-th largest value.
    """
    count = min(count, len(row))
    blocks = len(row) // BLOCK
    if blocks > 2 * count:
        maxima = row[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        bound = np.partition(maxima, blocks - count)[blocks - count]
        candidates = np.flatnonzero(row >= bound)
    else:
        candidates = np.arange(len(row))
    values = row[candidates]
    if len(candidates) > count:
        keep = values >= np.partition(values, len(values) - count)[len(values) - count]
        candidates, values = candidates[keep], values[keep]
    # Ties go to the lower index, so that equal requests give equal lists.
    return candidates[np.lexsort((candidates, -values))][:count]


def log_normaliser(row: Float32s) -> float:
    """log(sum(exp(row))), stable."""
    peak = float(row.max())
    return peak + math.log(float(np.exp(row - peak).sum(dtype=np.float64)))


def draw(weights: Float32s, top_p: float, random: np.random.Generator) -> int:
    """An index drawn in proportion to `weights`, from the smallest set that holds `top_p` of their sum."""
    limit = top_p * float(weights.sum(dtype=np.float64))
    ids: Int64s | None = None
    while True:
        index = _pick(weights, random.random())
        if top_p >= 1.0:
            break
        above = weights > weights[index]
        if float(np.dot(weights, above.astype(np.float32))) < limit:
            break
        keep = np.flatnonzero(above)
        ids = keep if ids is None else ids[keep]
        weights = weights[keep]
    return int(index if ids is None else ids[index])


def _pick(weights: Float32s, uniform: float) -> int:
    """Inverse transform sampling in two levels, so that only block sums and one block are accumulated."""
    blocks = len(weights) // 512
    if blocks < 8:
        sums = np.cumsum(weights, dtype=np.float64)
        return _first_above(sums, uniform * sums[-1], weights)
    split = blocks * 512
    parts = weights[:split].reshape(blocks, 512).sum(axis=1, dtype=np.float64)
    sums = np.cumsum(np.append(parts, weights[split:].sum(dtype=np.float64)))
    target = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), blocks)
    while block and (block * 512 >= len(weights) or not weights[block * 512 : (block + 1) * 512].any()):
        block -= 1
    inside = weights[block * 512 : (block + 1) * 512]
    before = sums[block - 1] if block else 0.0
    return block * 512 + _first_above(np.cumsum(inside, dtype=np.float64), target - before, inside)


def _first_above(sums: npt.NDArray[np.float64], target: float, weights: Float32s) -> int:
    """The first index whose running sum passes `target`; rounding at the end falls back to the last real weight."""
    index = int(np.searchsorted(sums, target, side="right"))
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])


class Recommended(msgspec.Struct, frozen=True):
    """What holds where a request leaves a value open; models may bring their own (`general.sampling.*` in GGUF)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


NO_ADVICE = Recommended()


class Sampler:
    """The drawing of one sequence: its parameters, its random stream, and the counts its penalties need.

    `banned` tokens are never drawn. The same seed, `stream` (the choice) and logits give the same tokens.
    """

    def __init__(
        self, sampling: Sampling, banned: Int64s, recommended: Recommended = NO_ADVICE, stream: int = 0
    ) -> None:
        self._sampling = sampling
        self._temperature = recommended.temperature if sampling.temperature is None else sampling.temperature
        self._top_p = recommended.top_p if sampling.top_p is None else sampling.top_p
        self._top_k = recommended.top_k if sampling.top_k is None else sampling.top_k
        self._min_p = recommended.min_p if sampling.min_p is None else sampling.min_p
        self._banned = banned
        seed = None if sampling.seed is None else (sampling.seed % 2**64, stream)
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._counts: dict[int, int] = {}
        self._penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32)
        self.greedy = self._temperature < GREEDY_TEMPERATURE or self._top_k == 1 or self._top_p <= 0.0

    def pick(self, row: Float32s) -> int:
        """The next token. `row` is one row of logits and is overwritten."""
        if len(self._banned):
            row[self._banned] = -np.inf
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias
        if self._counts:
            self._penalise(row)
        token = int(row.argmax()) if self.greedy else self._draw(row)
        self.count(token)
        return token

    def count(self, token: int) -> None:
        """Notes a token for the penalties of those after it; one that was not drawn counts as well."""
        if self._penalised:
            self._counts[token] = self._counts.get(token, 0) + 1

    def _penalise(self, row: Float32s) -> None:
        """Lowers what was generated before, as OpenAI defines the two penalties."""
        ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        row[ids] -= self._sampling.presence_penalty + self._sampling.frequency_penalty * counts

    def _draw(self, row: Float32s) -> int:
        ids: Int64s | None = None
        if self._top_k:
            ids = top(row, self._top_k)
            row = row[ids]
        row -= row.max()
        row *= np.float32(1.0 / self._temperature)
        if self._min_p:
            keep = np.flatnonzero(row >= math.log(self._min_p))
            ids = keep if ids is None else ids[keep]
            row = row[keep]
        index = draw(np.exp(row, out=row), self._top_p, self._random)
        return int(index if ids is None else ids[index])
