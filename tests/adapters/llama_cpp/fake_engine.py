"""A context without a model: it keeps cells as llama.cpp does and predicts by hashing each sequence's history.

Because the prediction depends on every token before it, a wrong share, a lost cell or a stale restore shows as a wrong
next token.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.images import Image, Span
from adapters.llama_cpp.kept import NEVER, State

VOCABULARY = 97
Scales = tuple[tuple[int, float], ...]
END = frozenset({0})


def predicted(history: list[int]) -> int:
    """The next token after `history`; never the end token."""
    return 1 + zlib.crc32(np.array(history, np.int32).tobytes()) % (VOCABULARY - 1)


Predict = Callable[[list[int]], int]


def continuation(prompt: list[int], count: int, predict: Predict = predicted) -> list[int]:
    """What an engine that makes no mistake generates."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(predict(tokens))
    return tokens[len(prompt) :]


class FakeEngine:
    """Cells are objects that several sequences may hold; a decode that needs more than there are changes nothing."""

    cell_bytes = 2
    # Images need numbers below zero.
    state_type: type[np.integer[Any]] = np.uint8

    def __init__(
        self, *, cells: int, slots: int, outputs_max: int = 64, partial: bool = True, predict: Predict = predicted
    ) -> None:
        self._predict = predict
        self.partial_sequences = self.partial_states = partial
        self.copies = 0
        self.cells = cells
        self.slots = slots
        self.outputs_max = outputs_max
        self.computed = 0
        self.batches: list[list[tuple[int, int]]] = []
        self.seen: list[int] = []
        self.fail_with: list[int] = []
        self.on_decode: Callable[[int], None] = lambda tokens: None
        self.on_copy: Callable[[], None] = lambda: None
        self.adapted: Scales = ()
        self._sets: list[Scales] = [()]
        # Each cell is its token and the place of the adapter set it was computed under.
        self._held: dict[int, list[list[int]]] = {slot: [] for slot in range(slots)}
        self._rows: list[int] = []
        # Where a sequence of a model that cannot forget may be cut: at the checkpoint that was just restored.
        self._cut: dict[int, int] = {}

    def used(self) -> int:
        return len({id(cell) for held in self._held.values() for cell in held})

    def adapt(self, scales: Scales) -> None:
        self.adapted = scales
        if scales not in self._sets:
            self._sets.append(scales)

    def decode(self, batch: Batch) -> int:
        native = batch.native
        run = [(native.seq_id[at][0], native.token[at], native.pos[at], native.logits[at]) for at in range(batch.size)]
        if self.fail_with:
            return self.fail_with.pop(0)
        if self.used() + len(run) > self.cells:
            return 1
        self._rows = []
        for slot, token, position, output in run:
            assert position == len(self._held[slot]), "positions must follow each other"
            self._held[slot].append([token, self._sets.index(self.adapted)])
            assert len({cell[1] for cell in self._held[slot]}) == 1, "cells of two adapter sets in one sequence"
            if output:
                self._rows.append(self._predict([cell[0] for cell in self._held[slot]]))
        assert len(self._rows) <= self.outputs_max
        self.computed += len(run)
        self.on_decode(len(run))
        slots = [slot for slot, *_ in run]
        self.batches.append([(slot, slots.count(slot)) for slot in dict.fromkeys(slots)])
        return 0

    def see(
        self,
        embeddings: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int32],
        slot: int,
        *,
        output: bool,
        whole: bool,
    ) -> int:
        """Embeddings are the numbers that stand for them, as bits."""
        tokens = np.ascontiguousarray(embeddings).view(np.int32)[:, 0].tolist()
        if self.fail_with:
            return self.fail_with.pop(0)
        if self.used() + len(tokens) > self.cells:
            return 1
        held = self._held[slot]
        assert positions.tolist() == list(range(len(held), len(held) + len(tokens)))
        held += [[token, self._sets.index(self.adapted)] for token in tokens]
        assert len({cell[1] for cell in held}) == 1, "cells of two adapter sets in one sequence"
        self._rows = [predicted([cell[0] for cell in held])] if output else []
        self.computed += len(tokens)
        self.seen.append(len(tokens))
        self.on_decode(len(tokens))
        return 0

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        assert rows == len(self._rows)
        out = np.zeros((rows, VOCABULARY), np.float32)
        out[np.arange(rows), self._rows] = 10.0
        return out

    def remove(self, slot: int, start: int = 0) -> bool:
        if not self.partial_sequences and 0 < start < len(self._held[slot]) and start != self._cut.get(slot):
            return False
        del self._held[slot][start:]
        return True

    def share(self, source: int, target: int, end: int) -> None:
        assert not self._held[target] and end <= len(self._held[source])
        self._held[target] = self._held[source][: end if self.partial_sequences else None]

    def cut_min(self, slot: int) -> int:
        return 0 if self.partial_sequences else NEVER

    def save_partial(self, slot: int) -> State:
        return np.array([len(self._held[slot])], np.int64).view(np.uint8)

    def restore_partial(self, slot: int, state: State) -> bool:
        self._cut[slot] = int(state.view(np.int64)[0])
        return True

    def save(self, slot: int) -> State:
        self.copies += 1
        self.on_copy()
        return np.array(self._held[slot], self.state_type).ravel().view(np.uint8)

    def restore(self, slot: int, state: State) -> bool:
        self.copies += 1
        self.on_copy()
        cells = state.view(self.state_type).reshape(-1, 2).tolist()
        if self._held[slot] or self.used() + len(cells) > self.cells:
            return False
        self._held[slot] = cells
        return True


class FakeEyes:
    """Works when told to; an image has its embeddings after `patience` times."""

    def __init__(self, patience: int = 0) -> None:
        self.encoded = self.reused = self.bytes = 0
        self._patience = patience
        self.wanted: dict[Image, int] = {}

    def want(self, image: Image) -> None:
        if image.parts is None and not image.failed:
            self.wanted.setdefault(image, self._patience)

    def forget(self, image: Image) -> None:
        image.parts = None
        self.wanted.pop(image, None)

    def work(self) -> None:
        for image, left in list(self.wanted.items()):
            self.wanted[image] = left - 1
            if left > 0:
                continue
            del self.wanted[image]
            if image.data == b"broken":
                image.failed = True
                continue
            self.encoded += 1
            (count,) = image.data
            image.parts = (Span(0, count, 0, image, 0).tokens().view(np.float32)[:, None],)


class FakePieces:
    """Tokens spelt as two-digit numbers and a space."""

    end = END

    def piece(self, token: int) -> bytes:
        return b"%02d " % token

    def text(self, token: int, *, special: bool = True) -> bytes:
        return self.piece(token)
