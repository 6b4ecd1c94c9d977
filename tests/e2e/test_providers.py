"""The official SDKs through the real server to providers of every dialect, which answer with recorded streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server

RECORDED = Path(__file__).parents[1] / "recorded"
KEY = "sk-the-providers-key"
# A path's end, and the answer there.
ANSWERS = {
    "/v1/messages": ("text/event-stream", "anthropic_messages/tools_and_thinking.sse"),
    "streamGenerateContent?alt=sse": ("text/event-stream", "gemini/tools_and_thinking.sse"),
    "/converse-stream": ("application/vnd.amazon.eventstream", "bedrock_converse/tools_and_thinking.bin"),
}


class Providers:
    """One server in the place of all of them; keeps what it was asked."""

    def __init__(self, answers: Mapping[str, tuple[str, str]] = ANSWERS) -> None:
        self._answers = answers
        self.asked: list[tuple[str, bytes]] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
                self.asked.append((head, await reader.readexactly(length)))
                target = head.split(" ")[1]
                kind, name = next(answer for end, answer in self._answers.items() if target.endswith(end))
                data = (RECORDED / name).read_bytes()
                writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n".encode())
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def last(self) -> tuple[str, Any]:
        head, body = self.asked[-1]
        return head, json.loads(body)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    running = Providers()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def server(providers: Providers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    url = f"http://127.0.0.1:{providers.port}"
    aws = {"aws_access_key_id": "AKIAX", "aws_secret_access_key": KEY, "region": "us-east-1"}
    given = [
        {"name": "anthropic", "kind": "anthropic", "base_url": url, "api_key": KEY},
        {"name": "gemini", "kind": "gemini", "base_url": url, "api_key": KEY},
        {"name": "vertex", "kind": "vertex", "base_url": url, "api_key": KEY, "region": "global", "project": "mine"},
        {"name": "bedrock", "kind": "bedrock", "base_url": url, **aws},
    ]
    models = {
        "anthropic": "claude-sonnet-4-5",
        "gemini": "gemini-2.5-flash",
        "vertex": "gemini-2.5-pro",
        "bedrock": "anthropic.claude-sonnet-4-5-v1:0",
    }
    price = {"input": "3", "output": "15", "cached_input": "0.3"}
    routes = [
        {"name": f"via-{name}", "groups": [[{"provider": name, "model": model, "price": price}]]}
        for name, model in models.items()
    ]
    folder = tmp_path_factory.mktemp("front")
    with Server(folder, config=json.dumps({"providers": given, "routes": routes})) as running:
        yield running


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place",
            "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
        },
    }
]
PATHS = {
    "via-anthropic": "POST /v1/messages HTTP/1.1",
    "via-gemini": "POST /v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse HTTP/1.1",
    "via-vertex": "POST /v1/projects/mine/locations/global/publishers/google/models/gemini-2.5-pro"
    ":streamGenerateContent?alt=sse HTTP/1.1",
    "via-bedrock": "POST /model/anthropic.claude-sonnet-4-5-v1%3A0/converse-stream HTTP/1.1",
}
AUTHORISED = {
    "via-anthropic": f"x-api-key: {KEY}",
    "via-gemini": f"x-goog-api-key: {KEY}",
    "via-vertex": f"authorization: Bearer {KEY}",
    "via-bedrock": "authorization: AWS4-HMAC-SHA256 Credential=AKIAX/",
}


@pytest.mark.parametrize("model", PATHS)
def test_tools_and_thoughts_for_an_openai_client(server: Server, providers: Providers, model: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        messages: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Weather in Paris?"}]
        with client.chat.completions.stream(
            model=model, messages=messages, tools=TOOLS, max_tokens=4000, stream_options={"include_usage": True}
        ) as stream:
            folded = stream.get_final_completion()
        head, body = providers.last()
        assert head.startswith(PATHS[model]) and AUTHORISED[model] in head and ADMIN_KEY not in head
        assert "Be kind." in json.dumps(body) and "get_weather" in json.dumps(body)
        message = folded.choices[0].message
        assert folded.choices[0].finish_reason == "tool_calls" and message.tool_calls
        assert all(json.loads(call.function.arguments) is not None for call in message.tool_calls)
        assert folded.usage.completion_tokens > 0
        thoughts = (message.model_extra or {}).get("reasoning_details", [])
        # What was thought, called and answered goes back with its signatures.
        messages += [
            {
                "role": "assistant",
                "content": message.content,
                "reasoning_details": thoughts,
                "tool_calls": message.tool_calls,
            },
            *({"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in message.tool_calls),
        ]
        whole = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, max_tokens=4000)
        assert whole.choices[0].message.tool_calls
        sent = json.dumps(providers.last()[1])
        assert "18 degrees" in sent
        for thought in thoughts:
            assert thought.get("signature", "").removeprefix("gemini:") in sent


@pytest.mark.parametrize("model", PATHS)
def test_tools_and_thoughts_for_an_anthropic_client(server: Server, providers: Providers, model: str) -> None:
    tools: Any = [{"name": "get_weather", "input_schema": TOOLS[0]["function"]["parameters"]}]
    asked: Any = [{"role": "user", "content": "Weather in Paris?"}]
    with (
        anthropic.Anthropic(base_url=server.url, api_key=ADMIN_KEY, max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=4000, tools=tools, messages=asked) as stream,
    ):
        message = stream.get_final_message()
    assert providers.last()[0].startswith(PATHS[model])
    assert message.stop_reason == "tool_use"
    assert [block.name for block in message.content if block.type == "tool_use"]
    assert message.usage.output_tokens > 0


def test_usage_and_cost_are_the_providers(server: Server) -> None:
    with server.client() as client:
        body = {"model": "via-anthropic", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000}
        answer = client.post("/v1/chat/completions", json=body)
        usage = answer.json()["usage"]
        (entry,) = client.get(f"/v1/requests/{answer.headers['x-request-id']}").json()["data"]
    assert entry["usage"]["prompt_tokens"] == usage["prompt_tokens"] and not entry["usage"]["estimated"]
    assert entry["provider"] == "anthropic" and entry["target"] == "claude-sonnet-4-5"
    assert float(answer.headers["x-gateway-cost-usd"]) > 0


def test_what_a_provider_cannot_do_is_named(server: Server) -> None:
    with server.client() as client:
        body = {"model": "via-anthropic", "messages": [{"role": "user", "content": "hi"}], "logprobs": True}
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The model 'via-anthropic' does not support logprobs."
