"""Kept conversations: matching, tenants, tiers, budgets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.sessions import KEPT_MAX, Sessions, State, common_prefix


class Cells:
    """Remembers what it was told; a saved state has one byte per token."""

    def __init__(self, partial: bool = True) -> None:
        self.partial_sequences = partial
        self.sizes: dict[int, int] = {}
        self.calls: list[tuple[object, ...]] = []
        self.refuse_restore = False

    def remove(self, slot: int, start: int = 0) -> bool:
        self.calls.append(("remove", slot, start))
        return self.partial_sequences or start == 0

    def share(self, source: int, target: int, end: int) -> None:
        self.calls.append(("share", source, target, end))

    def save(self, slot: int) -> State:
        self.calls.append(("save", slot))
        return np.zeros(100, np.uint8)

    def restore(self, slot: int, state: State) -> bool:
        self.calls.append(("restore", slot))
        return not self.refuse_restore


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def sessions(cells: Cells | None = None, *, ram: int = 1000, clock: Clock | None = None) -> Sessions:
    return Sessions(cells or Cells(), ram_bytes_max=ram, ttl_s=100, clock=clock or Clock())


def tokens(size: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + size, dtype=np.int32)


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_common_prefix(left: list[int], right: list[int]) -> None:
    wanted = 0
    while wanted < min(len(left), len(right)) and left[wanted] == right[wanted]:
        wanted += 1
    assert common_prefix(np.array(left, np.int32), np.array(right, np.int32)) == wanted


def test_the_longest_prefix_of_the_same_tenant_wins() -> None:
    kept = sessions()
    kept.keep("a", None, tokens(20), 1)
    kept.keep("a", None, np.append(tokens(40), [7, 7]).astype(np.int32), 2)
    kept.keep("b", None, tokens(60), 3)
    found, size = kept.match("a", tokens(50), None)
    assert found is not None and (found.slot, size) == (2, 40)
    assert kept.match("c", tokens(50), None) == (None, 0)


def test_equal_prefixes_are_decided_by_the_session_key() -> None:
    kept = sessions()
    kept.keep("a", "one", np.append(tokens(20), [1]).astype(np.int32), 1)
    kept.keep("a", "two", np.append(tokens(20), [2]).astype(np.int32), 2)
    found, _ = kept.match("a", tokens(30), "two")
    assert found is not None and found.key == "two"


def test_a_continued_conversation_replaces_the_shorter_one() -> None:
    kept = sessions()
    kept.keep("a", None, tokens(20), 1)
    kept.keep("a", None, tokens(30), 2)
    assert len(kept) == 1
    assert kept.freed() == [1] and kept.freed() == []


def test_spilled_conversations_are_restored_and_cut() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep("a", None, tokens(20), 1)
    assert kept.spill() and not kept.spill()
    assert kept.resident_tokens == 0 and kept.freed() == [1]
    found, size = kept.match("a", np.append(tokens(18), [9, 9]).astype(np.int32), None)
    assert found is not None and kept.load(found, 5, size) == 18
    assert cells.calls[-2:] == [("restore", 5), ("remove", 5, 18)]


def test_a_state_that_does_not_load_is_dropped() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep("a", None, tokens(20), 1)
    kept.spill()
    cells.refuse_restore = True
    found, size = kept.match("a", tokens(30), None)
    assert found is not None and kept.load(found, 5, size) == 0
    assert len(kept) == 0


def test_ram_is_bounded_and_the_least_recently_used_goes_first() -> None:
    kept = sessions(ram=250)
    for index in range(4):
        kept.keep("a", None, tokens(20, first=100 * index), index)
    kept.match("a", tokens(20, first=0), None)
    while kept.spill():
        pass
    assert len(kept) == 2
    assert kept.match("a", tokens(20, first=0), None)[1] == 20
    assert kept.match("a", tokens(20, first=100), None)[1] == 0


def test_their_number_is_bounded() -> None:
    kept = sessions(ram=1 << 20, clock=Clock())
    for index in range(KEPT_MAX + 10):
        kept.keep(f"tenant {index}", None, tokens(20), index)
    assert len(kept) <= KEPT_MAX
    assert kept.match("tenant 0", tokens(20), None)[1] == 0


def test_without_a_budget_nothing_stays_outside_the_context() -> None:
    kept = sessions(ram=0)
    kept.keep("a", None, tokens(20), 1)
    found, size = kept.match("a", tokens(30), None)
    kept.spill()
    assert len(kept) == 0
    assert found is not None and kept.load(found, 2, size) == 0


def test_conversations_expire() -> None:
    clock = Clock()
    kept = sessions(clock=clock)
    kept.keep("a", None, tokens(20), 1)
    clock.now_s += 200
    kept.expire()
    assert len(kept) == 0 and kept.freed() == [1]


def test_a_model_that_cannot_cut_a_sequence_reuses_whole_ones_only() -> None:
    kept = sessions(Cells(partial=False))
    kept.keep("a", None, tokens(20), 1)
    assert kept.match("a", tokens(19), None) == (None, 0)
    assert kept.match("a", tokens(21), None)[1] == 20
