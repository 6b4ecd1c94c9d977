"""Tokens that probably come next, for rows of a decode that cost next to nothing.

A row behind the one that a sequence's next token is drawn from computes a guess at that token. Where the guess is
right, the row holds the logits of the token after it, and the step yields both; otherwise its cell is dropped. So no
token is drawn otherwise than it would be without guesses, as in speculative decoding (Leviathan et al., 2023); what is
guessed is what followed in the same text before, as in prompt lookup (Saxena, 2023).
"""

from __future__ import annotations

import numpy as np

from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.kept import Cells
from adapters.llama_cpp.looking import Masks
from adapters.llama_cpp.pacing import RIGHT_MIN, Limits
from adapters.llama_cpp.sequence import Sequence

# How far back is searched, which takes 10 us.
WINDOW_TOKENS = 4096
MATCH_TOKENS_MAX = 4
# How quickly the luck of a sequence follows its latest guesses, and how quickly it comes back where there are none: one
# that guesses wrong does so every twentieth step.
LUCK_STEP = 0.1
LUCK_RETURN = 0.001
# How quickly what a row's look at a cell costs follows the latest steps.
CELL_STEP = 0.1


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
    """The guesses of one step, and how many were `made` and `right` in all steps.

    The rows of a step are cheap together, but each looks at all cells of its own sequence, which a guess has to be
    worth. What that costs is learned from how much longer steps take than they did in an empty context.
    """

    def __init__(self, limits: Limits, cells: Cells, masks: Masks | None) -> None:
        self.made = self.right = 0
        # Where a sequence cannot be cut anywhere, a wrong guess could not be taken back.
        self._spare = limits.spare if cells.partial_states else {}
        self._step_us = limits.step_us
        self._cell_us = 0.0
        # Of the step under way, and how many cells its rows look at.
        self._rows = self._seen = 0
        self._cells = cells
        self._masks = masks
        self._tokens: dict[Sequence, int] = {}
        self._drawn: list[tuple[Sequence, Float32s]] = []

    def make(self, sequences: list[Sequence], cells: int) -> None:
        """Guesses for a decode of one token of each of these, when so many cells are free. Those come first for which
        the longest stretch speaks."""
        self._tokens = {}
        self._rows, self._seen = len(sequences), sum(one.length for one in sequences)
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
        chosen = found[: self._worth([one for _, one, _ in found[:rows]])]
        self._tokens = {one: token for _, one, token in chosen}
        self._rows += len(chosen)
        self._seen += sum(one.length for _, one, _ in chosen)

    def _worth(self, guessed: list[Sequence]) -> int:
        """For how many of these a guess brings more tokens in the time that a step with it takes."""
        rows, seen, gained, worth = self._rows, self._seen, 0.0, 0
        plain_us = self._step_us.get(rows, 0) + self._cell_us * seen
        for count, one in enumerate(guessed, 1):
            seen += one.length
            gained += one.luck
            if self._step_us.get(rows + count, 0) + self._cell_us * seen <= plain_us * (1 + gained / rows):
                worth = count
        return worth

    def learn(self, spent_us: int) -> None:
        """What the step took."""
        if self._seen and self._rows in self._step_us:
            looked_us = max(0, spent_us - self._step_us[self._rows])
            self._cell_us += CELL_STEP * (looked_us / self._seen - self._cell_us)

    def of(self, sequence: Sequence) -> int | None:
        return self._tokens.get(sequence)

    def drawn(self, sequence: Sequence, row: Float32s) -> None:
        """The token that was guessed has been drawn; `row` are the logits behind the guess."""
        self._drawn.append((sequence, row))

    def follow(self) -> None:
        """Goes on from the guesses that were right, and takes the others back."""
        drawn, self._drawn = self._drawn, []
        right = []
        for sequence, row in drawn:
            if self._confirm(sequence):
                sequence.computed += 1
                right.append((sequence, row))
            else:
                self._cells.remove(sequence.slot, sequence.computed)
        ceilings = self._ceilings([sequence for sequence, _ in right])
        for sequence, row in right:
            sequence.advance(row, ceilings.get(sequence))

    def _confirm(self, sequence: Sequence) -> bool:
        alone = sequence.pending == 1 and not sequence.finish
        right = alone and int(sequence.tokens[sequence.computed]) == self._tokens[sequence]
        self.made += 1
        self.right += right
        sequence.luck += LUCK_STEP * (right - sequence.luck)
        return right

    def _ceilings(self, sequences: list[Sequence]) -> dict[Sequence, Float32s]:
        """What grammars allow behind the guesses. They have moved on since those of the step were computed."""
        guided = [(one, one.guide) for one in sequences if one.guide is not None and one.wants_mask]
        if not guided or self._masks is None:
            return {}
        self._masks.begin([guide for _, guide in guided])
        return dict(zip((one for one, _ in guided), self._masks.end(), strict=True))
