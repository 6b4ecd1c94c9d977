from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.dialects import openai_passing
from adapters.dialects.client import Style
from adapters.dialects.passing import Passing
from adapters.errors import InvalidRequest
from adapters.types import Head, Inbound


def body_of(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def rewritten(style: Style | None = None, output_tokens_max: int | None = None, **fields: object) -> dict[str, Any]:
    body = body_of(**fields)
    inbound = Inbound("openai_chat", body, openai_passing.read_chat(body), output_tokens_max)
    found: dict[str, Any] = json.loads(b"".join(openai_passing.rewrite(inbound, "theirs", style or Style())))
    return found


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ({}, Head("m")),
        ({"max_tokens": 5, "n": 3, "stream": True}, Head("m", True, 5, 3)),
        ({"max_completion_tokens": 7, "max_tokens": 5}, Head("m", max_tokens=7)),
        ({"stream": False, "max_tokens": None, "n": None}, Head("m")),
        ({"prompt_cache_key": "a", "session_id": "b"}, Head("m", session_key="a")),
        ({"session_id": "b"}, Head("m", session_key="b")),
        ({"stream": True, "stream_options": {"include_usage": True}}, Head("m", True, usage_wanted=True)),
        ({"stream": True, "stream_options": {"include_usage": False, "x": 1}}, Head("m", True)),
        ({"stream": True, "stream_options": None}, Head("m", True)),
    ],
)
def test_heads_of_chats(fields: dict[str, object], head: Head) -> None:
    assert openai_passing.read_chat(body_of(messages=[{"x": 1}], **fields)) == head


@pytest.mark.parametrize(
    ("fields", "n", "max_tokens"),
    [
        ({"prompt": "a"}, 1, 16),
        ({"prompt": ["a", "b"], "n": 3, "max_tokens": 0}, 6, 0),
        ({"prompt": [1, 2, 3]}, 1, 16),
        ({"prompt": [[1], [2]], "best_of": 5, "n": 2}, 10, 16),
    ],
)
def test_heads_of_completions(fields: dict[str, object], n: int, max_tokens: int) -> None:
    assert openai_passing.read_completion(body_of(**fields)) == Head("m", max_tokens=max_tokens, n=n)


@pytest.mark.parametrize("text", ["hi", "long " * 20_000], ids=["small", "large"])
@pytest.mark.parametrize("passing", [openai_passing.CHAT, openai_passing.COMPLETION, openai_passing.EMBEDDING])
def test_no_template_is_passed_on(passing: Passing, text: str) -> None:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text}
    for param, fields in (
        ("chat_template", {"chat_template": "{{ 1 }}"}),
        ("chat_template_kwargs.chat_template", {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}),
        ("chat_template_kwargs.tokenize", {"chat_template_kwargs": {"a": 1, "tokenize": True}}),
    ):
        with pytest.raises(InvalidRequest) as caught:
            passing.read_head(body_of(**said, **fields))
        assert caught.value.param == param
    assert passing.read_head(body_of(**said, chat_template=None, chat_template_kwargs={"a": 1})).model == "m"


@pytest.mark.parametrize("body", [body_of(stream=True, input="x"), body_of(model=1), b"[]", b"{}"])
def test_embedding_requests_that_are_none(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        openai_passing.read_embedding(body)


def test_what_is_added_to_a_request() -> None:
    assert rewritten(x=1) == {"model": "theirs", "x": 1}
    streamed = rewritten(stream=True)
    assert streamed == {"model": "theirs", "stream": True, "stream_options": {"include_usage": True}}
    assert rewritten(stream=True, stream_options={"include_usage": True, "x": 1})["stream_options"]["x"] == 1
    kept = rewritten(stream=True, stream_options={"include_usage": False, "x": 1})["stream_options"]
    assert kept == {"include_usage": True, "x": 1}
    assert rewritten(stream=True, stream_options=None)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in rewritten(Style(usage_option=False), stream=True)


def test_a_bound_is_put_where_the_target_knows_it() -> None:
    assert rewritten(output_tokens_max=9)["max_tokens"] == 9
    completion = Style(max_tokens="max_completion_tokens")
    assert rewritten(completion, output_tokens_max=9) == {"model": "theirs", "max_completion_tokens": 9}
    assert rewritten(completion, output_tokens_max=9, max_tokens=None) == {"model": "theirs", "max_tokens": 9}


def test_what_a_request_may_need() -> None:
    def may_need(capability: str, **fields: object) -> bool:
        body = body_of(**fields)
        return openai_passing.CHAT.may_need(Inbound("openai_chat", body, openai_passing.read_chat(body)), {capability})

    assert may_need("n", n=2) and not may_need("n", n=1)
    assert may_need("tools", tools=[]) and not may_need("tools", tool_choice="auto")
    assert may_need("images", messages=[{"content": [{"type": "image_url"}]}])
    assert may_need("logprobs", top_logprobs=1) and not may_need("logprobs", messages=[{"content": "log"}])
    assert may_need("tools", x="\u00e9"), "an escape may hide anything"


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ({"url": "data:image/png;base64,iVBORw0KGgo="}, False),
        ({"url": "https://example.com/x.png"}, True),
        ({"url": "http://169.254.169.254/"}, True),
        ({"url": 5}, True),
        ("https://example.com/x.png", True),
        (None, True),
    ],
)
def test_addresses_of_images_are_seen_and_images_themselves_pass(image: object, named: bool) -> None:
    content = [{"type": "text", "text": "Grüße"}, {"type": "image_url", "image_url": image}]
    for escaped in (True, False):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}, ensure_ascii=escaped)
        for text in (body, body.replace('"image_url": ', '"image\\u005furl": ')):
            assert (
                openai_passing.CHAT.may_need(Inbound("openai_chat", text.encode(), Head("m")), {"image_urls"}) is named
            )


def test_escapes_alone_are_no_reason_to_translate() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\\u00fc image_url"}]}'
    assert not openai_passing.CHAT.may_need(Inbound("openai_chat", body, Head("m")), {"image_urls"})
    assert openai_passing.CHAT.may_need(Inbound("openai_chat", body, Head("m")), {"image_urls", "tools"})


LONG = {"role": "user", "content": "so [much] to say " * 10_000}
TEXT = {"type": "text", "text": "t"}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 7, "n": 2, "prompt_cache_key": "k"},
        {"max_completion_tokens": None, "unknown": {"model": "other", "messages": [1]}},
        {"stream_options": {"include_usage": False, "more": 1}},
    ],
)
def test_large_bodies_are_read_and_rewritten_like_small_ones(fields: dict[str, Any], stream: bool) -> None:
    if not stream:
        fields = {name: value for name, value in fields.items() if name != "stream_options"}
    fields = fields | {"stream": stream}
    small, large = (
        json.dumps({"messages": [{"role": "user", "content": "x"}, *more], "model": "public", **fields}).encode()
        for more in ([], [LONG])
    )
    heads = [openai_passing.read_chat(body) for body in (small, large)]
    assert (heads[0].plain, heads[1].plain, heads[0].members) == (False, True, None)
    assert heads[0] == replace(heads[1], members=None, plain=False)
    written = [
        json.loads(
            b"".join(openai_passing.rewrite(Inbound("openai_chat", body, head, output_tokens_max=bound), "t", Style()))
        )
        for body, head, bound in zip((small, large), heads, (9, 9), strict=True)
    ]
    assert written[1].pop("messages")[1] == LONG
    assert written[0].pop("messages") and written[0] == written[1]


@pytest.mark.parametrize(
    ("messages", "plain"),
    [
        ([LONG], True),
        ([LONG, {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}], True),
        ([LONG, {"role": "assistant"}], True),
        ([LONG, PICTURE], False),
        ([LONG, {"role": "user", "content": {"image_url": "x"}}], False),
        ([LONG, ["content"]], False),
        ({"0": LONG}, False),
    ],
)
def test_what_is_not_text_in_a_large_body_is_seen(messages: Any, plain: bool) -> None:
    body = json.dumps({"model": "m", "messages": messages}).encode()
    inbound = Inbound("openai_chat", body, openai_passing.read_chat(body))
    assert inbound.head.plain is plain
    assert openai_passing.CHAT.may_need(inbound, {"image_urls"}) is (PICTURE in list(messages))
    assert not plain or not openai_passing.CHAT.may_need(
        inbound, {"images", "audio", "documents", "image_urls", "tools"}
    )


@pytest.mark.parametrize(
    ("parts", "plain"),
    [
        ([], True),
        ([TEXT, TEXT | {"cache_control": {"type": "ephemeral"}}], True),
        ([TEXT, *PICTURE["content"]], False),
        ([TEXT | {"image_url": "x"}], False),
        ([{"type": "input_audio", "text": "t"}], False),
        (["t"], False),
    ],
)
def test_parts_of_a_large_body_are_text_or_not(parts: list[Any], plain: bool) -> None:
    body = json.dumps({"model": "m", "messages": [LONG, {"role": "user", "content": parts}]}).encode()
    assert openai_passing.read_chat(body).plain is plain


@pytest.mark.parametrize(
    ("fields", "capability"),
    [({"tools": []}, "tools"), ({"response_format": {"type": "json_schema"}}, "json_schema"), ({"n": 2}, "n")],
)
def test_what_stands_beside_the_messages_of_a_large_body_counts(fields: dict[str, Any], capability: str) -> None:
    for said in (LONG, LONG | {"content": LONG["content"] + '"tools" "json_schema"'}):
        for more in ({}, fields):
            body = json.dumps({"model": "m", "messages": [said], **more}).encode()
            head = openai_passing.read_chat(body)
            assert openai_passing.CHAT.may_need(Inbound("openai_chat", body, head), {capability}) is bool(more)


@pytest.mark.parametrize("text", ['{"model": "m", "model": "m", %s}', '{"model": "m", "mod\\u0065l": "m", %s}'])
def test_a_large_body_with_a_member_twice_is_refused(text: str) -> None:
    body = (text % f'"messages": [{json.dumps(LONG)}]').encode()
    with pytest.raises(InvalidRequest, match="twice"):
        openai_passing.rewrite(Inbound("openai_chat", body, openai_passing.read_chat(body)), "t", Style())


@pytest.mark.parametrize("body", [b"[%b]", b'{"model": "m", "a": "%b\xff"}', b'{"model": 1, "a": "%b"}', b'{"a": "%b"'])
def test_a_large_body_that_is_wrong_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        openai_passing.read_chat(body % (b"x" * 100_000))
