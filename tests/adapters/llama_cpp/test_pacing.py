"""How much of a prompt is computed beside streams."""

from __future__ import annotations

import pytest

from adapters.llama_cpp.pacing import Limits, paced, padding


@pytest.mark.parametrize(
    ("room", "tokens"), [(300, 256), (128, 128), (64, 128), (63, 64), (16, 64), (15, 16), (8, 16), (5000, 512)]
)
def test_a_prompt_budget_is_whole_tiles_unless_one_is_far_too_slow(room: int, tokens: int) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={}, tile=64)
    assert paced(limits, room, 0) == tokens


@pytest.mark.parametrize(("size", "added"), [(48, 0), (49, 15), (63, 1), (64, 0), (65, 0)])
def test_a_step_with_prompt_tokens_is_filled_up_to_a_tile_that_is_nearly_full(size: int, added: int) -> None:
    limits = Limits(parallel=4, chunk_tokens=512, target_gap_us=200_000, padding={3: 4}, tile=64)
    assert padding(limits, size, decode=False) == added
    assert padding(limits, 3, decode=True) == 1
