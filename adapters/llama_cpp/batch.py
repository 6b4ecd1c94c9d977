"""A llama_batch over numpy arrays: runs of tokens are copied in as slices, never token by token."""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as ll
import numpy as np
import numpy.typing as npt


class Batch:
    """Tokens of several sequences for one decode.

    `size` tokens are filled; `outputs` of them ask for logits, which come back as rows in the order they were added.
    """

    def __init__(self, capacity: int, slots: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.outputs = 0
        self._token = np.zeros(capacity, np.int32)
        self._position = np.zeros(capacity, np.int32)
        self._slot_count = np.ones(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        # llama.cpp wants a pointer to a list of sequence ids per token; every token here is in exactly one sequence, so
        # all pointers lead into one table of ids.
        self._slots = np.arange(slots, dtype=np.int32)
        self._slot_pointer = np.full(capacity, self._slots.ctypes.data, np.uint64)
        self.native = ll.llama_batch(
            0,
            self._token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            None,
            self._position.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._slot_count.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            ctypes.cast(
                ctypes.c_void_p(self._slot_pointer.ctypes.data), ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
            ),
            self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        self.size = self.outputs = 0
        self.native.n_tokens = 0

    def add(self, tokens: npt.NDArray[np.int32], position: int, slot: int, *, outputs: int) -> None:
        """Appends a run of one sequence starting at `position`; its last `outputs` tokens return logits."""
        start, end = self.size, self.size + len(tokens)
        assert end <= self.capacity and 0 <= slot < len(self._slots) and outputs <= len(tokens)
        self._token[start:end] = tokens
        self._position[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._slot_pointer[start:end] = self._slots.ctypes.data + 4 * slot
        self._output[start:end] = 0
        if outputs:
            self._output[end - outputs : end] = 1
        self.outputs += outputs
        self.size = self.native.n_tokens = end


class EmbeddingBatch:
    """A llama_batch of embeddings of one sequence; of its rows only the last can return logits."""

    def __init__(
        self, embeddings: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], slot: int, *, output: bool
    ) -> None:
        count = len(embeddings)
        self._embeddings = np.ascontiguousarray(embeddings, np.float32)
        self._positions = np.ascontiguousarray(positions, np.int32)
        self._slot_count = np.ones(count, np.int32)
        self._slot = np.array([slot], np.int32)
        self._slot_pointer = np.full(count, self._slot.ctypes.data, np.uint64)
        self._output = np.zeros(count, np.int8)
        self._output[-1] = output
        self.native = ll.llama_batch(
            count,
            None,
            self._embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._slot_count.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            ctypes.cast(
                ctypes.c_void_p(self._slot_pointer.ctypes.data), ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
            ),
            self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
