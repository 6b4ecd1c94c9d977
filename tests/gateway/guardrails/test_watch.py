"""Answers behind guardrails, event by event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.auth import Principal
from gateway.catalog import Target
from gateway.config_guardrails import Action, GuardrailConfig, Stage
from gateway.errors import GatewayError
from gateway.guardrails import Guardrail, GuardrailFailed, Scanned, Span
from gateway.guardrails.guarding import guarding
from gateway.guardrails.patterns import regexes
from gateway.guardrails.pii import pii
from gateway.guardrails.rules import Found, Guardrails, Rule
from gateway.telemetry import Telemetry
from tests.fakes import Scripted

PRINCIPAL = Principal(tenant="t", key_id="k", name="n")
CARD = "4111 1111 1111 1111"


def guardrails(
    action: Action,
    *more: Guardrail,
    stage: Stage | tuple[Stage, ...] = "during",
    found: list[Found] | None = None,
    **settings: str,
) -> Guardrails:
    made = more or (pii(("email", "card")),)
    stages = (stage,) if isinstance(stage, str) else stage
    configs = [
        GuardrailConfig(name=f"g{i}", kind="pii", action=action, stages=stages, always=True, **settings)  # type: ignore[arg-type]
        for i in range(len(made))
    ]
    rules = [Rule(config, guardrail) for config, guardrail in zip(configs, made, strict=True)]
    return Guardrails(rules, Telemetry("0"), (lambda _: None) if found is None else found.append)


class Source:
    """An answer that notes whether it was closed."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = iter(events)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        try:
            return next(self._events)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.closed = True


def watched(all: Guardrails, events: Sequence[Event], choices: int = 1) -> tuple[list[Event], Source]:
    async def run() -> list[Event]:
        guards = guarding(all, PRINCIPAL, Target("m", Scripted()), "r")
        assert guards is not None
        return [event async for event in guards.watch(source, choices)]

    source = Source(events)
    return asyncio.run(run()), source


def answer(*deltas: Event, usage: Usage | None = None) -> list[Event]:
    choices = sorted({delta.choice for delta in deltas if not isinstance(delta, Started | Finished)})
    ends = [ChoiceFinished(choice, "stop") for choice in choices]
    return [Started(7), *deltas, *ends, Finished(usage or Usage(7, len(deltas)))]


def texts(*pieces: str, choice: int = 0) -> list[Event]:
    return [TextDelta(choice, piece) for piece in pieces]


def text_of(events: Sequence[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def kinds(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["hello ", CARD, "a@b.io", " ", "x", "12 ", "ü", "4111"]), max_size=12),
    st.data(),
    st.sampled_from(["during", "after"]),
)
def test_any_way_of_streaming_gives_the_same_masked_text(bits: list[str], data: st.DataObject, stage: Stage) -> None:
    text = "".join(bits)
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    all = guardrails("mask", pii(("email", "card")), regexes({"word": r"\[[A-Z]+\]x"}, 20), stage=stage)
    once, _ = watched(all, answer(*texts(text)))
    cut, _ = watched(all, answer(*texts(*pieces)))
    assert text_of(cut) == text_of(once)
    assert cut[-2:] == [ChoiceFinished(0, "stop"), Finished(Usage(7, len(pieces)))]


@pytest.mark.parametrize("stage", ["during", "after"])
@pytest.mark.parametrize("action", ["mask", "block", "log"])
def test_where_nothing_is_found_nothing_changes(action: Action, stage: Stage) -> None:
    logprob = TokenLogprob(1, -0.5, b"Hi")
    events = answer(
        ReasoningDelta(0, "thinking about "),
        ReasoningDelta(0, "it", signature="s"),
        TextDelta(0, "Hi ", (logprob,)),
        TextDelta(1, "Other"),
        TextDelta(0, "there"),
        ToolCallDelta(0, 0, id="c", name="f"),
        ToolCallDelta(0, 0, '{"a":'),
        ToolCallDelta(0, 0, "1}"),
        ToolCallDelta(0, 1, "{}", id="d", name="g"),
    )
    passed, _ = watched(guardrails(action, stage=stage), events, 2)
    for choice in (0, 1):
        mine = [event for event in passed if getattr(event, "choice", None) == choice]
        assert mine == [event for event in events if getattr(event, "choice", None) == choice]
    assert (passed[0], passed[-1]) == (events[0], events[-1])
    if action == "log":
        assert passed == events


def test_logging_changes_nothing_of_what_it_finds() -> None:
    found: list[Found] = []
    events = answer(*texts("my card ", CARD[:7], CARD[7:], " and a@b.io"))
    passed, _ = watched(guardrails("log", found=found), events)
    assert passed == events
    assert [(one.outcome, one.kinds) for one in found] == [("logged", "card:1 email:1")]


def test_reasoning_and_arguments_are_looked_at_too() -> None:
    events = answer(
        ReasoningDelta(0, f"the card {CARD}", signature="s"),
        TextDelta(0, "ok", (TokenLogprob(1, -0.5, b"ok"),)),
        ToolCallDelta(0, 0, '{"mail":"a@', id="c", name="f"),
        ToolCallDelta(0, 0, 'b.io","n":1}'),
    )
    passed, _ = watched(guardrails("mask"), events)
    assert passed[1:-2] == [
        ReasoningDelta(0, "the card [CARD]"),
        events[2],
        ToolCallDelta(0, 0, '{"mail":"[EMAIL]', id="c", name="f"),
        ToolCallDelta(0, 0, '","n":1}'),
    ]


def test_what_takes_the_place_of_a_finding_stays_json_in_arguments() -> None:
    class Quoting:
        async def find(self, given: Sequence[str]) -> list[Sequence[Span]]:
            return [[Span(5, 6, "x", '"\n"')] for _ in given]

        def scan(self) -> Quoting:
            return self

        async def feed(self, piece: str, *, last: bool) -> Scanned:
            return Scanned(len(piece), [Span(6, 7, "x", '"')]) if piece else Scanned(9)

        async def close(self) -> None: ...

    passed, _ = watched(guardrails("mask", Quoting()), answer(ToolCallDelta(0, 0, '{"a":"x"}')))
    assert passed[1] == ToolCallDelta(0, 0, '{"a":"\\""}')


def test_a_blocked_answer_ends_with_its_reason_and_is_charged_for_what_was_sent() -> None:
    found: list[Found] = []
    events = answer(*texts("Sure, ", "here: ", "4111 1111 ", "1111 1111", " and more", " of it"), usage=Usage(7, 99))
    passed, source = watched(guardrails("block", found=found), events)
    assert text_of(passed) == "Sure, here: "
    assert passed[-2:] == [ChoiceFinished(0, "content_filter"), Finished(Usage(7, 2), estimated=True)]
    assert source.closed
    assert [(one.guardrail, one.stage, one.outcome, one.kinds) for one in found] == [
        ("g0", "during", "blocked", "card:1")
    ]
    assert "4111" not in repr(found)


def test_other_choices_go_on() -> None:
    events = [
        Started(3),
        *texts("a@b.io "),
        *texts("fine", choice=1),
        *texts("more"),
        ChoiceFinished(0, "stop"),
        ChoiceFinished(1, "length"),
        Finished(Usage(3, 50)),
    ]
    passed, _ = watched(guardrails("block"), events, 2)
    assert text_of(passed, 0) == ""
    assert text_of(passed, 1) == "fine"
    assert [event for event in passed if isinstance(event, ChoiceFinished)] == [
        ChoiceFinished(0, "content_filter"),
        ChoiceFinished(1, "length"),
    ]
    assert passed[-1] == Finished(Usage(3, 1), estimated=True)


def test_what_is_found_at_the_very_end_is_blocked_too() -> None:
    passed, _ = watched(guardrails("block"), answer(*texts("mail a@b.io")))
    assert kinds(passed) == ["Started", "ChoiceFinished", "Finished"]


class Failing:
    """Fails with the second piece."""

    def __init__(self) -> None:
        self.pieces = 0

    async def find(self, given: Sequence[str]) -> list[Sequence[Span]]:
        raise GuardrailFailed("away")

    def scan(self) -> Failing:
        return self

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        self.pieces += 1
        if self.pieces > 1:
            raise GuardrailFailed("away")
        return Scanned(0)

    async def close(self) -> None: ...


@pytest.mark.parametrize("end", [False, True])
def test_a_guardrail_that_fails_open_lets_everything_through(end: bool) -> None:
    events = answer(*texts(*(["one "] if end else ["one ", "two ", "three"])))
    passed, _ = watched(guardrails("mask", Failing(), on_failure="open"), events)
    assert passed == events


def test_one_that_fails_closed_ends_the_stream() -> None:
    with pytest.raises(GatewayError) as caught:
        watched(guardrails("block", Failing()), answer(*texts("one ", "two ")))
    assert (caught.value.status, caught.value.code) == (503, "guardrail_unavailable")


def test_a_log_that_fails_changes_nothing() -> None:
    events = answer(*texts("one ", "two ", "three"))
    found: list[Found] = []
    passed, _ = watched(guardrails("log", Failing(), found=found), events)
    assert passed == events
    assert [one.outcome for one in found] == ["failed"]


class Holding:
    """Holds each text back until its end; finds what is written as `[...]` at once, and fails at the word `bad`."""

    def __init__(self) -> None:
        self._text = ""

    async def find(self, given: Sequence[str]) -> list[Sequence[Span]]:
        raise GuardrailFailed("away")

    def scan(self) -> Holding:
        return Holding()

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        if "bad" in piece:
            raise GuardrailFailed("away")
        start, self._text = len(self._text), self._text + piece
        end = self._text.find("]") + 1
        if last or not end > start:
            return Scanned(len(self._text) if last else 0)
        return Scanned(end, [Span(self._text.index("["), end, "x", "***")])

    async def close(self) -> None: ...


def test_what_was_released_before_it_failed_open_is_not_lost() -> None:
    events = answer(ReasoningDelta(0, "let me think"), *texts("bad"))
    passed, _ = watched(guardrails("mask", Holding(), on_failure="open"), events)
    assert passed == events


def test_what_was_found_before_it_failed_open_is_masked_all_the_same() -> None:
    passed, _ = watched(
        guardrails("mask", Holding(), on_failure="open"), answer(*texts("it is [se", "cret] so", "bad"))
    )
    assert text_of(passed) == "it is *** sobad"
