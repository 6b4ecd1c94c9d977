"""Requests translated for a target that does not speak their dialect, in the shape of a relay."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from adapters.capabilities import repeatable
from adapters.errors import AdapterError, EngineFailed, InvalidRequest
from adapters.scripted import Answer, Script, Scripted
from adapters.translated import Translator
from adapters.types import (
    Caller,
    ChatRequest,
    DialectName,
    Event,
    Finished,
    Head,
    Inbound,
    Kind,
    Relayed,
    Served,
    Started,
    TextDelta,
    Usage,
)
from tests.adapters.upstream import run, until

KINDS: tuple[Kind, ...] = ("chat", "completion", "embedding")
CALLER = Caller("r", "t")
MESSAGES = [{"role": "user", "content": "hi"}]
# Dialect, what is asked, where the text of a whole answer stands, and what a stream ends with.
ASKED: list[tuple[DialectName, dict[str, Any], Callable[[Any], str], bytes]] = [
    ("openai_chat", {"messages": MESSAGES}, lambda found: found["choices"][0]["message"]["content"], b"[DONE]"),
    ("openai_completions", {"prompt": "hi"}, lambda found: found["choices"][0]["text"], b"[DONE]"),
    (
        "openai_responses",
        {"input": "hi"},
        lambda found: found["output"][0]["content"][0]["text"],
        b"response.completed",
    ),
    (
        "anthropic_messages",
        {"messages": MESSAGES, "max_tokens": 9},
        lambda found: found["content"][0]["text"],
        b"message_stop",
    ),
]


class Sink:
    """Keeps what is shown; asks for a pause after each write while it is `slow`."""

    def __init__(self, *, slow: bool = False) -> None:
        self.begun: list[str] = []
        self.data = b""
        self.outputs = 0
        self.slow = slow
        self.then: Callable[[], None] | None = None

    def serving(self, served: Served) -> None:
        raise AssertionError("whoever translates does not know whom a route has chosen")

    def started(self, started: Started) -> None:
        assert not self.begun

    def begin(self, content_type: str) -> None:
        self.begun.append(content_type)

    def write(self, data: bytes, outputs: int) -> bool:
        assert self.then is None, "nothing is written before it was drained"
        self.data += data
        self.outputs += outputs
        return not self.slow

    def when_drained(self, then: Callable[[], None]) -> None:
        self.then = then

    def drain(self) -> None:
        then, self.then = self.then, None
        if then is not None:
            then()


def inbound(dialect: DialectName, *, stream: bool = False, tokens_max: int | None = None, **fields: Any) -> Inbound:
    body = {"model": "route"} | fields | ({"stream": True} if stream else {})
    return Inbound(dialect, json.dumps(body).encode(), Head("route", stream=stream), output_tokens_max=tokens_max)


def target(text: str = "I am here") -> Scripted:
    return Scripted("b", Script(answers=(Answer(text=text),), kinds=KINDS))


async def relayed(asked: Inbound, sink: Sink, answers: Any = None) -> Relayed:
    return await Translator("route").translation(asked).relay(answers or target(), CALLER, sink)


@pytest.mark.parametrize(("dialect", "fields", "text_of", "end"), ASKED, ids=[one[0] for one in ASKED])
def test_an_answer_and_a_stream_in_each_dialect(
    dialect: DialectName, fields: dict[str, Any], text_of: Callable[[Any], str], end: bytes
) -> None:
    async def main() -> None:
        sink = Sink()
        done = await relayed(inbound(dialect, **fields), sink)
        assert text_of(json.loads(done.rest)) == "I am here"
        assert json.loads(done.rest)["model"] == "route"
        assert (done.content_type, sink.begun) == ("application/json", [])
        assert done.finished.usage.completion_tokens == 3

        done = await relayed(inbound(dialect, stream=True, **fields), sink)
        assert sink.begun == ["text/event-stream; charset=utf-8"] and done.content_type == sink.begun[0]
        assert b" am" in sink.data and b" here" in sink.data and sink.outputs == 3
        assert end in done.rest and end not in sink.data, "the last event waits until the usage is recorded"
        assert all(frame.startswith((b"data: ", b"event: ")) for frame in (sink.data + done.rest).split(b"\n\n")[:-1])

    run(main())


class Diverting(Scripted):
    """Offers more text the short way while its reader waits for the end."""

    async def _events(self) -> AsyncIterator[Event]:
        yield Started(3)
        yield TextDelta(0, "read")
        for _ in range(2):
            if not self._take(TextDelta(0, "offered")):
                yield TextDelta(0, "declined")
        yield Finished(Usage(3, 3))

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        self._reading = self._events()
        return self

    def divert(self, take: Callable[[Event], bool]) -> None:
        self._take = take

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._reading

    async def __anext__(self) -> Event:
        return await anext(self._reading)


@pytest.mark.parametrize("slow", [False, True])
def test_text_goes_the_short_way_while_the_client_is_ready(slow: bool) -> None:
    async def main() -> None:
        sink, answers = Sink(slow=slow), Diverting("b", Script(answers=(Answer(text=""),), kinds=KINDS))
        work = asyncio.ensure_future(relayed(inbound("openai_chat", stream=True, messages=MESSAGES), sink, answers))
        while not work.done():
            await until(lambda: work.done() or sink.then is not None)
            sink.drain()
        texts = re.findall(rb'"content":"(\w+)"', sink.data)
        assert texts == [b"read", *[b"declined" if slow else b"offered"] * 2]

    run(main())


def test_vectors() -> None:
    async def main() -> None:
        done = await relayed(inbound("openai_embeddings", input=["a", "b"]), Sink())
        assert [one["index"] for one in json.loads(done.rest)["data"]] == [0, 1]
        assert done.finished.usage.prompt_tokens > 0

    run(main())


def test_a_slow_client_holds_up_the_target() -> None:
    async def main() -> None:
        sink = Sink(slow=True)
        work = asyncio.ensure_future(relayed(inbound("openai_chat", stream=True, messages=MESSAGES), sink))
        while not work.done():
            await until(lambda: work.done() or sink.then is not None)
            sink.drain()
        assert sink.outputs == 3

    run(main())


def test_the_answer_is_bounded_by_what_is_held() -> None:
    for bound in (None, 7):
        asked = inbound("openai_chat", tokens_max=bound, messages=MESSAGES)
        request = Translator("route").translation(asked).request
        assert isinstance(request, ChatRequest) and request.generation.max_tokens == bound


class Breaking(Scripted):
    """Begins and then fails, or just ends; says whether it was closed."""

    def __init__(self, failure: AdapterError | None) -> None:
        super().__init__("b", Script(answers=(Answer(text="x"),)))
        self.failure = failure
        self.closed = False

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        return self._broken()

    async def _broken(self) -> AsyncIterator[Event]:
        try:
            yield Started(1)
            yield TextDelta(0, "Hel")
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed = True


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [None, EngineFailed("died")])
def test_an_answer_that_breaks_off(stream: bool, failure: AdapterError | None) -> None:
    async def main() -> None:
        sink, answers = Sink(), Breaking(failure)
        with pytest.raises(EngineFailed):
            await relayed(inbound("openai_chat", stream=stream, messages=MESSAGES), sink, answers)
        assert bool(sink.begun) == stream
        assert answers.closed

    run(main())


def test_who_gives_up_stops_the_work() -> None:
    async def main() -> None:
        sink, answers = Sink(slow=True), Breaking(None)
        work = asyncio.ensure_future(relayed(inbound("openai_chat", stream=True, messages=MESSAGES), sink, answers))
        await until(lambda: sink.then is not None)
        work.cancel()
        await asyncio.wait([work])
        await until(lambda: answers.closed)

    run(main())


def test_what_is_wrong_is_told_when_it_is_translated() -> None:
    translator = Translator("route")
    wrong = inbound("openai_chat", messages=[{"role": "wizard"}])
    assert translator.takes(wrong)
    with pytest.raises(InvalidRequest):
        translator.translation(wrong)
    kept = inbound("openai_responses", input="hi", previous_response_id="resp_1")
    with pytest.raises(InvalidRequest):
        translator.translation(kept)


def test_images_that_have_to_be_fetched_are_left_to_others() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]}]
    assert not Translator("route").takes(inbound("openai_chat", messages=image))
    assert Translator("route").takes(inbound("openai_chat", messages=MESSAGES))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"store": True}, False),
        ({"web_search_options": {}}, False),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, False),
        ({"tools": [{"type": "code_interpreter"}]}, False),
        ({"mcp_servers": [{"url": "https://x.test", "authorization_token": "secret"}]}, False),
        ({"tools": [{"type": "mcp", "headers": {"authorization": "secret"}}]}, False),
        ({"container": "c"}, False),
    ],
)
def test_what_may_be_asked_for_twice(fields: dict[str, Any], expected: bool) -> None:
    given = inbound("openai_chat", messages=MESSAGES, **fields)
    assert repeatable(given) == expected
    escaped = Inbound("openai_chat", b'{"model":"m","\\u0073tore":true}', Head("m"))
    assert not repeatable(escaped)
