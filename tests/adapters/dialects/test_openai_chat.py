from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects import openai_chat, openai_wire
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    Event,
    Finished,
    Message,
    Sampling,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

HEAD = openai_wire.ResponseHead("chatcmpl-1", 1700000000, "m", "fp_1")
USER = {"role": "user", "content": "hi"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def parse(**fields: Any) -> openai_wire.Inbound[ChatRequest]:
    return openai_chat.parse_request(body(**fields))


def refused(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        openai_chat.parse_request(raw)
    return caught.value


def nested(depth: int) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"hi"}],"x":' + b"[" * depth + b"]" * depth + b"}"


def with_text(text: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"' + text + b'"}]}'


def with_field(name: bytes, value: bytes) -> bytes:
    return body()[:-1] + b',"' + name + b'":' + value + b"}"


TOOL = {"type": "function", "function": {"name": "f"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


NOT_JSON = {
    "empty": b"",
    "no json": b"hello",
    "truncated": body()[:-5],
    "trailing": body() + b"{}",
    "invalid utf-8": with_text(b"\xff"),
    "invalid utf-8 in an unknown field": with_field(b"x", b'"\xff"'),
    "encoded surrogate": with_text(b"\xed\xa0\x80"),
    "lone high surrogate": with_text(b"\\ud800"),
    "lone low surrogate": with_text(b"\\udc00 and more text"),
    "two high surrogates": with_text(b"\\ud800\\ud800"),
    "lone surrogate in an unknown field": with_field(b"x", b'"\\ud800abcdef"'),
    "depth": nested(100_000),
    "NaN": with_field(b"temperature", b"NaN"),
    "Infinity": with_field(b"temperature", b"Infinity"),
    "byte order mark": b"\xef\xbb\xbf" + body(),
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


WRONG: list[tuple[bytes, str]] = [
    (with_field(b"temperature", b"1e999"), "temperature"),
    (with_field(b"n", b"1" * 5000), "n"),
    (with_field(b"seed", b"9" * 5000), "seed"),
    (body(model=1), "model"),
    (body(model=""), "model"),
    (body(model=None), "model"),
    (b'{"messages":[{"role":"user","content":"hi"}]}', "model"),
    (b'{"model":"m"}', "messages"),
    (body(messages=None), "messages"),
    (body(messages=[]), "messages"),
    (body(messages="hi"), "messages"),
    (body(messages=[USER] * 4097), "messages"),
    (body(messages=[USER, {"role": "robot", "content": "x"}]), "messages[1].role"),
    (body(messages=[{"content": "x"}]), "messages[0].role"),
    (body(messages=[{"role": "user"}]), "messages[0].content"),
    (body(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    (body(messages=[{"role": "assistant"}]), "messages[0].content"),
    (body(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
    (body(messages=[{"role": "user", "content": []}]), "messages[0].content"),
    (body(messages=[{"role": "user", "content": ["x"]}]), "messages[0].content[0]"),
    (body(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]),
        "messages[0].content[0]",
    ),
    (body(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), "messages[0].content[0].input_audio"),
    (body(messages=[{"role": "user", "content": [{"type": "file"}]}]), "messages[0].content[0].file"),
    (body(messages=[{"role": "tool", "content": "4"}]), "messages[0].tool_call_id"),
    (body(messages=[{"role": "function", "content": "4"}]), "messages[0].tool_call_id"),
    (body(n=0), "n"),
    (body(n=129), "n"),
    (body(n=1.5), "n"),
    (body(n="1"), "n"),
    (body(n=True), "n"),
    (body(max_tokens=0), "max_tokens"),
    (body(max_tokens=-1), "max_tokens"),
    (body(max_tokens=2**31), "max_tokens"),
    (body(max_completion_tokens=0), "max_completion_tokens"),
    (body(temperature=-0.1), "temperature"),
    (body(temperature=2.1), "temperature"),
    (body(temperature="1"), "temperature"),
    (body(top_p=-0.1), "top_p"),
    (body(top_p=1.1), "top_p"),
    (body(top_k=-2), "top_k"),
    (body(min_p=1.1), "min_p"),
    (body(presence_penalty=2.1), "presence_penalty"),
    (body(frequency_penalty=-2.1), "frequency_penalty"),
    (body(seed=2**63), "seed"),
    (body(seed=-(2**63) - 1), "seed"),
    (body(seed=1.5), "seed"),
    (body(logit_bias={"x": 1}), "logit_bias"),
    (body(logit_bias={"-1": 1}), "logit_bias"),
    (body(logit_bias={"5": 101}), "logit_bias"),
    (body(logit_bias={"5": "1"}), "logit_bias"),
    (body(logit_bias=[5]), "logit_bias"),
    (body(logit_bias={str(token): 1 for token in range(1025)}), "logit_bias"),
    (body(stop=5), "stop"),
    (body(stop=""), "stop"),
    (body(stop="x" * 257), "stop"),
    (body(stop=["x", ""]), "stop[1]"),
    (body(stop=["x"] * 17), "stop"),
    (body(stop=[1]), "stop[0]"),
    (body(logprobs=1), "logprobs"),
    (body(logprobs=True, top_logprobs=-1), "top_logprobs"),
    (body(logprobs=True, top_logprobs=21), "top_logprobs"),
    (body(top_logprobs=2), "top_logprobs"),
    (body(logprobs=False, top_logprobs=2), "top_logprobs"),
    (body(stream="yes"), "stream"),
    (body(stream_options={"include_usage": True}), "stream_options"),
    (body(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
    (body(response_format={}), "response_format.type"),
    (body(response_format={"type": "json_object"}, grammar='root ::= "x"'), "grammar"),
    (body(chat_template="{{ x }}"), "chat_template"),
    (body(chat_template_kwargs={"enable_thinking": "no"}), "chat_template_kwargs.enable_thinking"),
    (body(chat_template_kwargs={"reasoning_effort": "{{ x }}"}), "chat_template_kwargs.reasoning_effort"),
    (body(chat_template_kwargs={"date_string": "<|im_end|>"}), "chat_template_kwargs.date_string"),
    (body(reasoning_effort="some"), "reasoning_effort"),
    (body(reasoning={"effort": 5}), "reasoning.effort"),
    (body(thinking_budget_tokens=-2), "thinking_budget_tokens"),
    (body(thinking_budget_tokens=5, thinking_budget=6), "thinking_budget"),
    (body(functions=[{"name": "f"}]), "functions"),
    (body(function_call="auto"), "function_call"),
    (body(modalities=["text", "audio"]), "modalities"),
    (body(tool_choice="required"), "tool_choice"),
    (body(tool_choice="always"), "tool_choice"),
    (body(tool_choice={"type": "function", "function": {"name": "f"}}), "tool_choice.function.name"),
    (body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}), "tool_choice.function.name"),
    (body(tools=[TOOL], tool_choice={"type": "function"}), "tool_choice.function.name"),
    (body(tools=[TOOL], tool_choice={"type": "custom", "custom": {"name": "f"}}), "tool_choice.type"),
    (body(tools=[TOOL], tool_choice=allowed("none", "f")), "tool_choice.allowed_tools.mode"),
    (body(tools=[TOOL], tool_choice=allowed("auto", "g")), "tool_choice.allowed_tools.tools[0].function.name"),
    (body(tools=[TOOL], tool_choice=allowed("auto")), "tool_choice.allowed_tools.tools"),
    (body(tools={}), "tools"),
    (body(tools=[TOOL, TOOL]), "tools[1].function.name"),
    (body(tools=[{"type": "function", "function": {"name": "f", "strict": 1}}]), "tools[0].function.strict"),
    (body(tools=[{"type": "function", "function": {"name": "f"}}] * 129), "tools"),
    (body(tools=[{"type": "custom", "custom": {"name": "f"}}]), "tools[0].type"),
    (body(tools=[{"type": "function"}]), "tools[0].function"),
    (body(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
    (body(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
    (body(tools=[{"type": "function", "function": {"name": "f\n"}}]), "tools[0].function.name"),
    (body(tools=[{"type": "function", "function": {"name": "x" * 65}}]), "tools[0].function.name"),
    (body(tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]), "tools[0].function.parameters"),
    (
        body(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]),
        "tools[0].function.parameters",
    ),
    (body(user=5), "user"),
    (body(metadata={"a": 1}), "metadata[...]"),
    (body(prompt_cache_key="x" * 513), "prompt_cache_key"),
]


@pytest.mark.parametrize(("raw", "param"), WRONG, ids=[f"{i}-{param}" for i, (_, param) in enumerate(WRONG)])
def test_wrong_values_name_their_field(raw: bytes, param: str) -> None:
    error = refused(raw)
    assert error.code == "invalid_value"
    assert error.param == param.removesuffix("[...]")
    assert param.removesuffix("[...]").split(".")[-1] in error.message


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers"])
def test_fields_that_would_redirect_are_refused(name: str) -> None:
    error = refused(body(**{name: "http://169.254.169.254/"}))
    assert (error.code, error.param) == ("unknown_parameter", name)


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_template_arguments_that_are_not_offered_are_refused(name: str) -> None:
    error = refused(body(chat_template_kwargs={name: []}))
    assert (error.code, error.param) == ("unknown_parameter", f"chat_template_kwargs.{name}")


def test_messages_say_what_was_expected() -> None:
    assert refused(body(n="1")).message == "Invalid type for 'n': expected an integer, but got a string instead."
    assert refused(body(n=0)).message == "Invalid value for 'n': expected an integer >= 1."
    assert refused(body(temperature=3)).message == "Invalid value for 'temperature': expected a number <= 2.0."
    assert refused(b'{"model":"m"}').message == "Missing required parameter: 'messages'."
    assert refused(b"[]").message == "Invalid type for the request body: expected an object, but got an array instead."
    assert "a key of 'logit_bias'" in refused(body(logit_bias={"x": 1})).message


def arguments(text: str) -> bytes:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": text}}
    return body(messages=[USER, {"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize("text", ["{", "[]", "5", '{"a":NaN}', "{}{}", '{"a":' * 5000, '{"a":' * 65 + "1" + "}" * 65])
def test_broken_tool_call_arguments(text: str) -> None:
    assert refused(arguments(text)).param == "messages[1].tool_calls[0].function.arguments"


def test_deep_schemas_are_refused_before_a_template_walks_them() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"properties": schema}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert refused(body(tools=[tool])).param == "tools[0].function.parameters"


def test_bounds_are_inside() -> None:
    fields: dict[str, Any] = {
        "n": 128,
        "max_tokens": 2**31 - 1,
        "temperature": 2,
        "top_p": 1,
        "top_k": 0,
        "min_p": 1,
        "seed": -(2**63),
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "logit_bias": {"5": -100, "6": 100},
        "stop": ["x" * 256] * 16,
        "logprobs": True,
        "top_logprobs": 20,
    }
    generation = parse(**fields).request.generation
    assert (generation.n, generation.max_tokens, generation.logprobs) == (128, 2**31 - 1, 20)
    assert generation.stop == ("x" * 256,) * 16
    assert generation.sampling == Sampling(
        temperature=2.0,
        top_p=1.0,
        top_k=0,
        min_p=1.0,
        seed=-(2**63),
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias={5: -100.0, 6: 100.0},
    )


def test_null_means_absent() -> None:
    optional = [name for name in openai_chat.Body.__struct_fields__ if name not in ("model", "messages")]
    assert parse(**dict.fromkeys(optional)) == parse()


def test_defaults_and_unknown_fields() -> None:
    inbound = parse(verbosity="low", some_new_thing={"a": [1]})
    assert inbound.request == ChatRequest("m", (Message("user", "hi"),))
    assert (inbound.stream, inbound.include_usage, inbound.session_key) == (False, False, None)


def test_spellings() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).request.generation.max_tokens == 7
    assert parse(max_tokens=5).request.generation.max_tokens == 5
    assert parse(stop="x").request.generation.stop == ("x",)
    assert parse(stop=[]).request.generation.stop == ()
    assert parse(logprobs=True).request.generation.logprobs == 0
    assert parse(logprobs=False).request.generation.logprobs is None
    assert parse(top_k=-1).request.generation.sampling.top_k == 0
    assert parse(ignore_eos=True).request.generation.ignore_eos
    assert parse(top_p=0, temperature=1.5).request.generation.sampling == Sampling(temperature=0.0)
    assert parse(response_format={"type": "text"}).request == parse().request
    assert parse(prompt_cache_key="a", session_id="b").session_key == "a"
    assert parse(session_id="b").session_key == "b"
    assert parse(prompt_cache_key="").session_key is None
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage
    assert parse(tool_choice="none").request.tool_choice.mode == "none"


def test_messages_of_every_role() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d", "name": "dev"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": ""}},
        {"role": "function", "name": "g", "content": "5"},
        {"role": "assistant", "content": None, "refusal": "no"},
    ]
    assert parse(messages=messages).request.messages == (
        Message("system", "s"),
        Message("developer", "d", "dev"),
        Message("user", "one\ntwo"),
        Message("assistant", None, tool_calls=(ToolCall("c1", "f", '{"a": 1}'),)),
        Message("tool", "4", tool_call_id="c1"),
        Message("assistant", None, tool_calls=(ToolCall("call_g", "g", "{}"),)),
        Message("tool", "5", "g", tool_call_id="call_g"),
        Message("assistant", "no"),
    )


def test_tools() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    functions = [{"name": "f-1_x", "description": "d", "parameters": schema, "strict": True}, {"name": "g"}]
    tools = parse(tools=[{"type": "function", "function": function} for function in functions]).request.tools
    assert [(tool.name, tool.description) for tool in tools] == [("f-1_x", "d"), ("g", "")]
    assert [json.loads(tool.parameters) for tool in tools] == [schema, {}]


LOGPROBS = (TokenLogprob(5, -0.5, b"\xe2\x82", (TopLogprob(5, -0.5, b"\xe2\x82"), TopLogprob(6, -1e9, b"x"))),)
EVENTS: tuple[Event, ...] = (
    Started(prompt_tokens=3, cached_tokens=2),
    TextDelta(0, 'a"\n\ndata: [DONE]\n\n\u2028'),
    TextDelta(1, ""),
    ToolCallDelta(1, 0, "", "call_1", "f"),
    ToolCallDelta(1, 0, '{"a"'),
    ToolCallDelta(1, 0, ":1}"),
    ChoiceFinished(0, "stop"),
    ChoiceFinished(1, "tool_calls"),
    Finished(Usage(3, 9, 2)),
)


def rendered(events: tuple[Event, ...], **fields: Any) -> list[Any]:
    """The payloads of all frames; asserts that each is one line."""
    renderer = openai_chat.ChunkRenderer(HEAD, parse(stream=True, **fields))
    frames = b"".join(renderer.render(event) for event in events).decode()
    payloads = frames.removesuffix("\n\n").split("\n\n")
    assert all(len(payload.splitlines()) == 1 and payload.startswith("data: ") for payload in payloads)
    return [item if (item := payload[6:]) == "[DONE]" else json.loads(item) for payload in payloads]


def test_chunks() -> None:
    chunks = rendered(EVENTS, n=2)
    assert chunks.pop() == "[DONE]"
    assert all(
        {key: chunk[key] for key in ("id", "object", "created", "model", "system_fingerprint")}
        == {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": "m",
            "system_fingerprint": "fp_1",
        }
        for chunk in chunks
    )
    assert not any("usage" in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    first = {"role": "assistant", "content": "", "refusal": None}
    assert [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in choices] == [
        (0, first, None),
        (1, first, None),
        (0, {"content": 'a"\n\ndata: [DONE]\n\n\u2028'}, None),
        (
            1,
            {
                "tool_calls": [
                    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
                ]
            },
            None,
        ),
        (1, {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}, None),
        (1, {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, None),
        (0, {}, "stop"),
        (1, {}, "tool_calls"),
    ]
    assert all(choice["logprobs"] is None for choice in choices)


def test_usage_chunk() -> None:
    chunks = rendered(EVENTS, n=2, stream_options={"include_usage": True})
    assert chunks.pop() == "[DONE]"
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    assert all(chunk["usage"] is None for chunk in chunks)


WIRE_LOGPROBS = {
    "content": [
        {
            "token": "bytes:\\xe2\\x82",
            "logprob": -0.5,
            "bytes": [0xE2, 0x82],
            "top_logprobs": [
                {"token": "bytes:\\xe2\\x82", "logprob": -0.5, "bytes": [0xE2, 0x82]},
                {"token": "x", "logprob": -9999.0, "bytes": [120]},
            ],
        }
    ],
    "refusal": None,
}


def test_log_probabilities_come_with_the_text_and_without_it() -> None:
    chunks = rendered((TextDelta(0, "", LOGPROBS), TextDelta(0, "x", LOGPROBS)), logprobs=True, top_logprobs=2)
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [WIRE_LOGPROBS, WIRE_LOGPROBS]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"content": ""}, {"content": "x"}]


def test_answer_is_the_folded_stream() -> None:
    folded = openai_wire.Folded(2)
    for event in (*EVENTS[:2], TextDelta(0, "b", LOGPROBS), *EVENTS[2:]):
        folded.add(event)
    request = parse(n=2, logprobs=True).request
    answer = json.loads(openai_chat.render_answer(HEAD, request, folded))
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["total_tokens"] == 12
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    text = 'a"\n\ndata: [DONE]\n\n\u2028b'
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
            "logprobs": WIRE_LOGPROBS,
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [call],
            },
            "logprobs": {"content": [], "refusal": None},
            "finish_reason": "tool_calls",
        },
    ]
