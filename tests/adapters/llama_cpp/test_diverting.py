"""Events that go straight from the worker's frame to where they are wanted, past whoever reads their stream."""

from __future__ import annotations

import pytest

from adapters.llama_cpp import LlamaCpp
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Started,
    TextDelta,
    Tool,
    ToolCallDelta,
)
from tests.adapters.llama_cpp.test_adapter import caller, chat, collect, first_delta, text_of, until, with_adapter


async def taken_and_read(
    adapter: LlamaCpp, request: ChatRequest, declined_each: int
) -> tuple[list[Event], list[Event]]:
    """What was offered the short way, where one of so many is declined, and all events in the order they came in."""
    offered: list[Event] = []
    every: list[Event] = []

    def take(event: Event) -> bool:
        offered.append(event)
        if len(offered) % declined_each == 0:
            return False
        every.append(event)
        return True

    events = adapter.chat(request, caller())
    every.append(await anext(events))
    assert hasattr(events, "divert")
    events.divert(take)
    while not isinstance(every[-1], Finished):
        every.append(await anext(events))
    return offered, every


def test_text_goes_the_short_way_as_far_as_that_is_open() -> None:
    async def test(adapter: LlamaCpp) -> None:
        for declined_each in (1, 2, 5, 10_000):
            request = chat("say 50 hi", generation=Generation(n=2))
            offered, every = await taken_and_read(adapter, request, declined_each)
            assert [text_of(every, choice) for choice in (0, 1)] == [" hi" * 50] * 2
            others = [type(event) for event in every if not isinstance(event, TextDelta)]
            assert others == [Started, ChoiceFinished, ChoiceFinished, Finished]
            assert {type(event) for event in offered} <= {TextDelta}

    with_adapter(test)


def test_the_reader_is_not_woken_for_what_was_taken() -> None:
    async def test(adapter: LlamaCpp) -> None:
        taken: list[Event] = []
        events = adapter.chat(chat("forever"), caller())
        await anext(events)

        def take(event: Event) -> bool:
            taken.append(event)
            return len(taken) < 5

        assert hasattr(events, "divert")
        events.divert(take)
        while len(taken) < 5:
            read = await anext(events)
        assert read is taken[-1]
        assert isinstance(read, TextDelta)
        assert hasattr(events, "aclose")
        await events.aclose()
        await until(lambda: not adapter.busy)

    with_adapter(test)


def test_tool_calls_go_the_short_way_too() -> None:
    async def test(adapter: LlamaCpp) -> None:
        offered, every = await taken_and_read(adapter, chat("call", tools=(Tool("weather"),)), 10_000)
        calls = [event for event in every if isinstance(event, ToolCallDelta)]
        assert (calls[0].name, "".join(call.arguments for call in calls)) == ("weather", '{"city": "Rome"}')
        assert not any(isinstance(event, ChoiceFinished | Finished) for event in offered)
        assert ChoiceFinished(0, "tool_calls") in every

    with_adapter(test)


def test_what_goes_wrong_on_the_short_way_is_its_requests_alone() -> None:
    async def test(adapter: LlamaCpp) -> None:
        neighbour = adapter.chat(chat("forever"), caller())
        await first_delta(neighbour)
        pid = adapter.status().pid
        broken = adapter.chat(chat("forever"), caller())
        await anext(broken)
        assert hasattr(broken, "divert")
        broken.divert(lambda event: bool(1 // 0))
        with pytest.raises(ZeroDivisionError):
            await collect(broken)
        await first_delta(neighbour)
        assert (adapter.status().pid, adapter.status().state) == (pid, "ready")
        for events in (neighbour, broken):
            assert hasattr(events, "aclose")
            await events.aclose()
        await until(lambda: not adapter.busy)

    with_adapter(test)
