"""The scheduler's part for images: which one is computed next, how much of it, and what it waits for."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.images import Image, Span, position
from adapters.llama_cpp.kept import Cells
from adapters.llama_cpp.sequence import Guide, Sequence


class Engine(Cells, Protocol):
    """What a scheduler needs of a context."""

    cells: int
    slots: int
    outputs_max: int

    def adapt(self, scales: tuple[tuple[int, float], ...]) -> None: ...

    def decode(self, batch: Batch) -> int: ...

    def logits(self, rows: int) -> Float32s: ...


class Sight(Protocol):
    """What computing embeddings in place of tokens needs of a context."""

    def see(self, embeddings: Float32s, positions: Int32s, slot: int, *, output: bool, whole: bool) -> int: ...

    def logits(self, rows: int) -> Float32s: ...


class Masks(Protocol):
    """Computes what the grammars of a step allow while the step is decoded: ceilings of the logits."""

    def begin(self, guides: list[Guide]) -> None: ...

    def end(self) -> Float32s: ...


class Eyes(Protocol):
    """What makes embeddings of images, meanwhile."""

    encoded: int
    reused: int
    bytes: int

    def want(self, image: Image) -> None: ...

    def forget(self, image: Image) -> None: ...


class Piece(NamedTuple):
    """The next `len(embeddings)` positions of a sequence, `done` after the begin of an image."""

    sequence: Sequence
    span: Span
    done: int
    embeddings: Float32s


class Looking:
    """Images of running sequences. With `whole` none is computed in pieces, because its positions see each other."""

    def __init__(self, sight: Sight, eyes: Eyes, *, whole: bool) -> None:
        self.eyes = eyes
        self._sight = sight
        self._whole = whole

    def ready(self, running: list[Sequence]) -> list[Sequence]:
        """Those whose next position is an image's that has its embeddings, the oldest first. Asks for the embeddings of
        everybody's next image."""
        self._ask(running)
        found = [one for one in running if one.image and not one.run and not one.finish and one.image.image.parts]
        return sorted(found, key=lambda one: one.order)

    def _ask(self, running: list[Sequence]) -> None:
        for one in running:
            if one.image is not None:
                self.eyes.want(one.image.image)

    def piece(self, sequence: Sequence, budget: int) -> Piece:
        """What to compute next of a sequence that is ready, at most `budget` positions."""
        span = sequence.image
        assert span is not None and span.image.parts
        done = sequence.computed - span.start
        count = span.count if self._whole else min(span.count - done, budget)
        return Piece(sequence, span, done, span.image.parts[span.part][done : done + count])

    def compute(self, piece: Piece, masks: Masks | None) -> int:
        """Returns what a decode returns; after a 0 the sequence has moved on."""
        sequence, span, done, embeddings = piece
        complete = len(embeddings) == sequence.pending
        first = position(sequence.tokens, span.start)
        positions = span.positions(first, done, len(embeddings))
        code = self._sight.see(embeddings, positions, sequence.slot, output=complete, whole=self._whole)
        if code == 0:
            sequence.computed += len(embeddings)
            if complete:
                sequence.advance(self._sight.logits(1)[0], _ceiling(sequence, masks))
            if sequence.image is None or sequence.image.image is not span.image:
                self.eyes.forget(span.image)
                self._ask([sequence])
        return code

    def leave(self, sequence: Sequence) -> None:
        """The sequence is over."""
        if sequence.image is not None:
            self.eyes.forget(sequence.image.image)


def _ceiling(sequence: Sequence, masks: Masks | None) -> Float32s | None:
    """What its grammar allows after a prompt that ends with an image."""
    if masks is None or sequence.guide is None or not sequence.wants_mask:
        return None
    masks.begin([sequence.guide])
    ceiling: Float32s = masks.end()[0]
    return ceiling


def blocked(running: list[Sequence]) -> bool:
    """Whether nothing can be computed until an image has its embeddings."""
    return bool(running) and all(
        not one.run and not one.finish and one.image and not one.image.image.parts for one in running
    )


def blind(running: list[Sequence]) -> set[int]:
    """Requests with an image that could not be encoded."""
    return {one.request for one in running if one.image and one.image.image.failed}
