"""Requests that a route passes on as they came, or translates for targets that speak no dialect of theirs."""

from __future__ import annotations

import pytest

from adapters.errors import InvalidRequest, Unreachable
from adapters.scripted import Answer, Script, Scripted
from adapters.types import (
    Caller,
    Head,
    Inbound,
    Relayed,
    Sink,
)
from gateway.routing.backoff import RetryBudget
from gateway.routing.balance import RouteSettings
from gateway.routing.breaker import Breaker
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target
from tests.gateway.routing.scenes import GONE, Passing, Shown, passing, run


def inbound(*, stream: bool) -> Inbound:
    return Inbound("openai_chat", b"{}", Head("route", stream=stream))


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_passed_on_is_tried_elsewhere_while_nothing_was_shown(stream: bool) -> None:
    async def test() -> None:
        router, sink = passing(Passing("a", early=GONE), Passing("b")), Shown()
        assert router.takes(inbound(stream=stream))
        relayed = await router.relay(inbound(stream=stream), Caller("r", "t"), sink)
        assert relayed.rest == b"b"
        assert sink.told == [("b", 2), *(["text/event-stream", b"b"] if stream else [])]
        assert router.standings["a"].failures == 1

    run(test())


def test_what_was_shown_is_not_tried_again() -> None:
    async def test() -> None:
        router, sink = passing(Passing("a", late=GONE), Passing("b")), Shown()
        with pytest.raises(Unreachable):
            await router.relay(inbound(stream=True), Caller("r", "t"), sink)
        assert sink.told == [("a", 1), "text/event-stream", b"a"]
        assert [one.running for one in router.standings.values()] == [0, 0]

    run(test())


def speaker(name: str) -> Scripted:
    """Speaks no dialect, so requests are translated for it."""
    return Scripted(name, Script(answers=(Answer(text=f"I am {name}"),)))


HELLO = b'{"model":"route","messages":[{"role":"user","content":"hi"}],"stream":%b}'


def hello(*, stream: bool, body: bytes = HELLO) -> Inbound:
    return Inbound("openai_chat", body % (b"true" if stream else b"false"), Head("route", stream=stream))


def test_a_route_takes_what_one_target_does_and_others_can_be_told() -> None:
    mixed = passing(Passing("a"), speaker("b"))
    assert mixed.takes(hello(stream=True))
    pictured = HELLO.replace(b'"hi"', b'[{"type":"image_url","image_url":{"url":"https://x.test/a.png"}}]')
    assert not mixed.takes(hello(stream=True, body=pictured))
    assert passing(Passing("a"), Passing("b")).takes(hello(stream=True, body=pictured))
    assert not passing(speaker("a"), speaker("b")).takes(hello(stream=True))
    assert not passing(Passing("a")).takes(Inbound("openai_completions", b"{}", Head("route")))


@pytest.mark.parametrize("stream", [False, True])
def test_each_target_is_asked_in_words_that_it_knows(stream: bool) -> None:
    async def test() -> None:
        router, sink = passing(speaker("a"), Passing("b")), Shown()
        relayed = await router.relay(hello(stream=stream), Caller("r", "t"), sink)
        shown = b"".join(one for one in sink.told if isinstance(one, bytes)) + relayed.rest
        assert sink.told[0] == ("a", 1)
        assert (b"am" if stream else b"I am a") in shown
        assert b"chatcmpl-r" in shown and shown.endswith(b"[DONE]\n\n") == stream
        assert relayed.finished.usage.completion_tokens == 3

        router, sink = passing(Passing("a", early=GONE), speaker("b")), Shown()
        relayed = await router.relay(hello(stream=stream), Caller("r", "t"), sink)
        shown = b"".join(one for one in sink.told if isinstance(one, bytes)) + relayed.rest
        assert sink.told[0] == ("b", 2) and b"chatcmpl-r" in shown

    run(test())


def test_what_a_target_cannot_be_told_goes_elsewhere() -> None:
    async def test() -> None:
        odd = HELLO.replace(b'"hi"', b'[{"type":"hologram"}]')
        router, sink = passing(speaker("a"), Passing("b")), Shown()
        assert (await router.relay(hello(stream=False, body=odd), Caller("r", "t"), sink)).rest == b"b"
        with pytest.raises(InvalidRequest, match="content"):
            await passing(speaker("a"), Passing("b", early=InvalidRequest("content"))).relay(
                hello(stream=False, body=odd), Caller("r", "t"), sink
            )

    run(test())


def test_how_long_the_first_output_of_a_stream_took_is_learnt_when_it_comes() -> None:
    async def test() -> None:
        class Slow(Passing):
            async def relay(self, inbound: Inbound, caller: Caller, sink: Sink) -> Relayed:
                now[0] = 0.5
                relayed = await super().relay(inbound, caller, sink)
                now[0] = 60.0
                return relayed

        now = [0.0]
        target = Target(identity="a", provider="p", model="a", adapter=Slow("a"))
        router = Router(
            "route", [[target]], RouteSettings(), {"a": Standing(Breaker())}, RetryBudget(), clock=lambda: now[0]
        )
        await router.relay(hello(stream=True), Caller("r", "t"), Shown())
        assert router.standings["a"].first_output_s == 0.5

    run(test())
