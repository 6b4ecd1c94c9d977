"""Thoughts followed token by token: where they begin and end, what they cost, and how a budget ends them."""

from __future__ import annotations

import pytest

from adapters.llama_cpp.reasoning import ReasoningFormat, named
from adapters.llama_cpp.thoughts import Thoughts

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
