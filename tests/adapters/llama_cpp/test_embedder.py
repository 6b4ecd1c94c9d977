"""Batches of inputs, with a context whose vector for an input is that input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.embedder import CONTENDED_TOKENS_MAX, Embedder, Job
from adapters.llama_cpp.messages import Embedded, Reranked


class FakeEncoder:
    slots = 8
    batch_tokens = 256

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._first: dict[int, int] = {}

    def encode(self, batch: Batch) -> None:
        native = batch.native
        self.batches.append(batch.size)
        self._first = {native.seq_id[at][0]: native.token[at] for at in range(batch.size) if native.pos[at] == 0}

    def embedding(self, slot: int, last_row: int) -> npt.NDArray[np.float32]:
        return np.array([self._first[slot], 0], np.float32)


def job(id: int, count: int, size: int = 10) -> Job:
    return Job(id, [np.full(size, 100 * id + place, np.int32) for place in range(count)])


def test_scores_come_back_in_the_order_of_the_documents() -> None:
    embedder = Embedder(FakeEncoder(), ranks=True)
    embedder.submit(job(1, 20))
    done = [one for _ in range(3) for one in embedder.step()]
    assert done == [Reranked(1, tuple(float(100 + place) for place in range(20)), 200)]
    assert embedder.idle


def test_a_small_request_overtakes_a_large_one() -> None:
    encoder = FakeEncoder()
    embedder = Embedder(encoder)
    embedder.submit(job(1, 50))
    embedder.submit(job(2, 2))
    (done,) = embedder.step()
    assert isinstance(done, Embedded) and (done.id, len(done.vectors)) == (2, 2)
    while not embedder.idle:
        embedder.step()
    assert sum(encoder.batches) == 520 and len(encoder.batches) == 7


def test_batches_are_small_while_streams_of_other_models_wait() -> None:
    encoder = FakeEncoder()
    embedder = Embedder(encoder, contended=lambda: True)
    embedder.submit(job(1, 3, size=60))
    embedder.submit(job(2, 1, size=200))
    while not embedder.idle:
        embedder.step()
    assert encoder.batches == [60, 200, 120], "at most as many tokens as are bearable, but one input at least"
    assert 120 <= CONTENDED_TOKENS_MAX < 180


def test_an_input_that_does_not_fit_beside_others_gets_its_turn() -> None:
    encoder = FakeEncoder()
    embedder = Embedder(encoder)
    embedder.submit(job(1, 40))
    embedder.submit(job(2, 1, size=250))
    assert embedder.step() == []
    assert [one.id for one in embedder.step()] == [2]


def test_a_cancelled_request_is_not_computed() -> None:
    encoder = FakeEncoder()
    embedder = Embedder(encoder)
    embedder.submit(job(1, 3))
    assert embedder.cancel(1) and not embedder.cancel(1)
    assert embedder.idle and not encoder.batches
