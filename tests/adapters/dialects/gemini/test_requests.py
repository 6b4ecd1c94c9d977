from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from adapters.dialects import gemini as dialect
from adapters.dialects import openai_wire
from adapters.dialects.gemini import embeddings
from adapters.dialects.gemini.request_in import json_schema
from adapters.errors import InvalidRequest, UpstreamInvalid
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Constraint,
    DocumentPart,
    EmbeddingRequest,
    Finished,
    Generation,
    ImagePart,
    ImageUrl,
    Lora,
    Message,
    NativePart,
    ReasoningDelta,
    Sampling,
    Started,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from tests.conformance.conversations import requests
from tests.conformance.test_dialects import DIALECTS

USER = Message("user", "hi")
ASK = ChatRequest("gemini-2.5-flash", (USER,))
NEWER = replace(ASK, model="gemini-3-pro-preview")
CALL = Message("assistant", tool_calls=(ToolCall("c1", "f", '{"a":1}'),))
RESULT = Message("tool", "18", tool_call_id="c1")
THREE = (Tool("f"), Tool("g"), Tool("h"))


def rendered(request: ChatRequest) -> Any:
    return json.loads(dialect.render_request(request))


def again(request: ChatRequest) -> ChatRequest:
    return dialect.parse_request(dialect.render_request(request), request.model).request


def parse(**fields: Any) -> ChatRequest:
    whole = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]} | fields
    return dialect.parse_request(json.dumps(whole).encode(), "m").request


def with_messages(*messages: Message) -> ChatRequest:
    return replace(ASK, messages=messages)


def with_sampling(**fields: Any) -> ChatRequest:
    return replace(ASK, generation=Generation(sampling=Sampling(**fields)))


def test_the_least() -> None:
    assert rendered(ASK) == {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


@pytest.mark.slow
@given(requests(DIALECTS["gemini"].words))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_sent_is_of_the_sdks_types(request: ChatRequest) -> None:
    from google.genai import types

    fields = rendered(request)
    for content in fields.pop("contents"):
        types.Content.model_validate(content)
    types.Content.model_validate(fields.pop("systemInstruction", {}))
    types.GenerationConfig.model_validate(fields.pop("generationConfig", {}))
    types.ToolConfig.model_validate(fields.pop("toolConfig", {}))
    for tool in fields.pop("tools", []):
        types.Tool.model_validate(tool)
    assert not fields


def test_a_turn_with_tools() -> None:
    answer = replace(CALL, content="well", thoughts=(Thought("hm", "gemini:s"),))
    told = replace(RESULT, content='{"t": 18}', is_error=True)
    contents = rendered(with_messages(USER, answer, RESULT, told, Message("user", "so?")))["contents"]
    assert contents[1:] == [
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True, "thoughtSignature": "s"},
                {"text": "well"},
                {"functionCall": {"id": "c1", "name": "f", "args": {"a": 1}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c1", "name": "f", "response": {"output": "18"}}},
                {"functionResponse": {"id": "c1", "name": "f", "response": {"error": {"t": 18}}}},
            ],
        },
        {"role": "user", "parts": [{"text": "so?"}]},
    ]


def test_calls_without_a_signature_say_so_to_models_that_want_one() -> None:
    (part,) = rendered(replace(NEWER, messages=(USER, CALL, RESULT)))["contents"][1]["parts"]
    assert part["thoughtSignature"] == "skip_thought_signature_validator"
    assert again(replace(NEWER, messages=(USER, CALL, RESULT))).messages == (USER, CALL, RESULT)
    assert "thoughtSignature" not in rendered(with_messages(USER, CALL, RESULT))["contents"][1]["parts"][0]


@pytest.mark.parametrize(
    ("model", "thinking", "expected"),
    [
        ("gemini-2.5-flash", Thinking(), None),
        ("gemini-2.5-flash", Thinking(False), {"thinkingBudget": 0}),
        ("gemini-2.5-flash", Thinking(True), {"thinkingBudget": -1, "includeThoughts": True}),
        ("gemini-2.5-flash", Thinking(True, "low", shown=False), {"thinkingBudget": 1024}),
        ("gemini-2.5-pro", Thinking(True, tokens_max=2000), {"thinkingBudget": 2000, "includeThoughts": True}),
        ("gemini-3-pro-preview", Thinking(True, "max"), {"thinkingLevel": "high", "includeThoughts": True}),
        ("gemini-3-pro-preview", Thinking(False), {"thinkingLevel": "low"}),
        ("gemini-3-flash", Thinking(True, "minimal"), {"thinkingLevel": "minimal", "includeThoughts": True}),
        ("gemini-3-flash", Thinking(True), {"includeThoughts": True}),
    ],
)
def test_thinking(model: str, thinking: Thinking, expected: Any) -> None:
    config = rendered(replace(ASK, model=model, thinking=thinking)).get("generationConfig", {})
    assert config.get("thinkingConfig") == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"thinkingBudget": 0}, Thinking(False)),
        ({"thinkingBudget": -1, "includeThoughts": True}, Thinking(True)),
        ({"thinkingBudget": 500}, Thinking(True, tokens_max=500, shown=False)),
        ({"thinkingLevel": "HIGH", "includeThoughts": True}, Thinking(True, "high")),
    ],
)
def test_thinking_that_is_asked_for(config: Any, expected: Thinking) -> None:
    request = parse(generationConfig={"thinkingConfig": config})
    assert request.thinking == expected
    assert request.template_arguments["enable_thinking"] is expected.enabled


def test_schemas_of_googles_own_kind_are_taken() -> None:
    schema = {
        "type": "OBJECT",
        "properties": {"type": {"type": "STRING", "nullable": True}},
        "propertyOrdering": ["type"],
    }
    expected = {"type": "object", "properties": {"type": {"type": ["string", "null"]}}}
    assert json_schema(schema) == expected
    request = parse(
        tools=[{"functionDeclarations": [{"name": "f", "parameters": schema}]}, {"googleSearch": {}}],
        generationConfig={"responseMimeType": "application/json", "responseSchema": schema},
    )
    assert json.loads(request.tools[0].parameters) == expected
    assert request.generation.constraint is not None
    assert json.loads(request.generation.constraint.source) == expected
    assert request.native_tools == (NativePart("gemini", b'{"googleSearch": {}}'),)


def test_calls_and_results_without_ids_find_each_other() -> None:
    call = {"functionCall": {"name": "f", "args": {}}}
    result = {"functionResponse": {"name": "f", "response": {"a": 1, "b": 2}}}
    contents = [
        {"role": "user", "parts": [{"text": "hi"}]},
        {"role": "model", "parts": [call, call]},
        {"role": "user", "parts": [result, result, {"videoMetadata": {}, "fileData": {"fileUri": "gs://x"}}]},
    ]
    _, answer, first, second, last = parse(contents=contents).messages
    assert [one.id for one in answer.tool_calls] == [first.tool_call_id, second.tool_call_id] == ["call_1", "call_2"]
    assert first.content == '{"a":1,"b":2}'
    assert isinstance(last.content, tuple) and isinstance(last.content[0], NativePart)


def test_names_with_underscores_are_the_same() -> None:
    call = {"function_call": {"name": "f", "args": {"mime_type": {"file_uri": 1}}}}
    request = parse(
        contents=[{"role": "model", "parts": [call]}],
        system_instruction={"parts": [{"text": "s"}]},
        generation_config={"max_output_tokens": 5, "thinking_config": {"thinking_budget": 0}},
        tools=[{"function_declarations": [{"name": "f", "parameters": {"type": "object"}}]}],
    )
    assert request.messages[0] == Message("system", "s")
    assert request.messages[1].tool_calls[0].arguments == '{"mime_type":{"file_uri":1}}'
    assert (request.generation.max_tokens, request.thinking, len(request.tools)) == (5, Thinking(False), 1)
    with pytest.raises(InvalidRequest):
        dialect.parse_request(b'{"mime_type": ' + b"[" * 100_000, "m")


@pytest.mark.parametrize("depth", [400, 800, 4_000])
def test_schemas_that_are_nested_deeply_are_taken_or_refused(depth: int) -> None:
    schema = '{"type":"ARRAY","items":' * depth + "{}" + "}" * depth
    said = '{"contents":[{"role":"user","parts":[{"text":"hi"}]}],'
    for fields in (
        '"generationConfig":{"responseMimeType":"application/json","responseSchema":%s}}',
        '"tools":[{"functionDeclarations":[{"name":"f","parameters":%s}]}]}',
    ):
        with contextlib.suppress(InvalidRequest):
            dialect.parse_request((said + fields % schema).encode(), "m")


BAD: dict[str, dict[str, Any]] = {
    "contents": {"contents": []},
    "contents[0].role": {"contents": [{"role": "x", "parts": []}]},
    "contents[0].parts[0]": {"contents": [{"parts": [{}]}]},
    "contents[0].parts[0].text": {"contents": [{"parts": [{"text": 1}]}]},
    "generationConfig.temperature": {"generationConfig": {"temperature": 3}},
    "generationConfig.responseMimeType": {"generationConfig": {"responseMimeType": "text/x.enum"}},
    "generationConfig.thinkingConfig.thinkingLevel": {"generationConfig": {"thinkingConfig": {"thinkingLevel": "x"}}},
    "toolConfig.functionCallingConfig.mode": {"toolConfig": {"functionCallingConfig": {"mode": "x"}}},
    "tools[0].functionDeclarations[1].name": {"tools": [{"functionDeclarations": [{"name": "f"}, {"name": "f"}]}]},
}


@pytest.mark.parametrize("param", BAD)
def test_a_field_that_is_wrong_is_named(param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**BAD[param])
    assert caught.value.param == param


REFUSED = {
    "lora": replace(ASK, generation=Generation(loras=(Lora("a"),))),
    "logit_bias": with_sampling(logit_bias={1: 1.0}),
    "response_format": replace(ASK, generation=Generation(constraint=Constraint("regex", "a"))),
    "stop": replace(ASK, generation=Generation(stop=("a",) * 6)),
    "messages": with_messages(Message("user", (NativePart("openai_chat", b"{}"),))),
    "tools": replace(ASK, tools=(Tool("1f"),)),
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_would_change_the_answer_is_refused(param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(REFUSED[param])
    assert caught.value.param == param


def told(*events: Any) -> bytes:
    renderer = dialect.ChunkRenderer(openai_wire.ResponseHead("i", 0, "m", "f"), openai_wire.Inbound(ASK))
    return b"".join(map(renderer.render, events))


TEXTS = (TextPart("a", "5m"), TextPart(""), TextPart("b"))
LOSSES: dict[str, Callable[[], object]] = {
    "cache markers": lambda: (
        again(replace(ASK, tools=(Tool("f", cache="5m"),), messages=(Message("user", TEXTS),)))
        == replace(ASK, tools=(Tool("f"),), messages=(Message("user", "a\nb"),))
    ),
    "cache writes": lambda: b"rite" not in told(Started(1), Finished(Usage(5, 1, cache_write_tokens=3))),
    "min_p": lambda: again(replace(ASK, generation=Generation(ignore_eos=True, sampling=Sampling(min_p=0.1)))) == ASK,
    "parallel": lambda: (
        again(replace(ASK, tools=THREE, tool_choice=ToolChoice(parallel=False))).tool_choice == ToolChoice()
    ),
    "strict": lambda: again(replace(ASK, tools=(Tool("f", strict=True),))).tools == (Tool("f"),),
    "developer": lambda: again(with_messages(Message("developer", "s"), USER)).messages[0].role == "system",
    "later system messages": lambda: (
        again(with_messages(Message("system", "a"), USER, Message("system", "b"))).messages
        == (Message("system", "a\nb"), USER)
    ),
    "names": lambda: again(with_messages(replace(USER, name="Ann"))).messages == (USER,),
    "end user": lambda: again(replace(ASK, end_user="x")) == ASK,
    "foreign signatures": lambda: (
        again(
            with_messages(
                USER, Message("assistant", "x", thoughts=(Thought("a", "anthropics"), Thought("", redacted="b")))
            )
        ).messages[1]
        == Message("assistant", "x")
    ),
    "place of signatures": lambda: (
        parse(contents=[{"role": "model", "parts": [{"text": "x", "thoughtSignature": "s"}]}]).messages
        == (Message("assistant", "x", thoughts=(Thought("", "gemini:s"),)),)
    ),
    "detail of images": lambda: (
        again(with_messages(Message("user", (ImageUrl("https://example.com/a.png", "low"),)))).messages[0].content
        == (ImageUrl("https://example.com/a.png"),)
    ),
    "images of results": lambda: (
        again(
            with_messages(USER, CALL, replace(RESULT, content=(TextPart("18"), ImagePart(b"x", "image/png"))))
        ).messages[2:]
        == (RESULT, Message("user", (ImagePart(b"x", "image/png"),)))
    ),
    "titles of documents": lambda: (
        again(with_messages(Message("user", (DocumentPart(b"x", "application/pdf", None, "t", "c", True),))))
        .messages[0]
        .content
        == (DocumentPart(b"x", "application/pdf"),)
    ),
    "texts": lambda: again(with_messages(Message("user", TEXTS))).messages == (Message("user", "a\nb"),),
    "order of an answer": lambda: (
        [next(iter(part)) for part in rendered(with_messages(USER, replace(CALL, content="x")))["contents"][1]["parts"]]
        == ["text", "functionCall"]
    ),
    "a narrowed choice": lambda: (
        [tool.name for tool in again(replace(ASK, tools=THREE, tool_choice=ToolChoice("auto", ("f", "h")))).tools]
        == ["f", "h"]
    ),
    "efforts": lambda: (
        again(replace(ASK, thinking=Thinking(True, "low"))).thinking == Thinking(True, None, 1024)
        and again(replace(NEWER, thinking=Thinking(True, None, 1024))).thinking == Thinking(True)
    ),
    "stop sequences": lambda: (
        b"END" not in told(Started(1), ChoiceFinished(0, "stop", stop_sequence="END"), Finished(Usage()))
    ),
    "pieces of calls": lambda: told(ToolCallDelta(0, 0, '{"a":', "i", "f"), ToolCallDelta(0, 0, "1}")) == b"",
    "images in answers": lambda: (
        dialect.EventParser(ASK).feed(
            "", b'{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":""}}]}}]}'
        )
        == [Started(0)]
    ),
}


def test_what_is_said_to_be_lost_is_just_that() -> None:
    assert set(LOSSES) == set(dialect.LOST)
    assert not [name for name, proof in LOSSES.items() if not proof()]
    assert told(ReasoningDelta(0, "", redacted="x")) == b""


def test_embeddings() -> None:
    request = EmbeddingRequest("gemini-embedding-001", ("a", "b"), dimensions=2)
    body = json.loads(embeddings.render_request(request))
    assert body["requests"][1] == {
        "model": "models/gemini-embedding-001",
        "content": {"parts": [{"text": "b"}]},
        "outputDimensionality": 2,
    }
    answer = b'{"embeddings":[{"values":[0.5,1]},{"values":[0,-1]}],"usageMetadata":{"promptTokenCount":4}}'
    found = embeddings.parse_answer(answer, request)
    assert (found.dimensions, found.prompt_tokens, found.vectors[0]) == (2, 4, b"\x00\x00\x00?\x00\x00\x80?")
    for broken in (
        b"{",
        b'{"embeddings":[]}',
        b'{"embeddings":[{"values":[1]},{"values":[1,2]}]}',
        b'{"embeddings":5}',
    ):
        with pytest.raises(UpstreamInvalid):
            embeddings.parse_answer(broken, request)
    with pytest.raises(InvalidRequest):
        embeddings.render_request(EmbeddingRequest("m", ((1, 2),)))
