from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.dialects import bedrock_converse as dialect
from adapters.dialects import openai_wire
from adapters.errors import InvalidRequest
from adapters.types import (
    ChatRequest,
    Constraint,
    DocumentPart,
    Finished,
    Generation,
    ImagePart,
    ImageUrl,
    Lora,
    Message,
    NativePart,
    RefusalDelta,
    Sampling,
    Started,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)

USER = Message("user", "hi")
ASK = ChatRequest("anthropic.claude-sonnet-4-6-v1:0", (USER,))
OLDER = replace(ASK, model="us.anthropic.claude-3-7-sonnet-20250219-v1:0")
NOVA = replace(ASK, model="amazon.nova-pro-v1:0")
CALL = Message("assistant", tool_calls=(ToolCall("c1", "f", '{"a":1}'),))
RESULT = Message("tool", "18", tool_call_id="c1")
THREE = (Tool("f"), Tool("g"), Tool("h"))
TEXTS = (TextPart("a"), TextPart(""), TextPart("b"))


def rendered(request: ChatRequest) -> Any:
    return json.loads(dialect.render_request(request))


def again(request: ChatRequest) -> ChatRequest:
    return dialect.parse_request(dialect.render_request(request), request.model).request


def parse(**fields: Any) -> ChatRequest:
    whole = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]} | fields
    return dialect.parse_request(json.dumps(whole).encode(), "m").request


def with_messages(*messages: Message) -> ChatRequest:
    return replace(ASK, messages=messages)


def with_sampling(**fields: Any) -> ChatRequest:
    return replace(ASK, generation=Generation(sampling=Sampling(**fields)))


def test_the_least() -> None:
    assert rendered(ASK) == {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}


def test_a_turn_with_tools_and_markers() -> None:
    answer = replace(
        CALL,
        content=(TextPart("well", "1h"),),
        thoughts=(Thought("hm", "sig"), Thought("", redacted="xyz")),
        tool_calls=(replace(CALL.tool_calls[0], cache="5m"),),
    )
    told = replace(RESULT, is_error=True, cache="5m")
    messages = rendered(with_messages(USER, answer, told, Message("user", "so?")))["messages"]
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
                {"reasoningContent": {"redactedContent": "xyz"}},
                {"text": "well"},
                {"cachePoint": {"type": "default", "ttl": "1h"}},
                {"toolUse": {"toolUseId": "c1", "name": "f", "input": {"a": 1}}},
                {"cachePoint": {"type": "default"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "c1", "content": [{"text": "18"}], "status": "error"}},
                {"cachePoint": {"type": "default"}},
                {"text": "so?"},
            ],
        },
    ]


def test_turns_alternate_where_one_between_them_is_empty() -> None:
    messages = rendered(with_messages(USER, Message("assistant", ""), Message("user", "so?")))["messages"]
    assert messages == [{"role": "user", "content": [{"text": "hi"}, {"text": "so?"}]}]


def test_documents_have_names_of_their_own() -> None:
    documents = tuple(DocumentPart(b"x", "application/pdf", title=title) for title in ("A: b.pdf", "A: b.pdf", None))
    blocks = rendered(with_messages(Message("user", documents)))["messages"][0]["content"]
    assert [block["document"]["name"] for block in blocks] == ["A b pdf", "document-2", "document-3"]


@pytest.mark.parametrize(
    ("request_", "more", "effort"),
    [
        (replace(ASK, thinking=Thinking(True, "minimal")), {"thinking": {"type": "adaptive"}}, "low"),
        (
            replace(OLDER, thinking=Thinking(True, "low")),
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            None,
        ),
        (replace(NOVA, thinking=Thinking(True, "low")), None, None),
        (with_sampling(top_k=5), {"top_k": 5}, None),
        (replace(with_sampling(top_k=5), model=NOVA.model), None, None),
    ],
)
def test_what_only_claude_takes(request_: ChatRequest, more: Any, effort: str | None) -> None:
    fields = rendered(request_)
    assert fields.get("additionalModelRequestFields") == more
    assert fields.get("outputConfig", {}).get("effort") == effort


def test_blocks_and_tools_that_only_amazon_has_stay_as_they_are() -> None:
    video = {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://x"}}}}
    image = {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://x"}}}}
    request = parse(
        messages=[{"role": "user", "content": [video, image, {"document": {"name": "d", "source": {"text": "t"}}}]}],
        toolConfig={"tools": [{"systemTool": {"name": "nova_grounding"}}]},
    )
    content = request.messages[0].content
    assert isinstance(content, tuple) and [type(part) for part in content] == [NativePart, NativePart, DocumentPart]
    fields = rendered(replace(request, model=ASK.model))
    assert fields["messages"][0]["content"][:2] == [video, image]
    assert fields["toolConfig"] == {"tools": [{"systemTool": {"name": "nova_grounding"}}]}


def test_json_in_results() -> None:
    result = {"toolUseId": "t", "content": [{"json": {"a": 1}}]}
    (message,) = parse(messages=[{"role": "user", "content": [{"toolResult": result}]}]).messages
    assert message.content == '{"a": 1}'


def test_results_that_only_amazon_has_stay_as_they_are() -> None:
    video = {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://x"}}}}
    result = {"toolUseId": "t", "content": [{"text": "a"}, {"cachePoint": {"type": "default"}}, video]}
    request = parse(messages=[{"role": "user", "content": [{"toolResult": result}]}])
    (block,) = rendered(replace(request, model=ASK.model))["messages"][0]["content"]
    assert block["toolResult"]["content"] == [{"text": "a"}, video]


BAD: dict[str, dict[str, Any]] = {
    "messages": {"messages": []},
    "messages[0].role": {"messages": [{"role": "x", "content": []}]},
    "messages[0].content[0].text": {"messages": [{"role": "user", "content": [{"text": 1}]}]},
    "messages[0].content[0]": {
        "messages": [{"role": "user", "content": [{"toolUse": {"toolUseId": "a", "name": "f"}}]}]
    },
    "inferenceConfig.temperature": {"inferenceConfig": {"temperature": 1.5}},
    "toolConfig.toolChoice": {
        "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {}}}}], "toolChoice": {}}
    },
    "toolConfig.tools[0].toolSpec.inputSchema.json": {
        "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": 5}}}]}
    },
    "outputConfig.textFormat": {"outputConfig": {"textFormat": {"type": "xml", "structure": {}}}},
}


@pytest.mark.parametrize("param", BAD)
def test_a_field_that_is_wrong_is_named(param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**BAD[param])
    assert caught.value.param == param


REFUSED = {
    "lora": replace(ASK, generation=Generation(loras=(Lora("a"),))),
    "n": replace(ASK, generation=Generation(n=2)),
    "logprobs": replace(ASK, generation=Generation(logprobs=1)),
    "logit_bias": with_sampling(logit_bias={1: 1.0}),
    "response_format": replace(ASK, generation=Generation(constraint=Constraint("json_object"))),
    "messages": with_messages(Message("user", (NativePart("gemini", b"{}"),))),
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_would_change_the_answer_is_refused(param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(REFUSED[param])
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    "part",
    [
        ImageUrl("https://example.com"),
        ImagePart(b"x", "image/bmp"),
        DocumentPart(b"", "application/pdf", "https://example.com"),
        DocumentPart(b"x", "image/png"),
    ],
)
def test_parts_that_cannot_be_sent_are_refused(part: Any) -> None:
    with pytest.raises(InvalidRequest):
        rendered(with_messages(Message("user", (part,))))


def told(*events: Any) -> bytes:
    renderer = dialect.ChunkRenderer(openai_wire.ResponseHead("i", 0, "m", "f"), openai_wire.Inbound(ASK))
    return b"".join(map(renderer.render, events))


LOSSES: dict[str, Callable[[], object]] = {
    "seed": lambda: again(with_sampling(seed=5)) == ASK,
    "penalties": lambda: again(with_sampling(presence_penalty=1, frequency_penalty=1)) == ASK,
    "min_p": lambda: (
        again(replace(ASK, generation=Generation(ignore_eos=True, sampling=Sampling(min_p=0.1)))) == ASK
        and "top_k" not in str(rendered(replace(with_sampling(top_k=4), model=NOVA.model)))
    ),
    "temperature over 1": lambda: (
        rendered(with_sampling(temperature=1.7))["inferenceConfig"] == {"temperature": 1.0}
        and "inferenceConfig" not in rendered(replace(with_sampling(temperature=0.1), thinking=Thinking(True)))
    ),
    "top_p beside temperature": lambda: (
        rendered(with_sampling(temperature=0.5, top_p=0.5))["inferenceConfig"] == {"temperature": 0.5}
    ),
    "thinking": lambda: rendered(replace(NOVA, thinking=Thinking(True, "high", 5000))) == rendered(NOVA),
    "parallel": lambda: (
        again(replace(ASK, tools=THREE, tool_choice=ToolChoice(parallel=False))).tool_choice == ToolChoice()
    ),
    "no calls": lambda: (
        again(replace(with_messages(USER, CALL, RESULT), tools=THREE, tool_choice=ToolChoice("none"))).tool_choice
        == ToolChoice()
        and "toolConfig" not in rendered(replace(ASK, tools=THREE, tool_choice=ToolChoice("none")))
    ),
    "developer": lambda: again(with_messages(Message("developer", "s"), USER)).messages[0].role == "system",
    "later system messages": lambda: (
        again(with_messages(Message("system", "a"), USER, Message("system", "b"))).messages
        == (Message("system", "a\nb"), USER)
    ),
    "names": lambda: again(with_messages(replace(USER, name="Ann"))).messages == (USER,),
    "end user": lambda: again(replace(ASK, end_user="x")) == ASK,
    "unsigned thoughts": lambda: (
        again(
            with_messages(
                USER, Message("assistant", "x", reasoning="a", thoughts=(Thought("a", "gemini:b"), Thought("c")))
            )
        ).messages[1]
        == Message("assistant", "x")
    ),
    "signatures of calls": lambda: (
        again(
            with_messages(USER, replace(CALL, tool_calls=(ToolCall("c1", "f", '{"a":1}', "gemini:s"),)), RESULT)
        ).messages[1]
        == CALL
    ),
    "markers in results": lambda: (
        again(with_messages(USER, CALL, replace(RESULT, content=(TextPart("18", "5m"),)))).messages[2] == RESULT
    ),
    "texts": lambda: again(with_messages(Message("user", TEXTS))).messages == (Message("user", "a\nb"),),
    "turns": lambda: again(with_messages(USER, USER)).messages == (Message("user", "hi\nhi"),),
    "forced thinking": lambda: (
        again(replace(ASK, tools=THREE, tool_choice=ToolChoice("required"), thinking=Thinking(True))).thinking
        == Thinking()
    ),
    "order of an answer": lambda: (
        [
            {*block}
            for block in rendered(with_messages(USER, replace(CALL, content="x"), RESULT))["messages"][1]["content"]
        ]
        == [{"text"}, {"toolUse"}]
    ),
    "letters of ids": lambda: (
        again(with_messages(USER, replace(CALL, tool_calls=(ToolCall("a/b" + "c" * 90, "f", "{}"),))))
        .messages[1]
        .tool_calls[0]
        .id
        == "a_b" + "c" * 61
    ),
    "letters of titles": lambda: (
        again(with_messages(Message("user", (DocumentPart(b"x", "application/pdf", title="a/b"),)))).messages[0].content
        == (DocumentPart(b"x", "application/pdf", title="a b"),)
    ),
    "a narrowed choice": lambda: (
        [tool.name for tool in again(replace(ASK, tools=THREE, tool_choice=ToolChoice("required", ("f", "h")))).tools]
        == ["f", "h"]
    ),
    "refusals": lambda: told(RefusalDelta(0, "no")) == b"",
    "reasoning tokens": lambda: (
        b"easoning" not in told(Started(5), Finished(Usage(5, 9, reasoning_tokens=4)))
        and b"oken" not in told(Started(5))
    ),
    "citations": lambda: not cited(),
}


def cited() -> list[Any]:
    parser = dialect.EventParser(ASK)
    parser.feed("messageStart", b"{}")
    return parser.feed("contentBlockDelta", b'{"delta":{"citation":{"title":"x"}},"contentBlockIndex":0}')


def test_what_is_said_to_be_lost_is_just_that() -> None:
    assert set(LOSSES) == set(dialect.LOST)
    assert not [name for name, proof in LOSSES.items() if not proof()]
