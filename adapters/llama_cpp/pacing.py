"""How much of what is computed in a step: the numbers a scheduler goes by, and how a prompt budget is shared."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import ceil

CHUNK_TOKENS_MIN = 16
# llama.cpp's flash attention works on 64 rows at a time on a CPU, and on single rows below that: measured on 2,000
# cells, 64 rows take 127 ms, 63 take 235, 65 take 172 and 128 take 221.
TILE_TOKENS = 64
# What more tiles than are filled `block` puts up with, as fewer tokens make a smaller gap.
TILES_EXCESS_MAX = 1.15
# A tile is computed over all cells that any of its rows needs, so that the rows of streams make a tile of prompts walk
# over theirs. Measured with 100M and 0.5B parameters, from this number on that costs more than a step for themselves.
APART_CELLS_MIN = 192
# For how many chunks of prompts the streams of their burst wait at a time. The rows of a few streams cost nearly as
# much as those of all: with a step of theirs after each of 16 prompts of 400 tokens, these took 4 % longer.
BURST_CHUNKS = 2
# The part of all guesses that is taken to be right, though more were in most answers of the demonstration model: a row
# may cost so much of what the tokens of a step do. Where fewer are, hardly any are made.
RIGHT = 1 / 3
RIGHT_MIN = 0.2
# How quickly the tokens of a decode step follow the latest ones, each of which has few guesses or none.
GAINED_STEP = 0.05
# What a padded step may cost of one that is not: a tenth must be saved, since they are measured shortly, on machines
# that are noisy.
PADDED_COST_MAX = 0.9


class Limits:
    """Fixed numbers of a scheduler: `parallel` sequences, `chunk_tokens` per step, the target gap in microseconds,
    to how many rows a decode of so many is padded, for how many guesses it has `spare` rows, how many microseconds one
    of so many rows took (`step_us`, where that was measured), the `tile` of tokens that is computed as fast as any part
    of it (1: no such thing), and the `block` of tiles that is computed fastest, two of them unless it is given."""

    def __init__(
        self,
        *,
        parallel: int,
        chunk_tokens: int,
        target_gap_us: int,
        padding: Mapping[int, int],
        tile: int,
        block: int | None = None,
        spare: Mapping[int, int] | None = None,
        step_us: Mapping[int, int] | None = None,
    ) -> None:
        self.parallel = parallel
        self.chunk_tokens = chunk_tokens
        self.target_gap_us = target_gap_us
        self.padding = padding
        self.spare = spare or {}
        self.step_us = step_us or {}
        self.tile = tile
        self.block = block or 2 * tile


class Rates:
    """Moving averages of what a prompt token and a decode step cost, in microseconds, and of the tokens that a stream
    gains in such a step: more than one where guesses are right."""

    def __init__(self, prefill_us: float, decode_us: float) -> None:
        self.prefill_us = prefill_us
        self.decode_us = decode_us
        self.gained = 1.0

    def learn(self, spent_us: int, decoding: int, prompt_tokens: int, guessed: int = 0) -> None:
        """From a step with a token of each stream that decodes, `guessed` more where guesses were right, and so many of
        prompts."""
        if not prompt_tokens:
            self.decode_us += 0.2 * (spent_us - self.decode_us)
            self.gained += GAINED_STEP * (1 + guessed / decoding - self.gained)
        elif prompt_tokens >= CHUNK_TOKENS_MIN:
            # Decoding rows ride along in the same matrix products, so each costs about what a prompt token does.
            self.prefill_us += 0.6 * (spent_us / (prompt_tokens + decoding) - self.prefill_us)


def block(heads: int, threads: int) -> int:
    """The tokens of two, three or four tiles, whichever is computed with the least waste for its size.

    Flash attention deals heads times rows out in four equal parts for each thread, and a tile that the end of a part
    cuts is computed twice. With three threads and 16 heads 128 rows take 1.34 times the tiles that they fill, 192 rows
    1.00; measured with four threads and 12 heads, a token of 256 rows costs 0.7 to 0.8 times what one of 128 does.
    """

    def excess(tiles: int) -> float:
        rows = tiles * TILE_TOKENS
        total = rows * heads
        part = ceil(total / (4 * threads)) if threads > 1 else total
        ends = sorted({*range(0, total, part), *range(0, total, rows), total})
        computed: int = sum(ceil((end - start) / TILE_TOKENS) for start, end in pairwise(ends))
        return computed / (tiles * heads)

    return TILE_TOKENS * min((2, 3, 4), key=lambda tiles: (max(excess(tiles), TILES_EXCESS_MAX), tiles))


def paced(limits: Limits, room: float, decoding: int) -> int:
    """Prompt tokens beside `decoding` rows when the target gap has time for `room` of them.

    Blocks, or else pairs of tiles, or else one tile. The first block or pair may take up to twice the target and the
    first tile four times, because less would make everything slower: part of a tile costs about as much as all of it,
    and going by that cost would lead to ever smaller parts. Where even that is too slow, as few tokens as the target
    asks for.
    """
    total = int(room)
    for unit, excess in ((limits.block, 2), (2 * limits.tile, 2), (limits.tile, 4)):
        if total * excess >= unit:
            total = max(total // unit, decoding // unit + 1) * unit
            break
    return min(max(total - decoding, CHUNK_TOKENS_MIN), limits.chunk_tokens - decoding)


def fours(rows: int) -> int:
    """The least multiple of four that holds so many rows: CPU kernels work on four at a time."""
    return -(-rows // 4) * 4


def padded(spent_us: Mapping[int, int]) -> dict[int, int]:
    """To how many rows decodes of so many are best padded, going by what each took: eight can be faster than seven."""
    sizes = [size for size in spent_us if fours(size) in spent_us]
    best = {size: min(range(size, fours(size) + 1), key=spent_us.__getitem__) for size in sizes}
    return {size: rows for size, rows in best.items() if spent_us[rows] < PADDED_COST_MAX * spent_us[size]}


def spare(step_us: Mapping[int, int]) -> dict[int, int]:
    """How many guesses decodes of so many rows have room for, which cost no more than they are worth."""

    def pays(size: int, guesses: int) -> bool:
        larger_us = step_us.get(size + guesses)
        return larger_us is not None and larger_us <= step_us[size] * (1 + RIGHT * guesses / size)

    return {size: max(some for some in range(fours(size) - size + 1) if pays(size, some)) for size in step_us}


def padding(limits: Limits, size: int, *, decode: bool) -> int:
    """Dummy tokens that make a step of `size` faster: a pure decode gets as many as were measured to pay, and a step
    with prompt tokens that fill more than three quarters of a tile is filled up to it: that pays from 54 of 64 rows at
    the begin of a prompt and from 42 after 2,000 tokens, measured with 100M and 0.5B parameters."""
    if decode:
        return limits.padding.get(size, size) - size
    return limits.tile - size if limits.tile * 3 // 4 < size < limits.tile else 0


def shares(pending: list[int], budget: int) -> list[int]:
    """Splits a prompt budget over sequences in order of arrival, returning tokens for each.

    The oldest gets at least a quarter, so that a long prompt always moves; the rest goes to the shortest remaining
    first, which gives the lowest mean time to first token and keeps a long prompt from delaying short ones.
    """
    given = [0] * len(pending)
    if pending:
        given[0] = min(pending[0], max(1, budget // 4))
        budget -= given[0]
    for index in sorted(range(len(pending)), key=lambda at: pending[at] - given[at]):
        extra = min(pending[index] - given[index], budget)
        given[index] += extra
        budget -= extra
    return given


def ending(limits: Limits, pending: list[int], given: list[int]) -> list[int]:
    """What is `given` in a step to prompts with so many `pending`, without what only keeps others waiting: the shortest
    of those that end in it are enough for a step where they fill a block, or else three quarters of a chunk. Their
    first tokens come the sooner, and those of the others no later.

    The oldest keeps a quarter, as `shares` promises.
    """
    enough = limits.block if limits.tile > 1 else limits.chunk_tokens * 3 // 4
    kept = [0] * len(given)
    whole = [index for index, count in enumerate(given) if count == pending[index]]
    for index in sorted(whole, key=given.__getitem__):
        kept[index] = given[index]
        if sum(kept) >= enough:
            return [kept[0] or min(given[0], max(1, sum(given) // 4)), *kept[1:]]
    return given
