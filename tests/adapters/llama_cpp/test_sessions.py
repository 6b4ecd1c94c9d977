"""Kept conversations: matching, tenants, tiers, budgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.kept import NEVER, PUBLIC, Budget, Checkpoint, Owner, State, common_prefix
from adapters.llama_cpp.sessions import Changed, Sessions
from adapters.types import SessionAction, SessionInfo

COUNT = 256


class Cells:
    """Remembers what it was told; a saved state has one byte per token."""

    cell_bytes = 4

    def __init__(self, partial: bool = True) -> None:
        self.partial_sequences = self.partial_states = partial
        self.copies = 0
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
        self.copies += 1
        return np.zeros(100, np.uint8)

    def cut_min(self, slot: int) -> int:
        return 0 if self.partial_sequences else NEVER

    def save_partial(self, slot: int) -> State:
        return np.zeros(10, np.uint8)

    def restore_partial(self, slot: int, state: State) -> bool:
        self.calls.append(("restore_partial", slot))
        return True

    def restore(self, slot: int, state: State) -> bool:
        self.calls.append(("restore", slot))
        return not self.refuse_restore


class Clock:
    now_us = 0

    def __call__(self) -> int:
        self.now_us += 1_000_000
        return self.now_us


def sessions(cells: Cells | None = None, *, ram: int = 1000, clock: Clock | None = None) -> Sessions:
    return Sessions(cells or Cells(), Budget(ram_bytes=ram, ttl_s=100, count=COUNT), clock or Clock())


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
    kept.keep(Owner("a"), tokens(20), 1)
    kept.keep(Owner("a"), np.append(tokens(40), [7, 7]).astype(np.int32), 2)
    kept.keep(Owner("b"), tokens(60), 3)
    found, size = kept.match(Owner("a"), tokens(50))
    assert found is not None and (found.slot, size) == (2, 40)
    assert kept.match(Owner("c"), tokens(50)) == (None, 0)


def test_equal_prefixes_are_decided_by_the_session_key() -> None:
    kept = sessions()
    kept.keep(Owner("a", "one"), np.append(tokens(20), [1]).astype(np.int32), 1)
    kept.keep(Owner("a", "two"), np.append(tokens(20), [2]).astype(np.int32), 2)
    found, _ = kept.match(Owner("a", "two"), tokens(30))
    assert found is not None and found.owner.key == "two"


def test_a_continued_conversation_replaces_the_shorter_one() -> None:
    kept = sessions()
    kept.keep(Owner("a"), tokens(20), 1)
    kept.keep(Owner("a"), tokens(30), 2)
    assert len(kept.tiers.kept) == 1
    assert kept.tiers.freed() == [1] and kept.tiers.freed() == []


@pytest.mark.parametrize(("tail", "partial", "others"), [(16, True, []), (17, True, [1]), (1, False, [1])])
def test_a_conversation_that_ended_otherwise_is_kept_for_what_the_next_one_lacks_of_it(
    tail: int, partial: bool, others: list[int]
) -> None:
    kept = sessions(Cells(partial))
    kept.keep(Owner("a"), np.append(tokens(160), tokens(tail, 900)).astype(np.int32), 1)
    kept.keep(Owner("a"), tokens(200), 2)
    assert [one.slot for one in kept.tiers.kept] == [*others, 2]


def test_conversations_that_only_begin_alike_are_kept_however_short_they_are() -> None:
    kept = sessions()
    for end in (7, 8):
        kept.keep(Owner("a"), np.append(tokens(20), tokens(3, 100 * end)).astype(np.int32), end)
    assert len(kept.tiers.kept) == 2


def test_spilled_conversations_are_restored_and_cut() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep(Owner("a"), tokens(20), 1)
    assert kept.tiers.spill() and not kept.tiers.spill()
    assert kept.tiers.resident_tokens == 0 and kept.tiers.freed() == [1]
    found, size = kept.match(Owner("a"), np.append(tokens(18), [9, 9]).astype(np.int32))
    assert found is not None and kept.load(found, 5, size) == 18
    assert cells.calls[-2:] == [("restore", 5), ("remove", 5, 18)]


def test_a_state_that_does_not_load_is_dropped() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep(Owner("a"), tokens(20), 1)
    kept.tiers.spill()
    cells.refuse_restore = True
    found, size = kept.match(Owner("a"), tokens(30))
    assert found is not None and kept.load(found, 5, size) == 0
    assert len(kept.tiers.kept) == 0


def test_ram_is_bounded_and_the_least_recently_used_goes_first() -> None:
    kept = sessions(ram=250)
    for index in range(4):
        kept.keep(Owner("a"), tokens(20, first=100 * index), index)
    kept.match(Owner("a"), tokens(20, first=0))
    while kept.tiers.spill():
        pass
    assert len(kept.tiers.kept) == 2
    assert kept.match(Owner("a"), tokens(20, first=0))[1] == 20
    assert kept.match(Owner("a"), tokens(20, first=100))[1] == 0


def test_their_number_is_bounded() -> None:
    kept = sessions(ram=1 << 20, clock=Clock())
    for index in range(COUNT + 10):
        kept.keep(Owner(f"tenant {index}"), tokens(20), index)
    assert len(kept.tiers.kept) <= COUNT
    assert kept.match(Owner("tenant 0"), tokens(20))[1] == 0


def test_without_a_budget_nothing_stays_outside_the_context() -> None:
    kept = sessions(ram=0)
    kept.keep(Owner("a"), tokens(20), 1)
    found, size = kept.match(Owner("a"), tokens(30))
    kept.tiers.spill()
    assert len(kept.tiers.kept) == 0
    assert found is not None and kept.load(found, 2, size) == 0


def test_conversations_expire() -> None:
    clock = Clock()
    kept = sessions(clock=clock)
    kept.keep(Owner("a"), tokens(20), 1)
    clock.now_us += 200_000_000
    kept.tiers.settle()
    assert len(kept.tiers.kept) == 0 and kept.tiers.freed() == [1]


def test_a_model_that_cannot_cut_a_sequence_reuses_whole_ones_only() -> None:
    kept = sessions(Cells(partial=False))
    kept.keep(Owner("a"), tokens(20), 1)
    assert kept.match(Owner("a"), tokens(19)) == (None, 0)
    assert kept.match(Owner("a"), tokens(21))[1] == 20


def changed(kept: Sessions, name: str, action: SessionAction, new_key: str | None = None) -> SessionInfo | None:
    answers: list[Changed] = []
    kept.change("a", name, action, new_key, answers.append)
    assert len(answers) == 1 and answers[0].erased
    return answers[0].info


def test_they_are_listed_per_tenant_with_ids_that_last() -> None:
    kept = sessions()
    kept.keep(Owner("a", "one"), tokens(20), 1)
    kept.keep(Owner("b"), tokens(30), 2)
    before = kept.listed("a")
    assert [(info.key, info.tokens, info.tier, info.size_bytes) for info in before] == [("one", 20, "cells", 80)]
    assert len(kept.listed(None)) == 2
    kept.keep(Owner("a", "one"), tokens(40), 3)
    (after,) = kept.listed("a")
    assert after.id == before[0].id and after.created_us == before[0].created_us and after.tokens == 40


def test_only_its_owner_can_change_a_conversation() -> None:
    kept = sessions()
    kept.keep(Owner("b", "one"), tokens(20), 1)
    assert changed(kept, "one", "delete") is None
    assert changed(kept, kept.listed("b")[0].id, "delete") is None
    assert len(kept.tiers.kept) == 1


@pytest.mark.parametrize("action", ["delete", "reset"])
def test_deleted_conversations_are_gone(action: SessionAction) -> None:
    kept = sessions()
    kept.keep(Owner("a", "one"), tokens(20), 1)
    kept.keep(Owner("a", "one"), tokens(20, first=500), 2)
    kept.keep(Owner("a", "two"), tokens(20), 3)
    assert changed(kept, "one", action) is not None
    assert [info.key for info in kept.listed("a")] == ["two"]
    assert sorted(kept.tiers.freed()) == [1, 2]


def test_a_fork_copies_nothing_and_is_a_conversation_of_its_own() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep(Owner("a", "one"), tokens(20), 1)
    fork = changed(kept, "one", "fork", "two")
    assert fork is not None and fork.key == "two" and cells.calls == []
    assert kept.tiers.resident_tokens == 20
    kept.keep(Owner("a", "one"), tokens(30), 2)
    assert sorted(info.key or "" for info in kept.listed("a")) == ["one", "two"]
    assert kept.tiers.freed() == [], "the fork still has the cells"
    changed(kept, "two", "delete")
    assert kept.tiers.freed() == [1]


def test_forks_share_one_copy_in_memory() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep(Owner("a", "one"), tokens(20), 1)
    changed(kept, "one", "fork", "two")
    kept.tiers.spill()
    changed(kept, "two", "fork", "three")
    assert cells.copies == 1
    assert kept.tiers.counters().ram_bytes == 100
    assert {info.tier for info in kept.listed("a")} == {"ram"}


def test_pinned_conversations_stay() -> None:
    clock = Clock()
    kept = sessions(ram=250, clock=clock)
    kept.keep(Owner("a", "pinned"), tokens(20), 0)
    info = changed(kept, "pinned", "pin")
    assert info is not None and info.pinned
    for index in range(1, 5):
        kept.keep(Owner("a"), tokens(20, first=100 * index), index)
    while kept.tiers.spill():
        pass
    assert [info.key for info in kept.listed("a")][-1] == "pinned"
    clock.now_us += 200_000_000
    kept.tiers.settle()
    assert [info.key for info in kept.listed("a")] == ["pinned"]
    changed(kept, "pinned", "unpin")
    clock.now_us += 200_000_000
    kept.tiers.settle()
    assert len(kept.tiers.kept) == 0 and kept.tiers.counters().expired == 2


def test_pins_take_no_more_than_half_of_the_room() -> None:
    kept = sessions(ram=250)
    kept.keep(Owner("a", "one"), tokens(20), 0)
    kept.keep(Owner("a", "two"), tokens(20, first=100), 1)
    pins = [changed(kept, name, "pin") for name in ("one", "two")]
    assert [info.pinned for info in pins if info is not None] == [True, False]


def test_a_tenant_with_many_conversations_evicts_its_own() -> None:
    kept = sessions(ram=450)
    kept.keep(Owner("quiet"), tokens(20), 40)
    for index in range(12):
        kept.keep(Owner("loud"), tokens(20, first=100 * index), index)
        kept.tiers.spill()
    while kept.tiers.spill():
        pass
    assert len(kept.listed("quiet")) == 1 and len(kept.listed("loud")) == 3


def test_spilling_without_copying_frees_only_what_is_already_copied() -> None:
    cells = Cells()
    kept = sessions(cells)
    kept.keep(Owner("a"), tokens(20), 1)
    assert not kept.tiers.spill(copying=False) and cells.copies == 0
    assert kept.tiers.spill() and cells.copies == 1


def test_conversations_are_copied_ahead_into_free_memory_and_leave_at_once_then() -> None:
    cells = Cells()
    kept = sessions(cells, ram=250)
    for slot in range(3):
        kept.keep(Owner("a"), tokens(20, first=100 * slot), slot)
    assert [kept.tiers.back_up() for _ in range(3)] == [True, True, False], "each of the copies takes 100 bytes"
    assert [kept.tiers.spill(copying=False) for _ in range(3)] == [True, True, False]
    assert cells.copies == 2


def test_what_is_public_is_there_for_every_tenant_and_nothing_else_is() -> None:
    kept = sessions()
    kept.keep(Owner(PUBLIC), tokens(20), 1)
    kept.keep(Owner("a"), tokens(40), 2)
    assert kept.match(Owner("b"), tokens(50))[1] == 20
    assert kept.match(Owner("b", variant="adapter"), tokens(50))[1] == 0
    assert kept.candidate(Owner("b"), tokens(50)) is None
    assert changed(kept, kept.listed(PUBLIC)[0].id, "delete") is None


def test_a_model_that_cannot_cut_goes_back_to_a_checkpoint() -> None:
    cells = Cells(partial=False)
    kept = sessions(cells)
    states = (Checkpoint(16, np.zeros(1, np.uint8)), Checkpoint(24, np.zeros(1, np.uint8)))
    kept.keep(Owner("a"), tokens(40), 1, states)
    found, size = kept.match(Owner("a"), np.append(tokens(30), 7).astype(np.int32))
    assert found is not None and size == 24
    kept.tiers.spill()
    assert kept.listed("a")[0].checkpoints == 2
    assert kept.match(Owner("a"), tokens(30))[1] == 24
    cells.calls.clear()
    assert kept.load(found, 5, 24) == 0, "this fake refuses to cut"
    assert cells.calls == [("restore", 5), ("restore_partial", 5), ("remove", 5, 24), ("remove", 5, 0)]
