from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings

from gateway.state.memory import Memory
from tests.gateway.limits.histories import (
    START_US,
    Step,
    histories,
    play_book,
    play_deaths,
    play_orphans,
    play_renewal,
    play_return,
    play_scripts,
    play_telling,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(histories)
def test_the_scripts_decide_as_the_book_does(history: list[Step]) -> None:
    clock = [0]
    scripted = asyncio.run(play_scripts(history, Memory(now_us=lambda: clock[0]), clock))
    assert scripted == play_book(history)


def test_holds_live_as_long_as_they_are_renewed() -> None:
    clock = [START_US]
    asyncio.run(play_renewal(Memory(now_us=lambda: clock[0]), clock))


def test_another_process_counts_what_a_dead_one_left() -> None:
    clock = [START_US]
    asyncio.run(play_orphans(Memory(now_us=lambda: clock[0]), clock))


def test_the_slots_of_a_dead_process_are_free_again() -> None:
    clock = [START_US]
    asyncio.run(play_deaths(Memory(now_us=lambda: clock[0]), clock))


def test_a_process_that_was_only_out_of_reach_has_its_slots_again() -> None:
    clock = [START_US]
    asyncio.run(play_return(Memory(now_us=lambda: clock[0]), clock))


def test_what_was_let_in_without_the_counters_is_told_to_them() -> None:
    clock = [START_US]
    asyncio.run(play_telling(Memory(now_us=lambda: clock[0]), clock))
