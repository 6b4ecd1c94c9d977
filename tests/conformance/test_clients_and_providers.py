"""Everybody's clients through the gateway to everybody's providers, which answer as they are known to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai.types import CompletionUsage

from adapters.aws import MessageSplitter
from adapters.connection import Timeouts
from adapters.http1 import Client
from adapters.providers import PROVIDERS, ProviderKind
from adapters.remote import CHATS, Remote, RemoteModel
from adapters.sse import EventSplitter
from adapters.types import (
    ChatRequest,
    DialectName,
    Event,
    Finished,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from adapters.upstream import Upstream, UpstreamSettings
from gateway.api import openai as api
from gateway.api.anthropic import Messages
from gateway.api.passing import Passer
from gateway.api.remote_images import RemoteImages
from gateway.catalog import Catalog, Target
from gateway.config import ImagesConfig
from gateway.inference import Inference
from gateway.secret import Secret
from gateway.telemetry import Telemetry
from tests.adapters.dialects.replay import recorded, replayed
from tests.adapters.upstream import Peer, upstream
from tests.gateway.api.wire import run, serve
from tests.recorded.streams_openai import STREAMS
from tests.recorded.streams_responses import STREAMS as RESPONSES

BODY_BYTES_MAX = 1_000_000
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
EVENTS, AMAZON = "text/event-stream", "application/vnd.amazon.eventstream"


class Row(NamedTuple):
    """A provider and a stream of it, in the dialect that chats with it are translated to: `held`, or the usual one."""

    kind: ProviderKind
    stream: bytes
    content_type: str = EVENTS
    held: DialectName | None = None

    @property
    def dialect(self) -> DialectName:
        dialect = self.held or PROVIDERS[self.kind].dialect_of("chat")
        assert dialect is not None
        return dialect

    def events(self) -> list[Event]:
        """What it says."""
        parser = CHATS[self.dialect].parser(ChatRequest("m", (Message("user", "x"),)))
        return replayed(parser, [self.stream], MessageSplitter() if self.content_type == AMAZON else EventSplitter())


def said_by(name: str) -> bytes:
    return STREAMS[name][0]


ROWS = {
    "openai": Row("openai", said_by("openai")),
    "openai, tools": Row("openai", said_by("openai, tools")),
    "openai, responses": Row("openai", RESPONSES["text"][0], held="openai_responses"),
    "openai, responses with tools": Row("openai", RESPONSES["thoughts and calls"][0], held="openai_responses"),
    "azure": Row("azure", said_by("azure, which begins with what its filter says")),
    "openrouter": Row("openrouter", said_by("openrouter")),
    "xai": Row("xai", said_by("xai")),
    "mistral": Row("mistral", said_by("mistral")),
    "deepseek": Row("deepseek", said_by("deepseek")),
    "groq": Row("groq", said_by("groq")),
    "cohere": Row("cohere", said_by("cohere")),
    "ollama": Row("ollama", said_by("ollama")),
    "vllm": Row("vllm", said_by("vllm")),
    "anthropic": Row("anthropic", recorded("anthropic_messages", "text.sse")),
    "anthropic, tools": Row("anthropic", recorded("anthropic_messages", "tools_and_thinking.sse")),
    "vertex-anthropic": Row("vertex-anthropic", recorded("anthropic_messages", "tools_and_thinking.sse")),
    "gemini": Row("gemini", recorded("gemini", "text.sse")),
    "gemini, tools": Row("gemini", recorded("gemini", "tools_and_thinking.sse")),
    "vertex": Row("vertex", recorded("gemini", "tools_and_thinking.sse")),
    "bedrock": Row("bedrock", recorded("bedrock_converse", "text.bin"), AMAZON),
    "bedrock, tools": Row("bedrock", recorded("bedrock_converse", "tools_and_thinking.bin"), AMAZON),
}


class Seen(NamedTuple):
    """An answer as somebody sees it. `calls` are names with arguments."""

    text: str
    thoughts: str
    calls: list[tuple[str, Any]]
    prompt_tokens: int
    completion_tokens: int


def expected(events: list[Event]) -> Seen:
    calls: dict[int, tuple[str, str]] = {}
    text, thoughts, usage = "", "", Usage()
    for event in events:
        match event:
            case TextDelta():
                text += event.text
            case ReasoningDelta():
                thoughts += event.text
            case ToolCallDelta():
                name, arguments = calls.get(event.index, ("", ""))
                calls[event.index] = name or event.name or "", arguments + event.arguments
            case Finished():
                usage = event.usage
    parsed = [(name, json.loads(arguments or "{}")) for _, (name, arguments) in sorted(calls.items())]
    return Seen(text, thoughts, parsed, usage.prompt_tokens, usage.completion_tokens)


Ask = Callable[[str, bool], Awaitable[Seen]]
SYSTEM, QUESTION = "Be kind.", "What is this, and how is the weather there?"
FUNCTION: Any = {"name": "get_weather", "description": "the weather", "parameters": SCHEMA}


async def openai_chat(url: str, seeing: bool) -> Seen:
    content: Any = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    text, thoughts = "", ""
    usage: CompletionUsage | None = None
    calls: dict[int, tuple[str, str]] = {}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="far",
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": content[: 1 + seeing]}],
            tools=[{"type": "function", "function": FUNCTION}],
            max_completion_tokens=4000,
            reasoning_effort="low",
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices or []:
                text += choice.delta.content or ""
                more = choice.delta.model_extra or {}
                thoughts += more.get("reasoning_content") or more.get("reasoning") or ""
                for call in choice.delta.tool_calls or []:
                    name, arguments = calls.get(call.index, ("", ""))
                    assert call.function is not None
                    calls[call.index] = name or call.function.name or "", arguments + (call.function.arguments or "")
    usage = usage or CompletionUsage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    parsed = [(name, json.loads(arguments or "{}")) for _, (name, arguments) in sorted(calls.items())]
    return Seen(text, thoughts, parsed, usage.prompt_tokens, usage.completion_tokens)


async def openai_responses(url: str, seeing: bool) -> Seen:
    tool: Any = {"type": "function", "strict": False, **FUNCTION}
    content: Any = [
        {"type": "input_text", "text": QUESTION},
        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
    ]
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        client.responses.stream(
            model="far",
            instructions=SYSTEM,
            input=[{"role": "user", "content": content[: 1 + seeing]}],
            tools=[tool],
            max_output_tokens=4000,
            reasoning={"effort": "low"},
        ) as stream,
    ):
        final = await stream.get_final_response()
    thoughts = "".join(part.text for item in final.output if item.type == "reasoning" for part in item.summary)
    calls = [(item.name, json.loads(item.arguments)) for item in final.output if item.type == "function_call"]
    assert final.usage is not None
    return Seen(final.output_text, thoughts, calls, final.usage.input_tokens, final.usage.output_tokens)


async def anthropic_messages(url: str, seeing: bool) -> Seen:
    content: Any = [
        {"type": "text", "text": QUESTION},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    ]
    tool: Any = {"name": "get_weather", "description": "the weather", "input_schema": SCHEMA}
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
        client.messages.stream(
            model="far",
            system=SYSTEM,
            messages=[{"role": "user", "content": content[: 1 + seeing]}],
            tools=[tool],
            max_tokens=4000,
            thinking={"type": "enabled", "budget_tokens": 2000},
        ) as stream,
    ):
        final = await stream.get_final_message()
    text = "".join(block.text for block in final.content if block.type == "text")
    thoughts = "".join(block.thinking for block in final.content if block.type == "thinking")
    calls = [(block.name, block.input) for block in final.content if block.type == "tool_use"]
    usage = final.usage
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return Seen(text, thoughts, calls, prompt, usage.output_tokens)


async def through_langchain(llm: Any, seeing: bool) -> Seen:
    image = {"type": "image", "base64": PNG, "mime_type": "image/png"}
    content: Any = [{"type": "text", "text": QUESTION}, image]
    asked = [SystemMessage(SYSTEM), HumanMessage(content[: 1 + seeing])]
    # Its asynchronous clients are kept for later, in loops that are gone by then.
    pieces = await asyncio.to_thread(lambda: list(llm.bind_tools([FUNCTION]).stream(asked)))
    whole: AIMessageChunk = sum(pieces[1:], pieces[0])
    thoughts = "".join(block.get("reasoning", "") for block in whole.content_blocks if block["type"] == "reasoning")
    calls = [(call["name"], call["args"]) for call in whole.tool_calls]
    used = whole.usage_metadata
    counted = (used["input_tokens"], used["output_tokens"]) if used is not None else (0, 0)
    return Seen(str(whole.text), thoughts, calls, *counted)


async def langchain_chat(url: str, seeing: bool) -> Seen:
    llm = ChatOpenAI(model="far", base_url=f"{url}/v1", api_key="k", max_retries=0, stream_usage=True)  # type: ignore[arg-type]
    return await through_langchain(llm, seeing)


async def langchain_responses(url: str, seeing: bool) -> Seen:
    llm = ChatOpenAI(model="far", base_url=f"{url}/v1", api_key="k", max_retries=0, use_responses_api=True)  # type: ignore[arg-type]
    return await through_langchain(llm, seeing)


async def langchain_anthropic(url: str, seeing: bool) -> Seen:
    llm = ChatAnthropic(model="far", base_url=url, api_key="k", max_retries=0, max_tokens=4000)  # type: ignore[call-arg,arg-type]
    return await through_langchain(llm, seeing)


CLIENTS: Mapping[str, Ask] = {
    "openai": openai_chat,
    "responses": openai_responses,
    "anthropic": anthropic_messages,
    "langchain-openai": langchain_chat,
    "langchain-responses": langchain_responses,
    "langchain-anthropic": langchain_anthropic,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "bedrock": {"region": "us-east-1"},
    "vertex": {"region": "eu", "project": "mine"},
    "vertex-anthropic": {"region": "eu", "project": "mine"},
}


@contextlib.asynccontextmanager
async def gateway(
    kind: ProviderKind, script: Callable[[Peer], Awaitable[None]], held: DialectName | None = None
) -> AsyncIterator[str]:
    """The address of a gateway in front of a provider that answers by a script."""
    async with upstream(script) as up:
        client = Client(proxies={}, timeouts=Timeouts(connect_s=20, first_byte_s=5, idle_s=5, total_s=20))
        url = f"http://127.0.0.1:{up.port}"
        settings = UpstreamSettings(
            name="p", kind=kind, base_url=url, api_key=Secret("upstream-key"), **SETTINGS.get(kind, {})
        )
        remote = Remote(RemoteModel(name="far", model="their-model", dialect=held), Upstream(settings, client=client))
        inference = Inference(Catalog([Target("far", remote)]), Telemetry("test"))
        images = RemoteImages(ImagesConfig())
        endpoints = (
            *api.endpoints(inference, Catalog([]), images, BODY_BYTES_MAX),
            *Messages(inference, images, BODY_BYTES_MAX).endpoints(),
        )
        async with serve(endpoints, passer=Passer(inference, BODY_BYTES_MAX)) as served:
            yield f"http://127.0.0.1:{served.port}"
        await client.close()


class Playing:
    """Answers with a stream, and keeps what it was asked."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self.asked: list[tuple[str, Any]] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            head, body = await peer.request()
            self.asked.append((head.decode().lower(), json.loads(body)))
            fields = f"content-type: {self._row.content_type}\r\ncontent-length: {len(self._row.stream)}\r\n\r\n"
            await peer.send(b"HTTP/1.1 200 OK\r\n" + fields.encode() + self._row.stream)


SPOKEN: Mapping[str, DialectName] = {
    "openai": "openai_chat",
    "langchain-openai": "openai_chat",
    "responses": "openai_responses",
    "langchain-responses": "openai_responses",
    "anthropic": "anthropic_messages",
    "langchain-anthropic": "anthropic_messages",
}
# Clients that show no thoughts of models that are not OpenAI's.
THOUGHTLESS = ("langchain-openai",)
# Thoughts among the content, and names of calls twice: passed on as it comes, some clients stumble as they would there.
PECULIAR: tuple[ProviderKind, ...] = ("mistral", "vllm")


def is_translated(row: Row, spoken: DialectName) -> bool:
    """Whether a client of that dialect gets this provider's stream in words of ours, or as it is where that is plain.

    Where a provider has the client's dialect too, it is asked in that, which is not the one of this stream. Streams of
    chats that are held otherwise than usual are cut short here, which only those can read who translate.
    """
    if spoken == row.dialect:
        return row.kind not in PECULIAR and row.held is None
    return row.held is not None or spoken not in PROVIDERS[row.kind].paths


PAIRS = {
    f"{name}-{client}": (row, client)
    for name, row in ROWS.items()
    for client in CLIENTS
    if is_translated(row, SPOKEN[client])
}


@pytest.mark.parametrize(("row", "name"), PAIRS.values(), ids=PAIRS)
def test_everybody_understands_everybody(row: Row, name: str) -> None:
    provider = Playing(row)
    spoken = SPOKEN[name]

    async def scenario() -> None:
        seeing = "images" in PROVIDERS[row.kind].capabilities
        async with gateway(row.kind, provider, row.held) as url:
            seen = await CLIENTS[name](url, seeing)
        wanted = expected(row.events())
        assert (seen.text, seen.calls) == (wanted.text, wanted.calls)
        if spoken != row.dialect:  # Else the answer is the provider's own.
            assert name in THOUGHTLESS or seen.thoughts == wanted.thoughts
            for counted, reported in zip(seen[3:], wanted[3:], strict=True):
                assert counted == reported if reported else counted > 0
        (asked,) = provider.asked
        assert "upstream-key" in asked[0] or row.kind == "bedrock"
        sent = json.dumps(asked[1])
        assert SYSTEM in sent and QUESTION in sent and "get_weather" in sent and (PNG in sent) == seeing

    run(scenario())


REFUSALS: dict[str, tuple[ProviderKind, int, bytes]] = {
    "openai, limit": (
        "openai",
        429,
        b'{"error":{"message":"Rate limit reached","type":"tokens","code":"rate_limit_exceeded"}}',
    ),
    "anthropic, limit": (
        "anthropic",
        429,
        b'{"type":"error","error":{"type":"rate_limit_error","message":"Over it."}}',
    ),
    "gemini, limit": ("gemini", 429, b'{"error":{"code":429,"message":"Exhausted.","status":"RESOURCE_EXHAUSTED"}}'),
    "bedrock, limit": ("bedrock", 429, b'{"message":"Too many requests, please wait before trying again."}'),
    "cohere, limit": ("cohere", 429, b'{"message":"trial token rate limit exceeded"}'),
    "openai, length": (
        "openai",
        400,
        b'{"error":{"message":"This model\'s maximum context length is 5 tokens.","type":"invalid_request_error",'
        b'"param":"messages","code":"context_length_exceeded"}}',
    ),
    "anthropic, length": (
        "anthropic",
        400,
        b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 5"}}',
    ),
    "gemini, length": (
        "gemini",
        400,
        b'{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed (5).",'
        b'"status":"INVALID_ARGUMENT"}}',
    ),
    "bedrock, length": ("bedrock", 400, b'{"message":"Input is too long for requested model."}'),
    "vllm, length": (
        "vllm",
        400,
        b'{"error":{"message":"This model\'s maximum context length is 5 tokens. However, you requested 9 tokens.",'
        b'"type":"BadRequestError","param":null,"code":400}}',
    ),
    "openai, key": (
        "openai",
        401,
        b'{"error":{"message":"Incorrect API key provided: sk-abc","code":"invalid_api_key"}}',
    ),
    "bedrock, key": ("bedrock", 403, b'{"message":"The security token included in the request is invalid."}'),
}
WANTED: Mapping[str, tuple[int, str]] = {
    "limit": (429, "rate_limit_exceeded"),
    "length": (400, "context_length_exceeded"),
    "key": (502, "upstream_error"),
}


@pytest.mark.parametrize("name", ["openai", "responses", "anthropic"])
@pytest.mark.parametrize("case", REFUSALS)
def test_everybody_understands_refusals(case: str, name: str) -> None:
    kind, status, body = REFUSALS[case]
    wanted_status, code = WANTED[case.partition(", ")[2]]

    async def refuse(peer: Peer) -> None:
        while True:
            await peer.request()
            fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            await peer.send(f"HTTP/1.1 {status} X\r\n{fields}".encode() + body)

    async def scenario() -> None:
        async with gateway(kind, refuse) as url:
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                await CLIENTS[name](url, False)
        raised: Any = caught.value
        assert raised.status_code == wanted_status and "sk-abc" not in str(raised)
        found = raised.body
        assert isinstance(found, dict)
        if isinstance(raised, anthropic.APIStatusError):
            assert found["error"]["details"]["error_code"] == code
        else:
            assert raised.code == code

    run(scenario())
