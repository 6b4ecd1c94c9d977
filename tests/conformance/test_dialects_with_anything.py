"""Whatever arrives: requests are understood or refused, streams are read or typed errors; nothing else is raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.dialects import anthropic_messages, bedrock_converse, gemini, openai_responses
from adapters.dialects.client import EventParser, Style
from adapters.errors import AdapterError, InvalidRequest
from adapters.providers import CAPABILITIES
from adapters.relay import PASSING, Frames
from adapters.types import DialectName, Head, Inbound
from tests.adapters.dialects.replay import REQUEST, recorded, replayed
from tests.conformance.conversations import requests, values
from tests.conformance.test_dialects import DIALECTS
from tests.recorded.streams_openai import STREAMS as CHATS
from tests.recorded.streams_responses import STREAMS as RESPONSES

PARSERS: dict[str, Callable[[bytes], object]] = {
    "anthropic_messages": anthropic_messages.parse_request,
    "gemini": lambda body: gemini.parse_request(body, "m"),
    "bedrock_converse": lambda body: bedrock_converse.parse_request(body, "m"),
    "openai_responses": openai_responses.parse_request,
}
STREAMS: dict[str, tuple[bytes, Callable[[], EventParser]]] = {
    "anthropic_messages": (
        recorded("anthropic_messages", "tools_and_thinking.sse"),
        lambda: anthropic_messages.EventParser(REQUEST),
    ),
    "gemini": (recorded("gemini", "tools_and_thinking.sse"), lambda: gemini.EventParser(REQUEST)),
    "bedrock_converse": (
        recorded("bedrock_converse", "tools_and_thinking.bin"),
        lambda: bedrock_converse.EventParser(REQUEST),
    ),
    "openai_responses": (RESPONSES["thoughts and calls"][0], lambda: openai_responses.EventParser(REQUEST)),
}
PASSED: dict[DialectName, bytes] = {
    "openai_chat": CHATS["openai, tools"][0],
    "openai_responses": RESPONSES["thoughts and calls"][0],
    "anthropic_messages": recorded("anthropic_messages", "tools_and_thinking.sse"),
}
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with something else in one place."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 5)) == 0:
        return draw(values | st.just({}) | st.just([]) | st.floats(allow_nan=False, allow_infinity=False))
    if isinstance(document, list):
        at = draw(st.integers(0, len(document) - 1))
        return [draw(changed(one)) if index == at else one for index, one in enumerate(document)]
    name = draw(st.sampled_from(sorted(document)))
    if draw(st.integers(0, 5)) == 0:
        return {key: value for key, value in document.items() if key != name}
    return document | {name: draw(changed(document[name]))}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@QUICK
def test_requests(name: str, data: st.DataObject) -> None:
    request = data.draw(requests(DIALECTS[name].words))
    document = data.draw(changed(json.loads(DIALECTS[name].render_request(request))))
    try:
        PARSERS[name](json.dumps(document).encode())
    except InvalidRequest as refused:
        assert refused.message


@pytest.mark.parametrize("name", STREAMS)
@given(data=st.data())
@QUICK
def test_payloads(name: str, data: st.DataObject) -> None:
    stream, parser = STREAMS[name]
    splitter = DIALECTS[name].splitter()
    payloads = [*splitter.feed(stream), *splitter.end()]
    at = data.draw(st.integers(0, len(payloads) - 1))
    kind, payload = payloads[at]
    payloads[at] = kind, json.dumps(data.draw(changed(json.loads(payload)))).encode()
    reading = parser()
    try:
        for kind, payload in payloads:
            reading.feed(kind, payload)
        reading.end()
    except AdapterError as refused:
        assert refused.message


@pytest.mark.parametrize("name", STREAMS)
@given(data=st.data())
@QUICK
def test_bytes(name: str, data: st.DataObject) -> None:
    stream, parser = STREAMS[name]
    at = data.draw(st.integers(0, len(stream)))
    gap = data.draw(st.integers(0, 40))
    pieces = (stream[:at], data.draw(st.binary(max_size=20)), stream[at + gap :])
    try:
        replayed(parser(), pieces, DIALECTS[name].splitter())
    except AdapterError as refused:
        assert refused.message


@pytest.mark.parametrize("name", PASSED)
@given(data=st.data())
@QUICK
def test_requests_that_are_passed_on(name: DialectName, data: st.DataObject) -> None:
    request = data.draw(requests(DIALECTS[name].words))
    document = data.draw(changed(json.loads(DIALECTS[name].render_request(request))))
    body, passing = json.dumps(document).encode(), PASSING[name]
    try:
        inbound = Inbound(name, body, passing.read_head(body), data.draw(st.none() | st.just(7)))
        passing.may_need(inbound, frozenset(CAPABILITIES))
        rewritten = json.loads(b"".join(passing.rewrite(inbound, "theirs", Style())))
    except InvalidRequest as refused:
        assert refused.message
    else:
        assert rewritten["model"] == "theirs"


@pytest.mark.parametrize("name", PASSED)
@given(data=st.data())
@QUICK
def test_answers_that_are_passed_on(name: DialectName, data: st.DataObject) -> None:
    passing = PASSING[name]
    stream = PASSED[name]
    at = data.draw(st.integers(0, len(stream)))
    gap = data.draw(st.integers(0, 40))
    watch, frames = passing.watch(Inbound(name, b"{}", Head("m", stream=True))), Frames()
    document = data.draw(values | st.dictionaries(st.sampled_from(["usage", "error", "object", "type"]), values))
    try:
        for piece in (stream[:at], data.draw(st.binary(max_size=20)), stream[at + gap :]):
            watch.passed(*frames.feed(piece))
        watch.end()
        passing.usage_of(json.dumps(document).encode())
    except AdapterError as refused:
        assert refused.message
