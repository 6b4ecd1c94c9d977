"""Whatever arrives: requests are understood or refused, streams are read or typed errors; nothing else is raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.dialects import anthropic_messages, bedrock_converse, gemini
from adapters.dialects.client import EventParser
from adapters.errors import AdapterError, InvalidRequest
from tests.adapters.dialects.replay import REQUEST, recorded, replayed
from tests.conformance.conversations import requests, values
from tests.conformance.test_dialects import DIALECTS

PARSERS: dict[str, Callable[[bytes], object]] = {
    "anthropic_messages": anthropic_messages.parse_request,
    "gemini": lambda body: gemini.parse_request(body, "m"),
    "bedrock_converse": lambda body: bedrock_converse.parse_request(body, "m"),
}
STREAMS: dict[str, tuple[str, Callable[[], EventParser]]] = {
    "anthropic_messages": ("tools_and_thinking.sse", lambda: anthropic_messages.EventParser(REQUEST)),
    "gemini": ("tools_and_thinking.sse", lambda: gemini.EventParser(REQUEST)),
    "bedrock_converse": ("tools_and_thinking.bin", lambda: bedrock_converse.EventParser(REQUEST)),
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
    file, parser = STREAMS[name]
    splitter = DIALECTS[name].splitter()
    payloads = [*splitter.feed(recorded(name, file)), *splitter.end()]
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
    file, parser = STREAMS[name]
    stream = recorded(name, file)
    at = data.draw(st.integers(0, len(stream)))
    gap = data.draw(st.integers(0, 40))
    pieces = (stream[:at], data.draw(st.binary(max_size=20)), stream[at + gap :])
    try:
        replayed(parser(), pieces, DIALECTS[name].splitter())
    except AdapterError as refused:
        assert refused.message
