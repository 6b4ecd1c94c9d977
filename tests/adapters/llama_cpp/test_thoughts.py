"""Thoughts followed token by token: where they begin and end, what they cost, and how a budget ends them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.reasoning import ReasoningFormat, named
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.llama_cpp.thoughts import Thoughts
from adapters.types import Generation, Sampling
from tests.adapters.llama_cpp.fake_engine import FakeEngine, FakePieces, continuation

ENDING = [7, 8]
PIECES = {7: b"</think>", 8: b"\n\n"}


def follow(thoughts: Thoughts, *pieces: bytes) -> list[int]:
    """Pushes what the model draws, and what is forced in between; returns the forced tokens."""
    forced: list[int] = []
    for piece in pieces:
        while tokens := thoughts.forced():
            for token in tokens:
                forced.append(token)
                thoughts.push(PIECES[token])
        thoughts.push(piece)
    return forced


def think(*, thinking: bool = True, most: int | None = None, row: ReasoningFormat | None = None) -> Thoughts:
    return Thoughts(row or named("think"), ENDING, thinking=thinking, tokens_max=most)


def test_thoughts_that_the_prompt_began() -> None:
    thoughts = think()
    assert thoughts.thinking
    assert not follow(thoughts, b"Hm", b" </th", b"ink>", b"Hello", b"<think>", b"no")
    assert (thoughts.thinking, thoughts.tokens) == (False, 3)


def test_thoughts_that_the_model_begins_itself() -> None:
    thoughts = think(thinking=False)
    assert not follow(thoughts, b"\n", b"<thi", b"nk>", b"Hm")
    assert (thoughts.thinking, thoughts.tokens) == (True, 1)


@pytest.mark.parametrize("first", [b"Hello <think>", b"<thin ", b"x"])
def test_text_that_begins_otherwise_is_an_answer(first: bytes) -> None:
    thoughts = think(thinking=False)
    follow(thoughts, first, b"<think>", b"Hm")
    assert (thoughts.thinking, thoughts.tokens, thoughts.may_begin) == (False, 0, False)


def test_channels_may_come_again() -> None:
    row = named("harmony")
    thoughts = think(thinking=False, row=row)
    text = b"<|channel|>commentary<|message|>Hi<|end|>", row.begin.encode(), b"Hm", b"<|end|>", b"x", row.begin.encode()
    follow(thoughts, *text)
    assert (thoughts.thinking, thoughts.tokens) == (True, 2)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_budget_ends_thoughts_by_the_marker(most: int) -> None:
    thoughts = think(most=most)
    forced = follow(thoughts, *[b"a "] * most, b"Hello", b" you")
    assert forced == ENDING
    assert (thoughts.thinking, thoughts.tokens) == (False, most + 1)


def test_a_budget_waits_for_a_whole_character() -> None:
    thoughts = think(most=1)
    moon = "🌙".encode()
    thoughts.push(b"a" + moon[:1])
    assert thoughts.forced() == []
    thoughts.push(moon[1:])
    assert thoughts.forced() == ENDING
    broken = think(most=0)
    for _ in range(3):
        broken.push(b"\xf0\x9f")
        assert broken.forced() == ([] if broken.tokens < 3 else ENDING)


def test_a_budget_that_is_not_spent() -> None:
    thoughts = think(most=10)
    assert not follow(thoughts, b"Hm</think>", *[b"long answer "] * 20)
    assert think(thinking=False, most=0).forced() == []


# In the scheduler

ROW = ReasoningFormat("numbers", (), "00 ", "42 43 ", "42 43 ")
SPENT = 6


def sequences(request: int, prompt: list[int], choices: int, most: int, logprobs: int | None = None) -> list[Sequence]:
    return [
        Sequence(
            request,
            choice,
            np.array(prompt, np.int32),
            Generation(sampling=Sampling(temperature=0), logprobs=logprobs),
            tenant="a",
            session_key=None,
            max_tokens=most,
            pieces=FakePieces(),
            thoughts=Thoughts(ROW, [42, 43], thinking=True, tokens_max=SPENT),
        )
        for choice in range(choices)
    ]


def expected(prompt: list[int], most: int) -> str:
    """What the model thinks, the marker that is written for it, and its answer."""
    thoughts = [*continuation(prompt, SPENT), 42, 43]
    answer = continuation([*prompt, *thoughts], most)
    return "".join(f"{token:02d} " for token in [*thoughts, *answer][:most])


def scheduler(cells: int) -> Scheduler:
    engine = FakeEngine(cells=cells, slots=12)
    sessions = Sessions(engine, Budget(ram_bytes=1 << 20, ttl_s=1e9), lambda: 0)
    limits = Limits(parallel=4, chunk_tokens=64, target_gap_us=40_000, padding={}, tile=16)
    ticks = itertools.count(0, 1000)
    return Scheduler(engine, sessions, limits, Rates(1000.0, 5000.0), lambda: next(ticks))


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("most", [3, SPENT, SPENT + 1, 40])
@pytest.mark.parametrize("cells", [4096, 170])
def test_budgets_in_the_scheduler(cells: int, most: int, logprobs: int | None) -> None:
    """Also where the pool is too small for everybody, so that sequences wait in RAM in between."""
    work = scheduler(cells)
    prompts = {request: random.Random(request).choices(range(1, 97), k=40) for request in range(1, 4)}
    for request, prompt in prompts.items():
        work.submit(sequences(request, prompt, 2, most, logprobs))
    work.submit(sequences(9, prompts[1], 1, most))
    deltas = []
    while not work.idle:
        deltas += work.step()
        work.cancel(9)
    for request, prompt in prompts.items():
        for choice in range(2):
            own = [one for one in deltas if (one.id, one.choice) == (request, choice)]
            assert "".join(one.text for one in own) == expected(prompt, most)
            assert sum(one.reasoning_tokens for one in own) == min(most, SPENT + 2)
            assert sum(one.tokens for one in own) == most
