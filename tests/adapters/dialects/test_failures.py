"""Errors of many providers, written after their documentation, and what becomes of them."""

from __future__ import annotations

import pytest

from adapters.dialects.failures import failure, failure_in_stream, retry_after, scrubbed
from adapters.errors import AdapterError, InvalidRequest, RateLimited, Timeout, UpstreamInvalid, UpstreamRefused

ERRORS: list[tuple[int, bytes, type[AdapterError], str]] = [
    (
        400,
        b'{"error":{"message":"This model\'s maximum context length is 128000 tokens.","type":"invalid_request_error",'
        b'"param":"messages","code":"context_length_exceeded"}}',
        InvalidRequest,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens"}}',
        InvalidRequest,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"The input token count (1) exceeds the maximum number of tokens allowed (2).",'
        b'"status":"INVALID_ARGUMENT"}}',
        InvalidRequest,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"message":"Input is too long for requested model."}',
        InvalidRequest,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"error":{"code":400,"message":"the request exceeds the available context size","type":'
        b'"exceed_context_size_error"}}',
        InvalidRequest,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI\'s content '
        b'management policy.","type":null,"param":"prompt","code":"content_filter","status":400}}',
        InvalidRequest,
        "content_filter",
    ),
    (
        403,
        b'{"error":{"message":"Your chosen model requires moderation and your input was flagged","code":403}}',
        InvalidRequest,
        "content_filter",
    ),
    (
        400,
        b'{"error":{"message":"Unknown parameter: \'x\'.","type":"invalid_request_error","param":"x",'
        b'"code":"unknown_parameter"}}',
        InvalidRequest,
        "invalid_value",
    ),
    (422, b'{"detail":[{"type":"extra_forbidden","loc":["body","seed"]}]}', InvalidRequest, "invalid_value"),
    (401, b'{"error":{"message":"Incorrect API key provided: sk-abc***xyz."}}', UpstreamRefused, "upstream_error"),
    (403, b'{"message":"User: arn:aws:iam::1:user/x is not authorized"}', UpstreamRefused, "upstream_error"),
    (404, b'{"error":{"message":"The model `gpt-9` does not exist","code":"model_not_found"}}', UpstreamRefused, ""),
    (402, b'{"error":{"message":"Insufficient Balance"}}', UpstreamRefused, "upstream_error"),
    (429, b'{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}', UpstreamRefused, ""),
    (429, b'{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}', RateLimited, ""),
    (400, b'{"error":{"type":"billing_error","message":"Your credit balance is too low"}}', UpstreamRefused, ""),
    (529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', UpstreamRefused, ""),
    (500, b"<html>boom</html>", UpstreamRefused, "upstream_error"),
    (503, b"", UpstreamRefused, "upstream_error"),
    (504, b"", Timeout, "upstream_timeout"),
    (302, b"", UpstreamInvalid, "upstream_invalid"),
    (400, b"[[[[", InvalidRequest, "invalid_value"),
    (400, b'[{"error":{"code":400,"message":"bad","status":"INVALID_ARGUMENT"}}]', InvalidRequest, "invalid_value"),
]


@pytest.mark.parametrize(("status", "body", "kind", "code"), ERRORS)
def test_errors_of_answers(status: int, body: bytes, kind: type[AdapterError], code: str) -> None:
    found = failure(status, body, {}, 0.0)
    assert type(found) is kind
    assert not code or found.code == code


def test_only_faults_of_the_request_are_told_in_the_providers_words() -> None:
    assert failure(400, b'{"error":"Unknown parameter"}', {}, 0.0).message == (
        "The provider refused the request: Unknown parameter"
    )
    told = [failure(status, b'{"error":{"message":"SECRET"}}', {}, 0.0) for status in (401, 402, 404, 429, 500, 503)]
    assert not any("SECRET" in error.message for error in told)
    assert [getattr(error, "status", None) for error in told] == [401, 402, 404, None, 500, 503]


def test_what_else_providers_say_is_kept_for_who_runs_the_gateway() -> None:
    denied = failure(401, b'{"error":{"message":"Incorrect API key provided: sk-abcdef123456."}}', {}, 0.0)
    assert denied.words == "Incorrect API key provided: [removed]"
    assert failure(400, b'{"error":"Unknown parameter"}', {}, 0.0).words == ""


IN_STREAMS: list[tuple[bytes, type[AdapterError]]] = [
    (b'{"error":{"message":"Rate limit","type":"rate_limit_exceeded"}}', RateLimited),
    (b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', UpstreamRefused),
    (b'{"type":"error","error":{"type":"api_error","message":"x"}}', UpstreamRefused),
    (
        b'{"id":"x","choices":[{"finish_reason":"error"}],"error":{"code":502,"message":"Provider died"}}',
        UpstreamRefused,
    ),
    (b'{"error":{"code":429,"message":"slow down"}}', RateLimited),
    (b'{"error":"model runner stopped"}', UpstreamRefused),
    (b'{"error":{"type":"invalid_request_error","message":"bad"}}', InvalidRequest),
]


@pytest.mark.parametrize(("payload", "kind"), IN_STREAMS)
def test_errors_within_streams(payload: bytes, kind: type[AdapterError]) -> None:
    assert type(failure_in_stream(payload)) is kind


@pytest.mark.parametrize(
    "payload",
    [b'{"choices":[{"delta":{"content":"an error occurred"}}]}', b'{"error":null}', b"error", b'{"error":{}}'],
)
def test_what_only_looks_like_an_error(payload: bytes) -> None:
    assert failure_in_stream(payload) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sat, 21 Nov 2026 08:00:10 GMT"}, 10.0),
        ({"retry-after": "Sat, 21 Nov 2020 08:00:10 GMT"}, 0.0),
        ({"retry-after": "99999999"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, 1_795_248_000.0) == seconds


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        ('[{"@type":"QuotaFailure","violations":[]},{"@type":"RetryInfo","retryDelay":"34.5s"}]', 34.5),
        ('[{"retryDelay":"99999s"}]', 3600.0),
        ('[{"retryDelay":"-1s"},{"retryDelay":5},"x",null]', None),
        ('{"retryDelay":"1s"}', None),
    ],
)
def test_google_says_in_the_error_when_to_come_back(details: str, seconds: float | None) -> None:
    body = b'{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED","details":%b}}' % details.encode()
    assert failure(429, body, {}, 0.0).retry_after_s == seconds
    told = failure_in_stream(body)
    assert told is not None and told.retry_after_s == seconds
    assert failure(429, body, {"retry-after": "7"}, 0.0).retry_after_s == 7


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key: sk-proj-abcdef123456",
        "key AIzaSyA1234567890 is not valid",
        "see https://internal.example/path?x=1",
        "no route to 10.1.2.3:8000",
        "user arn:aws:iam::123456789012:user/bob",
        "organization org-abcdefgh1234 is disabled",
        "mail admin@corp.example",
        "File /opt/vllm/serving/model.py failed",
        "token eyJhbGciOiJIUzI1NiJ9.e30.abc",
        "the host of ours said no",
    ],
)
def test_what_is_removed_from_a_providers_words(text: str) -> None:
    cleaned = scrubbed(text, ("of ours",))
    assert "[removed]" in cleaned
    assert not any(
        word in cleaned for word in ("abcdef", "AIza", "internal", "10.1", "bob", "1234", "corp", "opt", "eyJ")
    )


def test_a_providers_words_are_short_and_printable() -> None:
    assert scrubbed("a\n\x1b[31mb\u2028c") == "a  [31mb c"
    assert len(scrubbed("long words " * 1000)) == 500
    plain = "Invalid value for 'temperature': expected a number between 0 and 2, but got 3.5 instead."
    assert scrubbed(plain) == plain


@pytest.mark.parametrize("shape", [b'{"error":{"message":"%b"}}', b'{"error":"%b"}', b'{"message":"%b"}'])
def test_of_a_providers_words_only_the_beginning_is_looked_at(shape: bytes) -> None:
    """Else one answer of a few megabytes keeps all requests waiting for hours."""
    reason = b"this model's maximum context length"
    near, far = (failure(400, shape % (b"x " * count + reason), {}, 0.0) for count in (1000, 2048))
    assert (near.code, far.code) == ("context_length_exceeded", "invalid_value")
