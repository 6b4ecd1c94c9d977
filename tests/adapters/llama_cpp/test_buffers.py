"""Memory that is used again."""

from __future__ import annotations

import gc

import numpy as np

from adapters.llama_cpp.buffers import UNIT_BYTES, Buffers


def address(state: np.ndarray) -> int:
    return int(state.ctypes.data)


def test_memory_that_nobody_has_any_more_is_handed_out_again() -> None:
    buffers = Buffers(32 * UNIT_BYTES)
    first = buffers.take(UNIT_BYTES - 5)
    buffers.settle()
    assert first.shape == (UNIT_BYTES - 5,)
    second = buffers.take(UNIT_BYTES - 5)
    assert address(second) != address(first)
    view = memoryview(first)  # type: ignore[arg-type]
    was = address(first)
    del first
    gc.collect()
    assert was not in [address(buffers.take(UNIT_BYTES)) for _ in range(3)], "the view still needs it"
    view.release()
    del view
    gc.collect()
    held = [buffers.take(UNIT_BYTES) for _ in range(8)]
    assert was in map(address, held)


def test_what_is_prepared_is_what_is_taken() -> None:
    buffers = Buffers(8 * UNIT_BYTES)
    buffers.prepare(3 * UNIT_BYTES)
    buffers.settle()
    assert buffers.spare_bytes == 3 * UNIT_BYTES
    taken = buffers.take(2 * UNIT_BYTES + 1)
    assert taken.base is not None and len(taken.base) == 3 * UNIT_BYTES


def test_several_can_be_prepared_and_none_twice() -> None:
    buffers = Buffers(8 * UNIT_BYTES)
    buffers.prepare(2 * UNIT_BYTES, 3)
    buffers.prepare(2 * UNIT_BYTES, 2)
    buffers.prepare(UNIT_BYTES)
    buffers.settle()
    assert buffers.spare_bytes == 6 * UNIT_BYTES
    buffers.prepare(2 * UNIT_BYTES, 100)
    buffers.settle()
    assert buffers.spare_bytes == 8 * UNIT_BYTES


def test_spare_memory_is_bounded() -> None:
    buffers = Buffers(4 * UNIT_BYTES)
    taken = [buffers.take(UNIT_BYTES) for _ in range(10)]
    buffers.prepare(100 * UNIT_BYTES)
    taken.clear()
    gc.collect()
    buffers.settle()
    assert 0 < buffers.spare_bytes <= 4 * UNIT_BYTES


def test_a_small_state_does_not_take_a_large_piece() -> None:
    buffers = Buffers(64 * UNIT_BYTES)
    buffers.prepare(32 * UNIT_BYTES)
    buffers.settle()
    small = buffers.take(100)
    assert small.base is not None and len(small.base) == UNIT_BYTES


def test_larger_memory_at_hand_does_not_keep_what_fits_from_being_prepared() -> None:
    buffers = Buffers(64 * UNIT_BYTES)
    buffers.prepare(24 * UNIT_BYTES)
    held = [buffers.take(12 * UNIT_BYTES)]
    buffers.settle()
    assert buffers.spare_bytes == (24 + 2 * 18) * UNIT_BYTES
    held.append(buffers.take(12 * UNIT_BYTES))
    assert [len(one.base) // UNIT_BYTES for one in held if one.base is not None] == [14, 18]


def test_memory_of_a_size_that_nobody_wants_any_more_goes() -> None:
    buffers = Buffers(24 * UNIT_BYTES)
    buffers.prepare(20 * UNIT_BYTES)
    buffers.settle()
    held = buffers.take(4 * UNIT_BYTES)
    buffers.settle()
    assert buffers.spare_bytes == 2 * 6 * UNIT_BYTES and len(held) == 4 * UNIT_BYTES
