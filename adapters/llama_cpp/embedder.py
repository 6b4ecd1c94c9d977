"""Embeddings and the scores of rerankers: whole inputs of many requests packed into one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.messages import Embedded, Reranked

CONTENDED_TOKENS_MAX = 128


class Encoder(Protocol):
    """What embedding needs of a context."""

    slots: int
    batch_tokens: int

    def encode(self, batch: Batch) -> None: ...

    def embedding(self, slot: int, last_row: int) -> Float32s: ...


class Job:
    """One request: its inputs as token arrays, and the vectors so far."""

    def __init__(self, request: int, inputs: list[Int32s]) -> None:
        self.request = request
        self.inputs = inputs
        self.vectors: list[Float32s] = []


class Embedder:
    """Takes one input of each request in turn, so that a large request does not hold up the others; a batch holds as
    many as fit.

    While streams of other models wait for its batches (`contended`) they are small, though never less than one input.
    """

    def __init__(self, encoder: Encoder, *, ranks: bool = False, contended: Callable[[], bool] = lambda: False) -> None:
        self._encoder = encoder
        self._contended = contended
        self._ranks = ranks
        self._jobs: list[Job] = []
        self._batch = Batch(encoder.batch_tokens, encoder.slots)

    @property
    def idle(self) -> bool:
        return not self._jobs

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Queues a request; each input must fit into a batch."""
        self._jobs.append(job)

    def cancel(self, request: int) -> bool:
        kept = [job for job in self._jobs if job.request != request]
        found = len(kept) < len(self._jobs)
        self._jobs = kept
        return found

    def step(self) -> list[Embedded | Reranked]:
        """Computes one batch; returns the requests it completed."""
        self._batch.clear()
        owners: list[tuple[Job, int]] = []
        room = CONTENDED_TOKENS_MAX if self._contended() else self._batch.capacity
        for job, tokens in self._next_inputs():
            if owners and (len(owners) == self._encoder.slots or self._batch.size + len(tokens) > room):
                break
            self._batch.add(tokens, 0, len(owners), outputs=len(tokens))
            owners.append((job, self._batch.size - 1))
        self._encoder.encode(self._batch)
        for slot, (job, last_row) in enumerate(owners):
            job.vectors.append(self._encoder.embedding(slot, last_row))
        self._jobs.append(self._jobs.pop(0))
        return self._completed()

    def _next_inputs(self) -> Iterator[tuple[Job, Int32s]]:
        for ahead in range(self._encoder.slots):
            for job in self._jobs:
                at = len(job.vectors) + ahead
                if at < len(job.inputs):
                    yield job, job.inputs[at]

    def _completed(self) -> list[Embedded | Reranked]:
        done: list[Embedded | Reranked] = []
        for job in [job for job in self._jobs if len(job.vectors) == len(job.inputs)]:
            self._jobs.remove(job)
            tokens = sum(map(len, job.inputs))
            if self._ranks:
                # A model with several labels has the one for "relevant" first.
                done.append(Reranked(job.request, tuple(float(vector[0]) for vector in job.vectors), tokens))
            else:
                done.append(Embedded(job.request, tuple(map(_normalised, job.vectors)), tokens))
        return done


def _normalised(vector: Float32s) -> bytes:
    """Little-endian float32 of length 1; a zero vector stays zero."""
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype("<f4").tobytes()
