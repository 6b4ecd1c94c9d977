"""A gateway in front of another one, with the official SDK as the client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.e2e.upstreams import until

SCRIPT = """
kinds: [chat, completion, embedding, rerank]
answers:
  - {text: Hello! How can I help?, reasoning: Somebody greets me.}
  - {match: forecast, tool_calls: [{name: forecast, arguments: '{"city":"Lisbon"}'}, {name: clock}]}
  - {match: structured, text: '{"city":"Lisbon","degrees":21}'}
  - {match: liar, text: Hello, usage: {prompt_tokens: -3, completion_tokens: -1}}
  - {match: broken, text: This breaks off, error: {code: engine_failed, after_chunks: 2}}
  - {match: full, text: x, error: {code: queue_full, retry_after_s: 7}}
"""
HELLO = "Hello! How can I help?"
UPSTREAM = """
models: [{name: theirs, script: canned.yaml}, {name: crowded, script: canned.yaml}]
"""
FRONT = """
providers:
  - {{name: next, kind: gateway, base_url: "{url}/v1", api_key: "${{UPSTREAM_KEY}}", passthrough: true}}
  - {{name: wrong-key, kind: gateway, base_url: "{url}/v1", api_key: not-a-key}}
  - {{name: away, kind: openai-compatible, base_url: "http://127.0.0.1:9/v1"}}
routes:
  - name: far
    aliases: [gpt-4o]
    groups: [[{{provider: next, model: theirs, kinds: [chat, completion, embedding, rerank],
               price: {{input: "1", output: "1000"}}}}]]
  - {{name: crowded, groups: [[{{provider: next, model: crowded}}]]}}
  - {{name: plain, groups: [[{{provider: next, model: theirs, capabilities: []}}]]}}
  - {{name: unknown, groups: [[{{provider: next, model: nothing}}]]}}
  - {{name: denied, groups: [[{{provider: wrong-key, model: theirs}}]]}}
  - {{name: away, groups: [[{{provider: away, model: m}}]]}}
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    upstream, folder = tmp_path_factory.mktemp("upstream"), tmp_path_factory.mktemp("front")
    (upstream / "canned.yaml").write_text(SCRIPT)
    with (
        Server(upstream, config=UPSTREAM) as behind,
        Server(folder, config=FRONT.format(url=behind.url), UPSTREAM_KEY=ADMIN_KEY) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def sdk(front: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_chat(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(model="gpt-4o", messages=user("hi"))
    answer = raw.parse()
    assert answer.choices[0].message.content == HELLO
    assert answer.choices[0].message.model_extra == {"reasoning_content": "Somebody greets me."}
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 8
    assert raw.headers["x-gateway-model"] == "far"
    assert raw.headers["x-gateway-cost-usd"] == "0.008009"


def test_a_stream(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="far", messages=user("hi"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == HELLO
    assert chunks[-1].usage.completion_tokens == 8


def test_tools(sdk: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("forecast", "clock")]
    with sdk.chat.completions.stream(model="far", messages=user("forecast"), tools=tools) as stream:
        choice = stream.get_final_completion().choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("forecast", '{"city":"Lisbon"}'), ("clock", "{}")]
    assert choice.finish_reason == "tool_calls"
    history = [*user("forecast"), choice.message.model_dump(exclude_none=True, exclude={"parsed"})]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in choice.message.tool_calls]
    answer = sdk.chat.completions.create(model="far", messages=history, tools=tools)
    assert answer.choices[0].message.content == HELLO


def test_structured_output(sdk: openai.OpenAI) -> None:
    class Weather(BaseModel):
        city: str
        degrees: int

    answer = sdk.chat.completions.parse(model="far", messages=user("structured"), response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Lisbon", degrees=21)


def test_completions_embeddings_and_reranking(sdk: openai.OpenAI, front: Server) -> None:
    assert sdk.completions.create(model="far", prompt=["a", "b"], max_tokens=20).choices[1].text == HELLO
    vectors = sdk.embeddings.create(model="far", input=["a", "b"]).data
    assert [len(one.embedding) for one in vectors] == [8, 8]
    with front.client() as client:
        body = {"model": "far", "query": "red fox", "documents": ["a blue fox", "a red fox"]}
        results = client.post("/v1/rerank", json=body).json()["results"]
    assert [one["index"] for one in results] == [1, 0]


def test_what_a_model_cannot_do_is_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support several choices") as caught:
        sdk.chat.completions.create(model="plain", messages=user("hi"), n=2)
    assert caught.value.code == "unsupported_parameter" and caught.value.param == "n"


@pytest.mark.parametrize(
    ("model", "text", "status", "code"),
    [
        ("crowded", "full", 429, "rate_limit_exceeded"),
        ("unknown", "hi", 502, "upstream_error"),
        ("denied", "hi", 502, "upstream_error"),
        ("away", "hi", 502, "upstream_error"),
    ],
)
def test_errors_of_the_upstream(sdk: openai.OpenAI, model: str, text: str, status: int, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.chat.completions.create(model=model, messages=user(text))
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert not any(word in str(caught.value) for word in ("127.0.0.1", "not-a-key", ADMIN_KEY, "theirs"))
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"


def test_the_log_says_who_answered_and_why_nobody_did(sdk: openai.OpenAI, front: Server) -> None:
    sdk.chat.completions.create(model="far", messages=user("hi"))
    with pytest.raises(openai.APIStatusError):
        sdk.chat.completions.create(model="denied", messages=user("hi"))
    denied = "The provider of this model refuses the gateway's credentials. (401: The API key is malformed."
    until(lambda: "target=next/theirs" in front.log.read_text())
    until(lambda: f"the target wrong-key/theirs failed: {denied}" in front.log.read_text())


def test_a_stream_that_breaks_off(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(model="far", messages=user("broken"), stream=True)
    with pytest.raises(openai.APIError):
        list(stream)


def test_usage_that_cannot_be_is_estimated(sdk: openai.OpenAI, front: Server) -> None:
    """The answer says what the provider says; the ledger does not believe it."""
    raw = sdk.chat.completions.with_raw_response.create(model="far", messages=user("liar"))
    with front.client() as client:
        (entry,) = client.get(f"/v1/requests/{raw.headers['x-request-id']}").json()["data"]
    assert entry["usage"]["estimated"] is True
    assert min(entry["usage"]["prompt_tokens"], entry["usage"]["completion_tokens"]) >= 1
    assert (entry["provider"], entry["target"]) == ("next", "theirs")


def test_the_providers_own_api(front: Server) -> None:
    with front.client() as client:
        body = {"model": "theirs", "messages": user("hi"), "max_tokens": 100}
        answer = client.post("/v1/providers/next/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == HELLO
        assert answer.headers["x-gateway-cost-usd"] == "0.008009"
        (entry,) = client.get(f"/v1/requests/{answer.headers['x-request-id']}").json()["data"]
        assert (entry["model"], entry["provider"], entry["usage"]["completion_tokens"]) == ("far", "next", 8)
        models = client.get("/v1/providers/next/models?key=mine&x=1").json()
        assert "theirs" in [one["id"] for one in models["data"]]
        with client.stream("POST", "/v1/providers/next/chat/completions", json=body | {"stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and len(lines) == 11
        wrong = client.post("/v1/providers/next/chat/completions", json=body | {"model": "nothing"})
        assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/providers/away/models",
        "/v1/providers/nobody/models",
        "/v1/providers/next/../health",
        "/v1/providers/next/%2e%2e/health",
        "/v1/providers/next/a/%2e%2e%2f%2e%2e/health",
        "/v1/providers/next//health",
        "/v1/providers/next/a%00b",
        "/v1/providers/next/a%5cb",
        "/v1/providers/next/",
    ],
)
def test_paths_that_lead_elsewhere(front: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as raw:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\nConnection: close\r\n\r\n"
        raw.sendall(request.encode())
        assert b" 404 " in raw.makefile("rb").readline()


def test_the_doctor_asks_providers_only_when_told_to(front: Server) -> None:
    command = [sys.executable, "-m", "gateway", "doctor", "--config", str(front.data_dir / "config.yaml")]
    environ = {"PATH": os.environ["PATH"], "UPSTREAM_KEY": ADMIN_KEY}
    offline, online = (
        subprocess.run([*command, *more], cwd=ROOT, env=environ, capture_output=True, text=True).stdout
        for more in ([], ["--online"])
    )
    assert "it answers" not in offline
    assert "warn  provider next: it answers, and takes its key, but lists no model nothing" in online
    assert "fail  provider wrong-key: The provider of this model refuses the gateway's credentials." in online
    assert "fail  provider away: The upstream cannot be reached." in online
    assert ADMIN_KEY not in online
