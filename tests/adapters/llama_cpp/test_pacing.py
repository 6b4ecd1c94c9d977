"""How much of a prompt is computed beside streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.pacing import Limits, block, ending, paced, padded, padding, shares, spare


@pytest.mark.parametrize(
    ("room", "tokens"), [(300, 256), (128, 128), (64, 128), (63, 64), (16, 64), (15, 16), (8, 16), (5000, 512)]
)
def test_a_prompt_budget_is_whole_tiles_unless_one_is_far_too_slow(room: int, tokens: int) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={}, tile=64)
    assert paced(limits, room, 0) == tokens


@pytest.mark.parametrize(("room", "tokens"), [(400, 384), (96, 192), (95, 128), (63, 64), (10, 16)])
def test_larger_blocks_where_there_is_room_for_them(room: int, tokens: int) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={}, tile=64, block=192)
    assert paced(limits, room, 0) == tokens


@pytest.mark.parametrize(
    ("heads", "threads", "tokens"),
    [(14, 1, 128), (12, 2, 128), (14, 2, 128), (12, 3, 128), (16, 3, 192), (32, 3, 192), (12, 4, 256), (32, 4, 128)],
)
def test_a_block_is_cut_as_little_as_its_size_is_worth(heads: int, threads: int, tokens: int) -> None:
    assert block(heads, threads) == tokens


@pytest.mark.parametrize(("size", "added"), [(48, 0), (49, 15), (63, 1), (64, 0), (65, 0)])
def test_a_step_with_prompt_tokens_is_filled_up_to_a_tile_that_is_nearly_full(size: int, added: int) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={3: 4}, tile=64)
    assert padding(limits, size, decode=False) == added
    assert padding(limits, 3, decode=True) == 1


def test_shares_move_the_oldest_and_favour_the_shortest() -> None:
    assert shares([1000, 10, 20], 100) == [70, 10, 20]
    assert shares([1000, 500, 90], 100) == [25, 0, 75]
    assert shares([], 100) == []


@given(st.lists(st.integers(1, 5000), max_size=20), st.integers(1, 512))
def test_shares_spend_the_budget_and_no_more(pending: list[int], budget: int) -> None:
    given_out = shares(pending, budget)
    assert sum(given_out) == min(sum(pending), budget)
    assert all(0 <= got <= want for got, want in zip(given_out, pending, strict=True))
    assert not pending or given_out[0] > 0


@pytest.mark.parametrize(
    ("pending", "given_out", "kept"),
    [
        ([400, 400], [400, 112], [400, 0]),
        ([128, 128, 128, 128, 128], [128, 128, 128, 124, 0], [128, 0, 0, 0, 0]),
        ([40, 40, 40, 40, 40, 40], [40, 40, 40, 40, 40, 40], [40, 40, 40, 40, 0, 0]),
        ([4000, 100, 200, 300], [128, 100, 200, 84], [128, 100, 200, 0]),
        ([400, 100, 100], [312, 100, 100], [128, 100, 100]),
        ([4000, 600], [128, 384], [128, 384]),
        ([100, 20], [100, 20], [100, 20]),
    ],
)
def test_a_step_ends_with_the_shortest_prompts_that_are_enough_for_one(
    pending: list[int], given_out: list[int], kept: list[int]
) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={}, tile=64)
    assert ending(limits, pending, given_out) == kept


def test_where_larger_steps_are_faster_a_step_ends_with_prompts_that_nearly_fill_it() -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={}, tile=1)
    assert ending(limits, [300, 300], [300, 212]) == [300, 212]
    assert ending(limits, [200, 200, 300], [200, 200, 112]) == [200, 200, 0]


@given(st.lists(st.integers(1, 600), min_size=1, max_size=20))
def test_every_step_moves_the_oldest_by_a_quarter_or_to_its_end(pending: list[int]) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={}, tile=64)
    before = shares(pending, 512)
    after = ending(limits, pending, before)
    assert after[0] >= min(before[0], sum(before) // 4)
    assert all(now in (0, was) for now, was in zip(after[1:], before[1:], strict=True))


def test_a_decode_is_padded_where_a_tenth_is_saved_and_has_room_for_guesses_where_they_are_worth_it() -> None:
    spent_us = {3: 38_000, 4: 40_000, 5: 60_000, 6: 65_000, 7: 76_000, 8: 63_000, 9: 90_000, 10: 95_000}
    padding = padded(spent_us)
    assert padding == {7: 8}
    # A guess is worth a ninth of a step of three rows, where another costs a nineteenth, and a 27th of a step of nine,
    # where another costs an eighteenth.
    step_us = {size: spent_us[padding.get(size, size)] for size in spent_us}
    assert spare(step_us) == {3: 1, 4: 0, 5: 3, 6: 2, 7: 1, 8: 0, 9: 0, 10: 0}
