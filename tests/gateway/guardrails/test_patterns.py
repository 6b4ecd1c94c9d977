from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config_guardrails import PiiType, pattern_problem
from gateway.guardrails import GuardrailFailed, Scan, Span, masked
from gateway.guardrails.patterns import regexes
from gateway.guardrails.pii import pii

TYPES: tuple[PiiType, ...] = ("email", "card", "phone", "iban", "secret")
# What findings are made of, and what stands around them.
BITS = (
    *("4111 1111 1111 1111", "4111", " ", "1", "-", "bob@example.com", "@", "b.co", ".", "DE89 3704 0044 0532 0130 00"),
    *("de89370400440532013000", "+49 30 901820", "(212) 555-0123", "sk-abcdefghijklmnopqrstuvwx", "ü", "漢", "\n", "x"),
    *("-----BEGIN PRIVATE KEY-----", "MIIE", "-----END PRIVATE KEY-----", "-----BEGIN ", "A", "foo", "fo", "bar12"),
)


def scan(guardrail: Scan, pieces: list[str]) -> list[Span]:
    async def run() -> list[Span]:
        found: list[Span] = []
        settled = 0
        for i, piece in enumerate(pieces):
            got = await guardrail.feed(piece, last=i == len(pieces) - 1)
            assert all(one.start >= settled and one.end <= got.settled for one in got.spans)
            settled = got.settled
            found += got.spans
        return found

    return asyncio.run(run())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(BITS), max_size=25), st.data())
def test_no_way_of_cutting_a_text_changes_what_is_found(bits: list[str], data: st.DataObject) -> None:
    text = "".join(bits)
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    patterns = {
        "name": r"foo+(bar)?",
        "tail": r"\bbar\d+\b",
        "line": r"(?m)^x.*$",
        "end": r"x\z",
        "begin": r"\Afoo",
        "any": r"A.{3,}",
        "either": r"1[^1]{9}1|11|1 ",
        "wide": r"[ü漢]+",
    }
    for guardrail in (pii(TYPES), regexes(patterns, 16)):
        whole = scan(guardrail.scan(), [text])
        assert scan(guardrail.scan(), pieces) == whole
        assert [list(spans) for spans in asyncio.run(guardrail.find([text, ""]))] == [whole, []]


def test_holds_back_no_more_than_may_still_change() -> None:
    async def held(guardrail: Scan, text: str) -> int:
        return len(text) - (await guardrail.feed(text, last=False)).settled

    async def scenario() -> None:
        for text, bytes_held in (
            ("plain words and no more of it, ", 1),
            ("write to bob", 3),
            ("write to bob@example.com", 15),
            ("write to bob@example.com and", 3),
            ("the card 4111 1111 1111 1111 ok,", 0),
            ("-----BEGIN PRIVATE KEY-----\nMIIE", 32),
        ):
            assert await held(pii(TYPES).scan(), text) == bytes_held, text
        assert await held(regexes({"n": "abc"}, 16).scan(), "x" * 100) == 16

    asyncio.run(scenario())


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(.*){20}x", r"(x+x+)+y", r"a.*b|a"])
def test_no_pattern_hangs(pattern: str) -> None:
    """The near misses that take engines that backtrack for ever, in long texts."""

    async def scenario() -> None:
        guardrail = regexes({"p": pattern}, 200)
        for text in ("a" * 300_000 + "!", "x" * 300_000):
            # A pattern that nearly matches everywhere may be given up on; it never goes on.
            try:
                await guardrail.find([text])
            except GuardrailFailed as failure:
                assert "too long" in str(failure)

    asyncio.run(scenario())


def test_finds_far_into_a_long_text() -> None:
    text = "ü" * 200_000 + "needle" + "x" * 70_000 + "needle"
    (found,) = asyncio.run(regexes({"n": "needle"}, 16).find([text]))
    assert [text[one.start : one.end] for one in found] == ["needle", "needle"]


def test_what_overlaps_is_one_finding() -> None:
    (found,) = asyncio.run(regexes({"a": "abcd", "b": "cdef", "c": "f"}, 16).find(["xabcdefx f"]))
    assert found == [Span(1, 7, "a"), Span(9, 10, "c")]
    assert masked("xabcdefx f", found) == "x[A]x [C]"


@pytest.mark.parametrize("pattern", ["(", "a*", "", "x|", r"\Ca", r"(?=a)b", "a{2000}", "a" * 3000, "\ud800"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    assert pattern_problem(pattern)


def test_a_pattern_is_a_pattern() -> None:
    assert pattern_problem(r"(?i)\bproject [a-z]+\b") is None
