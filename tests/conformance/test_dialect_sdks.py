"""The providers' own SDKs against servers made of our dialects, and our client against the same servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import boto3  # type: ignore[import-untyped]
import msgspec
import pytest
from botocore.exceptions import ClientError
from google import genai
from google.genai import errors as genai_errors
from google.genai import types

from adapters.aws import event_message, signature_headers
from adapters.dialects import anthropic_messages, bedrock_converse, gemini, openai_wire
from adapters.http1 import Client
from adapters.providers import ProviderKind
from adapters.remote import Remote, RemoteModel
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    ImagePart,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    TextPart,
    Thought,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from adapters.upstream import Upstream, UpstreamSettings
from tests.threads import answering

HEAD = openai_wire.ResponseHead("id-1", 1700000000, "m", "fp_1")
USAGE = Usage(30, 9, 10, reasoning_tokens=4)
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def answer(*events: Event, usage: Usage = USAGE, reason: str = "stop") -> list[Event]:
    end = ChoiceFinished(0, reason)  # type: ignore[arg-type]
    return [Started(usage.prompt_tokens, usage.cached_tokens), *events, end, Finished(usage)]


HELLO = answer(TextDelta(0, "Grüße, "), TextDelta(0, "世界 😀"))


def called(signature: str) -> list[Event]:
    return answer(
        ReasoningDelta(0, "hm"),
        ToolCallDelta(0, 0, "", "call_1", "weather", signature or None),
        ToolCallDelta(0, 0, '{"city": "São Paulo"}'),
        reason="tool_calls",
    )


class Mock:
    """A provider that answers with scripts, in turn. What was asked is kept as it was understood."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.scripts: list[list[Event]] = []
        self.asked: list[ChatRequest] = []
        self.failure: tuple[int, bytes] | None = None
        self.url = ""

    def respond(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """The status, content type and body."""
        if self.failure is not None:
            return self.failure[0], "application/json", self.failure[1]
        return self._gemini(path, body) if self.kind == "gemini" else self._bedrock(path, headers, body)

    def _gemini(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        if path.endswith(":batchEmbedContents"):
            asked = msgspec.json.decode(body)["requests"]
            assert [one["content"]["parts"][0]["text"] for one in asked] == ["a", "b"]
            values = [{"values": [0.5, float(index)]} for index, _ in enumerate(asked)]
            return 200, "application/json", msgspec.json.encode({"embeddings": values})
        found = re.fullmatch(r"/v1(?:beta)?/models/([^:]+):(\w+)(\?alt=sse)?", path)
        assert found is not None, path
        stream = found[2] == "streamGenerateContent"
        inbound = gemini.parse_request(body, found[1], stream=stream)
        self.asked.append(inbound.request)
        if stream:
            renderer = gemini.ChunkRenderer(HEAD, inbound)
            return 200, "text/event-stream", b"".join(map(renderer.render, self.scripts.pop(0)))
        return 200, "application/json", gemini.render_answer(HEAD, inbound.request, self._folded())

    def _bedrock(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        self._check_signature(path, headers, body)
        if (invoked := re.fullmatch(r"/model/([^/]+)/invoke(-with-response-stream)?", path)) is not None:
            if "claude" in path:
                return self._invoked_claude(body, stream=bool(invoked[2]))
            return 200, "application/json", self._invoked(unquote(invoked[1]), msgspec.json.decode(body))
        found = re.fullmatch(r"/model/([^/]+)/converse(-stream)?", path)
        assert found is not None, path
        inbound = bedrock_converse.parse_request(body, unquote(found[1]), stream=bool(found[2]))
        self.asked.append(inbound.request)
        if found[2]:
            renderer = bedrock_converse.ChunkRenderer(HEAD, inbound)
            frames = b"".join(map(renderer.render, self.scripts.pop(0)))
            return 200, "application/vnd.amazon.eventstream", frames
        return 200, "application/json", bedrock_converse.render_answer(HEAD, inbound.request, self._folded())

    def _invoked_claude(self, body: bytes, *, stream: bool) -> tuple[int, str, bytes]:
        """Anthropic's dialect in Amazon's: the model is in the path, and each event within one of theirs."""
        asked = msgspec.json.decode(body)
        assert asked.pop("anthropic_version") == "bedrock-2023-05-31" and "model" not in asked
        inbound = anthropic_messages.parse_request(msgspec.json.encode({"model": "claude", "stream": stream, **asked}))
        self.asked.append(inbound.request)
        if not stream:
            whole = anthropic_messages.render_answer(HEAD, inbound.request, self._folded())
            return 200, "application/json", whole
        renderer = anthropic_messages.ChunkRenderer(HEAD, inbound)
        frames = b"".join(map(renderer.render, self.scripts.pop(0)))
        payloads = re.findall(rb"data: ([^\n]*)\n", frames)
        within = [event_message("chunk", msgspec.json.encode({"bytes": one, "p": "ab"})) for one in payloads]
        return 200, "application/vnd.amazon.eventstream", b"".join(within)

    def _invoked(self, model: str, asked: dict[str, Any]) -> bytes:
        """Vectors that begin with the length of their text."""
        if model.startswith("amazon.titan-embed-text"):
            assert asked.keys() <= {"inputText", "dimensions"}
            vector = [float(len(asked["inputText"])), 0.5, 1.0][: asked.get("dimensions", 3)]
            return msgspec.json.encode({"embedding": vector, "inputTextTokenCount": 2, "embeddingsByType": {}})
        assert "cohere.embed" in model and asked.keys() == {"texts", "input_type", "embedding_types"}
        assert asked["input_type"] in ("search_query", "search_document")
        vectors = [[float(len(text)), 0.25] for text in asked["texts"]]
        return msgspec.json.encode({"id": "x", "response_type": "embeddings_by_type", "embeddings": {"float": vectors}})

    def _check_signature(self, path: str, headers: dict[str, str], body: bytes) -> None:
        names = re.findall(r"SignedHeaders=([\w;-]+)", headers["authorization"])[0].split(";")
        ours = signature_headers(
            "AKIDEXAMPLE",
            SECRET,
            None,
            region="us-east-1",
            service="bedrock",
            moment=headers["x-amz-date"],
            method="POST",
            target=path,
            host=headers["host"],
            body=body,
            headers=[(name, headers[name]) for name in names if name not in ("host", "x-amz-date")],
        )
        assert dict(ours)["authorization"] == headers["authorization"]

    def _folded(self) -> openai_wire.Folded:
        folded = openai_wire.Folded(1)
        for event in self.scripts.pop(0):
            folded.add(event)
        return folded


@contextmanager
def serving(mock: Mock) -> Iterator[Mock]:
    failures: list[BaseException] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # The library's name.
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                status, kind, content = mock.respond(self.path, headers, body)
            except BaseException as exc:
                failures.append(exc)
                status, kind, content = 500, "text/plain", b""
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mock.url = f"http://127.0.0.1:{server.server_port}"
    try:
        with answering(server):
            yield mock
    finally:
        if failures:
            raise failures[0]


# Google


def google(mock: Mock) -> genai.Client:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=mock.url))


WEATHER = types.FunctionDeclaration(
    name="weather",
    description="in a city",
    parameters_json_schema={"type": "object", "properties": {"city": {"type": "string"}}},
)


def test_google_genai_unary_and_streamed() -> None:
    with serving(Mock("gemini")) as mock, google(mock) as client:
        mock.scripts = [HELLO, HELLO]
        config = types.GenerateContentConfig(
            system_instruction="be kind",
            temperature=0.5,
            max_output_tokens=100,
            stop_sequences=["END"],
            thinking_config=types.ThinkingConfig(thinking_budget=512, include_thoughts=True),
        )
        picture = types.Part.from_bytes(data=b"an image", mime_type="image/png")
        whole = client.models.generate_content(model="gemini-2.5-flash", contents=["hi", picture], config=config)
        assert whole.text == "Grüße, 世界 😀"
        usage = whole.usage_metadata
        assert usage is not None
        assert (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count) == (30, 5, 4)
        stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi", config=config)
        pieces = list(stream)
        assert "".join(piece.text or "" for piece in pieces) == whole.text
        assert pieces[-1].candidates and pieces[-1].candidates[0].finish_reason == types.FinishReason.STOP
    asked = mock.asked[0]
    assert asked.messages == (
        Message("system", "be kind"),
        Message("user", (TextPart("hi"), ImagePart(b"an image", "image/png"))),
    )
    assert (asked.generation.max_tokens, asked.generation.stop, asked.thinking.tokens_max) == (100, ("END",), 512)


def test_google_genai_sends_back_what_it_got() -> None:
    with serving(Mock("gemini")) as mock, google(mock) as client:
        mock.scripts = [called("gemini:c2lnbmVk"), HELLO]
        config = types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=[WEATHER])],
            tool_config=types.ToolConfig(
                function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
            ),
        )
        asked = types.Content(role="user", parts=[types.Part(text="weather?")])
        chunks = list(client.models.generate_content_stream(model="m", contents=asked, config=config))
        parts = [part for chunk in chunks for part in (chunk.parts or [])]
        (call,) = [part.function_call for part in parts if part.function_call]
        assert (call.name, call.args, call.id) == ("weather", {"city": "São Paulo"}, "call_1")
        result = types.Part(
            function_response=types.FunctionResponse(id=call.id, name="weather", response={"output": "18"})
        )
        turns = [asked, types.Content(role="model", parts=parts), types.Content(role="user", parts=[result])]
        assert client.models.generate_content(model="m", contents=turns, config=config).text
    first, second = mock.asked
    assert first.tools == (Tool("weather", "in a city", first.tools[0].parameters),)
    assert first.tool_choice == ToolChoice("required")
    _, answer_, told = second.messages
    (made,) = answer_.tool_calls
    assert (made.id, made.signature, answer_.reasoning) == ("call_1", "gemini:c2lnbmVk", "hm")
    assert told == Message("tool", "18", tool_call_id="call_1")


def test_google_genai_understands_refusals() -> None:
    with serving(Mock("gemini")) as mock, google(mock) as client:
        mock.scripts = [[Started(5), ChoiceFinished(0, "content_filter", detail="SAFETY"), Finished(Usage(5))]]
        refused = client.models.generate_content(model="m", contents="x")
        assert refused.candidates and refused.candidates[0].finish_reason == types.FinishReason.SAFETY
        mock.failure = 400, b'{"error":{"code":400,"message":"Bad.","status":"INVALID_ARGUMENT"}}'
        with pytest.raises(genai_errors.ClientError):
            client.models.generate_content(model="m", contents="x")


# Amazon


def amazon(mock: Mock) -> Any:
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=mock.url,
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=SECRET,
    )


CLAUDE = "anthropic.claude-sonnet-4-6-v1:0"
SPEC = {"toolSpec": {"name": "weather", "description": "in a city", "inputSchema": {"json": {"type": "object"}}}}


def test_boto3_unary_and_streamed() -> None:
    with serving(Mock("bedrock")) as mock:
        client = amazon(mock)
        mock.scripts = [HELLO, HELLO]
        picture = {"image": {"format": "png", "source": {"bytes": b"an image"}}}
        ask = {
            "modelId": CLAUDE,
            "messages": [{"role": "user", "content": [{"text": "hi"}, {"cachePoint": {"type": "default"}}, picture]}],
            "system": [{"text": "be kind"}],
            "inferenceConfig": {"maxTokens": 100, "temperature": 0.5, "stopSequences": ["END"]},
        }
        whole = client.converse(**ask)
        assert whole["output"]["message"]["content"][-1]["text"] == "Grüße, 世界 😀"
        assert whole["usage"]["cacheReadInputTokens"] == 10 and whole["stopReason"] == "end_turn"
        events = list(client.converse_stream(**ask)["stream"])
        told = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
        assert "".join(delta.get("text", "") for delta in told) == "Grüße, 世界 😀"
        assert events[-2]["messageStop"]["stopReason"] == "end_turn"
        assert events[-1]["metadata"]["usage"]["inputTokens"] == 20
        client.close()
    asked = mock.asked[0]
    assert asked.messages == (
        Message("system", "be kind"),
        Message("user", (TextPart("hi", "5m"), ImagePart(b"an image", "image/png"))),
    )
    assert (asked.model, asked.generation.max_tokens, asked.generation.stop) == (CLAUDE, 100, ("END",))


def test_boto3_sends_back_what_it_got() -> None:
    with serving(Mock("bedrock")) as mock:
        client = amazon(mock)
        thought = [ReasoningDelta(0, "hm"), ReasoningDelta(0, "", "c2lnbmVk")]
        mock.scripts = [answer(*thought, *called("")[2:-2], reason="tool_calls"), HELLO]
        ask = {"modelId": CLAUDE, "toolConfig": {"tools": [SPEC], "toolChoice": {"any": {}}}}
        question = {"role": "user", "content": [{"text": "weather?"}]}
        events = list(client.converse_stream(**ask, messages=[question])["stream"])
        starts = [event["contentBlockStart"]["start"] for event in events if "contentBlockStart" in event]
        assert starts == [{"toolUse": {"toolUseId": "call_1", "name": "weather"}}]
        deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
        assert "".join(delta["toolUse"]["input"] for delta in deltas if "toolUse" in delta) == '{"city": "São Paulo"}'
        signature = deltas[1]["reasoningContent"]["signature"]
        content = [
            {"reasoningContent": {"reasoningText": {"text": "hm", "signature": signature}}},
            {"toolUse": {**starts[0]["toolUse"], "input": {"city": "São Paulo"}}},
        ]
        result = {"toolResult": {"toolUseId": "call_1", "content": [{"text": "18"}], "status": "error"}}
        turns = [question, {"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
        client.converse(**ask, messages=turns)
        client.close()
    assert mock.asked[1].messages[1:] == (
        Message(
            "assistant",
            tool_calls=(ToolCall("call_1", "weather", '{"city": "S\\u00e3o Paulo"}'),),
            reasoning="hm",
            thoughts=(Thought("hm", "c2lnbmVk"),),
        ),
        Message("tool", "18", tool_call_id="call_1", is_error=True),
    )


def test_boto3_understands_errors() -> None:
    with serving(Mock("bedrock")) as mock:
        client = amazon(mock)
        mock.failure = 400, b'{"message":"Bad."}'
        with pytest.raises(ClientError):
            client.converse(modelId=CLAUDE, messages=[{"role": "user", "content": [{"text": "hi"}]}])
        client.close()


def test_google_genai_embeds() -> None:
    with serving(Mock("gemini")) as mock, google(mock) as client:
        vectors = client.models.embed_content(model="m", contents=["a", "b"]).embeddings
        assert vectors is not None and [vector.values for vector in vectors] == [[0.5, 0.0], [0.5, 1.0]]
    request = EmbeddingRequest("m", ("a", "b"))

    async def ask() -> Embeddings:
        client = Client(proxies={})
        settings = UpstreamSettings(name="p", kind="gemini", base_url=mock.url, api_key=Text("k"))
        provider = Upstream(settings, client=client)
        try:
            model = Remote(RemoteModel(name="public", model="m", kinds=("embedding",)), provider)
            return await model.embed(request, Caller("r", "t"))
        finally:
            await provider.close()

    with serving(mock):
        assert asyncio.run(ask()).vectors == (b"\0\0\0?\0\0\0\0", b"\0\0\0?\0\0\x80?")


# Our client


class Text:
    """A secret."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text


def asked_by_us(mock: Mock, kind: ProviderKind, request: ChatRequest, **settings: Any) -> list[Event]:
    """The events of an answer to our own client."""

    async def ask() -> list[Event]:
        client = Client(proxies={})
        provider = Upstream(UpstreamSettings(name="p", kind=kind, base_url=mock.url, **settings), client=client)
        try:
            model = Remote(RemoteModel(name="public", model=request.model), provider)
            return [event async for event in model.chat(request, Caller("r", "t"))]
        finally:
            await provider.close()

    return asyncio.run(ask())


TURNS = (
    Message("system", "be kind"),
    Message("user", (TextPart("weather?"), ImagePart(b"an image", "image/png"))),
    Message("assistant", tool_calls=(ToolCall("call_1", "weather", "{}"),)),
    Message("tool", "18", tool_call_id="call_1"),
)


def test_our_client_of_gemini() -> None:
    request = ChatRequest("gemini-2.5-flash", TURNS, tools=(Tool("weather", parameters=b'{"type":"object"}'),))
    with serving(Mock("gemini")) as mock:
        mock.scripts = [called("gemini:c2lnbmVk")]
        events = asked_by_us(mock, "gemini", request, api_key=Text("k"))
    assert mock.asked == [request]
    assert events == answer(
        ReasoningDelta(0, "hm"),
        ToolCallDelta(0, 0, '{"city": "São Paulo"}', "call_1", "weather", "gemini:c2lnbmVk"),
        reason="tool_calls",
    )


def test_our_client_of_bedrock() -> None:
    request = ChatRequest(CLAUDE, TURNS, tools=(Tool("weather", parameters=b'{"type":"object"}'),))
    script = answer(TextDelta(0, "Grüße"), *called("")[2:-2], usage=Usage(30, 9, 10), reason="tool_calls")
    with serving(Mock("bedrock")) as mock:
        mock.scripts = [script]
        keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": Text(SECRET), "region": "us-east-1"}
        events = asked_by_us(mock, "bedrock", request, **keys)
    assert mock.asked == [request]
    assert events[1:] == script[1:]


def test_the_first_example_of_amazons_own_test_suite() -> None:
    """`get-vanilla` of the suite for Signature Version 4, through botocore and by us."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    ours = signature_headers(
        "AKIDEXAMPLE",
        SECRET,
        None,
        region="us-east-1",
        service="service",
        moment="20150830T123600Z",
        method="GET",
        target="/",
        host="example.amazonaws.com",
        body=b"",
    )
    expected = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    assert dict(ours)["authorization"].endswith(f"Signature={expected}")
    request = AWSRequest(method="GET", url="https://example.amazonaws.com/")
    moment = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", return_value=moment):
        SigV4Auth(Credentials("AKIDEXAMPLE", SECRET), "service", "us-east-1").add_auth(request)
    assert request.headers["Authorization"] == dict(ours)["authorization"]
