"""Tokens that probably come next, for rows of a decode that cost next to nothing.

A row behind the one that a sequence's next token is drawn from computes a guess at that token. Where the guess is
right, the row holds the logits of the token after it, and the step yields both; otherwise its cell is dropped. So no
token is drawn otherwise than it would be without guesses, as in speculative decoding (Leviathan et al., 2023); what is
guessed is what followed in the same text before, as in prompt lookup (Saxena, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.pacing import RIGHT_MIN
from adapters.llama_cpp.sequence import Sequence

# How far back is searched, which takes 10 us.
WINDOW_TOKENS = 4096
MATCH_TOKENS_MAX = 4
# How quickly the luck of a sequence follows its latest guesses, and how quickly it comes back where there are none: one
# that guesses wrong does so every twentieth step.
LUCK_STEP = 0.1
LUCK_RETURN = 0.001


def likely(tokens: Int32s) -> tuple[int, int] | None:
    """What followed when the last tokens stood here before, and how many of them did, four at most. The longest such
    stretch decides, and of several the latest."""
    known = tokens[-WINDOW_TOKENS:]
    ends = np.flatnonzero(known[:-1] == known[-1])
    if not len(ends):
        return None
    for length in range(1, MATCH_TOKENS_MAX):
        longer = ends[ends >= length]
        longer = longer[known[longer - length] == known[-1 - length]]
        if not len(longer):
            return int(known[ends[-1] + 1]), length
        ends = longer
    return int(known[ends[-1] + 1]), MATCH_TOKENS_MAX


class Guesses:
    """The guesses of one step, and how many were `made` and `right` in all steps. `spare`: how many have room beside so
    many rows."""

    def __init__(self, spare: Mapping[int, int]) -> None:
        self.made = self.right = 0
        self._spare = spare
        self._tokens: dict[Sequence, int] = {}

    def make(self, sequences: list[Sequence], cells: int) -> None:
        """Guesses for a decode of one token of each of these, when so many cells are free. Those come first for which
        the longest stretch speaks."""
        self._tokens = {}
        rows = min(self._spare.get(len(sequences), 0), cells - len(sequences))
        if rows <= 0:
            return
        found: list[tuple[int, Sequence, int]] = []
        for one in sequences:
            if one.luck < RIGHT_MIN:
                one.luck += LUCK_RETURN
            elif one.guessable and (guess := likely(one.tokens[: one.length])) is not None:
                token, length = guess
                found.append((length, one, token))
        found.sort(key=lambda guess: guess[0], reverse=True)
        self._tokens = {one: token for _, one, token in found[:rows]}

    def of(self, sequence: Sequence) -> int | None:
        return self._tokens.get(sequence)

    def confirm(self, sequence: Sequence) -> bool:
        """Whether the guess is the token that was drawn since, and another one can be drawn behind it."""
        alone = sequence.pending == 1 and not sequence.finish and not sequence.wants_mask
        right = alone and int(sequence.tokens[sequence.computed]) == self._tokens[sequence]
        self.made += 1
        self.right += right
        sequence.luck += LUCK_STEP * (right - sequence.luck)
        return right
