from __future__ import annotations

from collections.abc import Sequence

import pytest

from adapters.dialects.openai_responses import EventParser
from adapters.errors import AdapterError, InvalidRequest, RateLimited, UpstreamInvalid, UpstreamRefused
from adapters.sse import EventSplitter
from adapters.types import ChatRequest, Event
from tests.recorded.streams_responses import STREAMS


def replay(pieces: Sequence[bytes]) -> list[Event]:
    splitter, parser = EventSplitter(), EventParser(ChatRequest("m", ()))
    payloads = [payload for piece in pieces for payload in splitter.feed(piece)] + splitter.end()
    return [event for kind, payload in payloads for event in parser.feed(kind, payload)] + list(parser.end())


@pytest.mark.parametrize("name", STREAMS)
def test_what_a_stream_says_however_it_is_split(name: str) -> None:
    raw, events = STREAMS[name]
    assert replay([raw]) == events
    for cut in range(len(raw)):
        assert replay([raw[:cut], raw[cut:]]) == events


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"type":"error","code":"rate_limit_exceeded","message":"slow down","param":null}', RateLimited),
        (b'{"type":"error","error":{"type":"invalid_request_error","message":"bad"}}', InvalidRequest),
        (b'{"type":"response.failed","response":{"error":{"code":"server_error","message":"x"}}}', UpstreamRefused),
        (b'{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"x"}}}', RateLimited),
        (b'{"type":"response.failed"}', UpstreamRefused),
        (b'{"type":"response.function_call_arguments.delta","output_index":4,"delta":"{}"}', UpstreamInvalid),
        (b'{"type":"response.output_item.added","item":{"type":"function_call"}}', UpstreamInvalid),
        (b'{"error":{"message":"boom","type":"server_error"}}', UpstreamRefused),
        (b"hello", UpstreamInvalid),
        (b"", UpstreamInvalid),
    ],
)
def test_what_is_wrong_with_a_stream(payload: bytes, kind: type[AdapterError]) -> None:
    with pytest.raises(kind):
        replay([b"data: " + payload + b"\n\n"])
