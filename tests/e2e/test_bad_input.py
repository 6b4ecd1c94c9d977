"""What arrives from the hostile and the careless: each row at each entry point, through the real server.

Every answer must be an OpenAI error with a request id and without internals, and the same process and worker must be
alive afterwards.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.server import ADMIN_KEY, Server

CHAT = "/v1/chat/completions"
POSTS = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/tokenize", "/v1/count_tokens")
MESSAGES = [{"role": "user", "content": "Hello"}]
INTERNALS = re.compile(r"Traceback|\.py\b|/work|/root|/home|/tmp|sqlite|SELECT|gw_live_[A-Za-z0-9]{6}", re.IGNORECASE)


@pytest.fixture(autouse=True)
def nothing_died(server: Server) -> Iterator[None]:
    before = (server.process.pid, sorted(server.workers()))
    yield
    assert server.process.poll() is None
    assert (server.process.pid, sorted(server.workers())) == before


def post(server: Server, path: str, content: bytes, **headers: str) -> tuple[int, dict[str, str]]:
    """The status and the error object of a request, checked for its shape."""
    with server.client() as client:
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"} | headers)
    return answer.status_code, error(answer.text, dict(answer.headers))


def error(text: str, headers: dict[str, str]) -> dict[str, str]:
    assert headers["x-request-id"]
    assert not INTERNALS.search(text), text
    found = json.loads(text)["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return dict(found)


NOT_JSON = {
    "empty": b"",
    "truncated": b'{"model": "demo", "messages": [',
    "trailing": b'{"model": "demo"} x',
    "invalid UTF-8": b'{"model": "\xff\xfe"}',
    "depth": b"[" * 100_000,
    "deep object": b'{"messages":' * 100_000,
    "NaN": b'{"model": "demo", "temperature": NaN}',
    "not an object": b"[1, 2]",
    "null": b"null",
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json(server: Server, path: str, content: bytes) -> None:
    status, found = post(server, path, content)
    assert (status, found["type"]) == (400, "invalid_request_error")
    assert found["code"] in ("invalid_json", "invalid_value")


ODD_VALUES = ['"x"', "1e999", "-1e999", "9" * 5000, "[]", "{}", "true", '"\\ud800"']
NUMBERS = ("temperature", "top_p", "n", "max_tokens", "max_completion_tokens", "seed", "presence_penalty",
           "frequency_penalty", "top_logprobs", "top_k", "min_p")  # fmt: skip


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ODD_VALUES)
def test_numbers_that_are_none(server: Server, field: str, value: str) -> None:
    content = f'{{"model": "demo", "messages": {json.dumps(MESSAGES)}, "logprobs": true, "{field}": {value}}}'
    status, found = post(server, CHAT, content.encode())
    assert status == 400
    assert found["param"] == field or found["code"] == "invalid_json"


BOUNDS: list[tuple[str, list[object], list[object]]] = [
    ("temperature", [0, 2], [-0.1, 2.1]),
    ("top_p", [0, 1], [-0.1, 1.1]),
    ("min_p", [0, 1], [-0.1, 1.1]),
    ("top_k", [0, 1000], [-2]),
    ("n", [1, 4], [0, -1, 129]),
    ("max_tokens", [1], [0, -1]),
    ("max_completion_tokens", [1], [0, -1]),
    ("presence_penalty", [-2, 2], [-2.1, 2.1]),
    ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
    ("seed", [-(2**63), 2**63 - 1], [2**64, 0.5]),
    ("top_logprobs", [0, 20], [-1, 21]),
    ("stop", ["x", ["x"] * 4, []], [[1], {"a": 1}, [""]]),
    ("logit_bias", [{}, {"5": 100}, {"5": -100}], [{"5": 101}, {"x": 1}, {"5": "x"}, {"-1": 1}, {"99999999": 1}]),
    ("stream", [False], ["yes", 1]),
    (
        "messages",
        [MESSAGES],
        [[], "x", [{"role": "wizard", "content": "x"}], [{"content": "x"}], [1], [{"role": "user"}]],
    ),
    ("model", ["demo"], [None, 1, ""]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, good, _ in BOUNDS for value in good])
def test_values_at_their_bounds(server: Server, field: str, value: object) -> None:
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 2, "logprobs": True} | {field: value}
    if field == "max_completion_tokens":
        del body["max_tokens"]
    with server.client() as client:
        answer = client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, _, bad in BOUNDS for value in bad])
def test_values_past_their_bounds(server: Server, field: str, value: object) -> None:
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 2, "logprobs": True} | {field: value}
    status, found = post(server, CHAT, json.dumps(body).encode())
    assert status == 400, found
    assert (found["param"] or "").startswith(field)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers"])
def test_fields_that_would_redirect(server: Server, path: str, field: str) -> None:
    body = {
        "model": "demo",
        "messages": MESSAGES,
        "prompt": "x",
        "input": "x",
        "content": "x",
        "query": "x",
        "documents": ["x"],
        field: "http://127.0.0.1:1",
    }
    status, found = post(server, path, json.dumps(body).encode())
    assert (status, found["code"], found["param"]) == (400, "unknown_parameter", field)


REFUSED: list[dict[str, object]] = [
    {"chat_template": "{{ 7*7 }}"},
    {"chat_template_kwargs": {"a": 1}},
    {"chat_template_kwargs": {"messages": []}},
    {"chat_template_kwargs": {"enable_thinking": "{{ 7*7 }}"}},
    {"reasoning_effort": "enormous"},
    {"thinking_budget_tokens": -5},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
    {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "function"}},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "allowed_tools"}},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(a*)*b"}}}},
    {"grammar": 'root ::= "a" | foo'},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "function", "function": {"name": "bad name"}}]},
    {"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(10_000)]},
    {"tool_choice": "required"},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
    {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}],
            }
        ]
    },
]  # fmt: skip


@pytest.mark.parametrize("more", REFUSED, ids=lambda more: json.dumps(more)[:60])
def test_what_is_refused_and_never_ignored(server: Server, more: dict[str, object]) -> None:
    status, found = post(
        server, CHAT, json.dumps({"model": "demo", "messages": MESSAGES, "max_tokens": 2} | more).encode()
    )
    assert status == 400
    assert (found["param"] or "").split("[")[0].split(".")[0] in more


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_too_large_or_not_json_by_type(server: Server, path: str) -> None:
    status, found = post(server, path, b'{"x": "' + b"a" * (11 << 20) + b'"}')
    assert (status, found["code"]) == (413, "request_too_large")
    status, _ = post(server, path, gzip.compress(b"{}"), **{"Content-Encoding": "gzip"})
    assert status == 415
    with server.client() as client:
        assert client.post(path, data={"model": "demo"}).status_code == 415


def test_prompts_longer_than_the_context(server: Server) -> None:
    long = "word " * 100_000
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/completions", {"prompt": [5] * 50_000}),
        ("/v1/embeddings", {"model": "team/embedder", "input": long}),
    ):
        status, found = post(server, path, json.dumps({"model": "demo"} | body).encode())
        assert (status, found["code"]) == (400, "context_length_exceeded"), path


def test_models_that_are_absent_or_of_the_wrong_kind(server: Server) -> None:
    for path, body in (
        (CHAT, {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        status, found = post(server, path, json.dumps({"model": "nothing/here"} | body).encode())
        assert (status, found["code"]) == (404, "model_not_found")
    status, found = post(server, CHAT, json.dumps({"model": "team/embedder", "messages": MESSAGES}).encode())
    assert (status, found["param"]) == (400, "model")
    status, found = post(server, "/v1/embeddings", json.dumps({"model": "demo", "input": "x"}).encode())
    assert (status, found["param"]) == (400, "model")


WRONG_KEYS = {
    "none": None,
    "not bearer": f"Basic {ADMIN_KEY}",
    "empty": "Bearer",
    "unknown": "Bearer gw_live_aaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb_cccccc",
    "almost": f"Bearer {ADMIN_KEY}x",
    "long": "Bearer " + "a" * 8000,
}


@pytest.mark.parametrize("path", [*POSTS, "/v1/models", "/v1/models/demo"])
@pytest.mark.parametrize("key", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_requests_without_a_right_key(server: Server, path: str, key: str | None) -> None:
    with server.client() as client:
        del client.headers["Authorization"]
        headers = {"Authorization": key} if key is not None else {}
        answer = client.request("GET" if "models" in path else "POST", path, headers=headers, json={})
    assert answer.status_code == 401
    assert error(answer.text, dict(answer.headers))["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def raw(server: Server, request: bytes) -> tuple[int, bytes]:
    """Bytes in, status and bytes out, over a plain socket; status 0 when it was closed without an answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    return (int(answer.split(b" ", 2)[1]) if answer else 0), answer


POST_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
KEY = b"Authorization: Bearer " + ADMIN_KEY.encode() + b"\r\n"
MALFORMED: dict[str, tuple[bytes, set[int]]] = {
    "header block": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n", {431}),
    "header count": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 120 + b"\r\n", {431}),
    "long url": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414}),
    "no host": (b"GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
    "two hosts": (b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", {400}),
    "odd host": (b"GET /health/live HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", {400}),
    "not http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", {400}),
    "two lengths": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        {400},
    ),
    "length and chunks": (
        POST_HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        {400},
    ),
    "dots": (b"GET /health/%2e%2e/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    "slashes": (b"GET //v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    "case": (b"GET /V1/MODELS HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404}),
    "semicolon": (b"GET /v1/models;x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    "nul": (b"GET /v1/models%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 401, 404}),
    "method": (b"PUT /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + KEY + b"\r\n", {405}),
}


@pytest.mark.parametrize(("request_bytes", "statuses"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_http(server: Server, request_bytes: bytes, statuses: set[int]) -> None:
    status, answer = raw(server, request_bytes)
    assert status in statuses
    head, _, text = answer.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert error(text.decode(), headers)


def test_text_that_looks_like_framing_stays_text(server: Server) -> None:
    hostile = "\n\ndata: [DONE]\n\n\x1b[31m<script>alert(1)</script>"
    with server.client() as client:
        body = {"model": "demo", "prompt": hostile, "echo": True, "max_tokens": 1, "stream": True}
        answer = client.post("/v1/completions", json=body)
    payloads = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert payloads[-1] == "[DONE]" and payloads.count("[DONE]") == 1
    text = "".join(choice["text"] for payload in payloads[:-1] for choice in json.loads(payload)["choices"])
    assert text.startswith(hostile)
    assert "\x1b" not in server.log.read_text()


MESSAGES_PATH = "/v1/messages"
FAR_IMAGE = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}


def claude_error(server: Server, content: bytes, **headers: str) -> tuple[int, dict[str, str]]:
    """The status and the error of Anthropic's entrance, which has a shape of its own."""
    with server.client() as client:
        answer = client.post(MESSAGES_PATH, content=content, headers={"Content-Type": "application/json"} | headers)
    found = answer.json()
    assert not INTERNALS.search(answer.text), answer.text
    assert found["type"] == "error" and found["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, dict(found["error"])


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_for_anthropic(server: Server, content: bytes) -> None:
    status, found = claude_error(server, content)
    assert (status, found["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "max_tokens"])
@pytest.mark.parametrize("value", ODD_VALUES)
def test_numbers_that_are_none_for_anthropic(server: Server, field: str, value: str) -> None:
    content = f'{{"model": "demo", "messages": {json.dumps(MESSAGES)}, "{field}": {value}}}'
    status, _ = claude_error(server, content.encode())
    assert status == 400


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"api_base": "http://127.0.0.1:1"}, 400),
        ({"model": "nobody"}, 404),
        ({"messages": [{"role": "user", "content": "word " * 100_000}]}, 400),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, 400),
        ({"messages": [{"role": "user", "content": [FAR_IMAGE]}]}, 400),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"pattern": "(a*)*b"}}}}, 400),
        ({"max_tokens": 2**40}, 400),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused_for_anthropic(server: Server, more: dict[str, object], status: int) -> None:
    body = {"model": "demo", "max_tokens": 5, "messages": MESSAGES} | more
    assert claude_error(server, json.dumps(body).encode())[0] == status


def test_bodies_and_keys_for_anthropic(server: Server) -> None:
    assert claude_error(server, b'{"x": "' + b"a" * (11 << 20) + b'"}')[0] == 413
    assert claude_error(server, gzip.compress(b"{}"), **{"Content-Encoding": "gzip"})[0] == 415
    assert claude_error(server, b"{}", Authorization="Bearer wrong")[1]["type"] == "authentication_error"
