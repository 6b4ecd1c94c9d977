"""Whether a request that is passed on could need what its target lacks, in the dialects that have a list of blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.providers import PROVIDERS
from adapters.relay import PASSING
from adapters.types import DialectName, Inbound

FAR = "http://169.254.169.254/"
HERE = "data:image/png;base64,aGk="
LONG = 'It was "dark", and stormy. ' * 400


def may_need(dialect: DialectName, fields: dict[str, Any], *capabilities: str, ascii: bool = False) -> bool:
    passing = PASSING[dialect]
    body = json.dumps({"model": "m", "max_tokens": 5} | fields, ensure_ascii=ascii).encode()
    return passing.may_need(Inbound(dialect, body, passing.read_head(body)), frozenset(capabilities))


def block(kind: str, **source: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, "source": source}]}]}


def result(content: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}]}]
    }


def shown(**piece: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [piece]}]}


def chatted(**part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


# dialect, fields, whether an address may have to be fetched
ADDRESSES: list[tuple[DialectName, dict[str, Any], bool]] = [
    ("openai_chat", chatted(type="image_url", image_url={"url": FAR}), True),
    ("openai_chat", chatted(type="video_url", video_url={"url": FAR}), True),
    ("openai_chat", chatted(audio_url=FAR), True),
    ("openai_chat", chatted(type="video_url", video_url={"url": HERE}), False),
    ("openai_chat", chatted(type="text", text="t", image_url=None, video_url=None), False),
    ("openai_chat", {"messages": [], "tools": [{"audio_url": FAR}]}, False),
    ("openai_responses", shown(type="input_video", video_url=FAR), True),
    ("anthropic_messages", block("image", type="url", url=FAR), True),
    ("anthropic_messages", block("document", type="url", url=FAR), True),
    ("anthropic_messages", result([{"type": "image", "source": {"type": "url", "url": FAR}}]), True),
    ("anthropic_messages", {"system": [{"type": "image", "source": {"url": FAR}}], "messages": []}, True),
    ("anthropic_messages", block("image", type="base64", data="aGk="), False),
    ("anthropic_messages", {"messages": [], "mcp_servers": [{"type": "url", "url": FAR}]}, False),
    ("anthropic_messages", {"messages": [{"role": "user", "content": '{"source": {"url": "x"}}'}]}, False),
    ("openai_responses", shown(type="input_image", image_url=FAR), True),
    ("openai_responses", shown(type="input_image", image_url={"url": HERE}), True),
    ("openai_responses", shown(type="input_file", file_url=FAR), True),
    ("openai_responses", {"input": [{"output": [{"type": "input_image", "image_url": FAR}]}]}, True),
    ("openai_responses", shown(type="input_image", image_url=HERE), False),
    ("openai_responses", shown(type="input_image", file_id="f"), False),
    ("openai_responses", {"input": '"image_url": "x"'}, False),
]


@pytest.mark.parametrize("more", [{}, {"zz": LONG}], ids=["small", "large"])
@pytest.mark.parametrize(("dialect", "fields", "far"), ADDRESSES)
def test_what_may_have_to_be_fetched(
    dialect: DialectName, fields: dict[str, Any], far: bool, more: dict[str, Any]
) -> None:
    fields = fields | more
    assert may_need(dialect, fields, "image_urls") == far
    spelt = may_need(dialect, fields | {"x": "\u00e4"}, "image_urls", ascii=True)
    assert spelt == far, "escapes are no reason to think otherwise"


@pytest.mark.parametrize("text", ["hi", LONG], ids=["small", "large"])
@pytest.mark.parametrize("dialect", ["anthropic_messages", "openai_responses"])
def test_signs_and_escapes(dialect: DialectName, text: str) -> None:
    plain: Any = {"messages": [{"role": "user", "content": text}], "input": text}
    assert not may_need(dialect, plain, "tools", "images", "documents", "reasoning")
    assert may_need(dialect, plain | {"tools": []}, "tools") and not may_need(dialect, plain | {"tools": []}, "images")
    assert may_need(dialect, plain | {"x": "\u00e4"}, "tools", ascii=True), "a name could be spelt with it"
    assert not may_need(dialect, plain | {"x": "\u00e4"}, ascii=True)


def said(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": LONG}]}]}


def put(*parts: Any, **item: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [*parts, {"type": "input_text", "text": LONG}], **item}]}


OUTPUT = {"type": "output_text", "text": "t", "annotations": []}


@pytest.mark.parametrize(
    ("dialect", "fields", "plain"),
    [
        ("anthropic_messages", said(), True),
        ("anthropic_messages", said({"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}}), True),
        ("anthropic_messages", said() | {"system": [{"type": "text", "text": "be kind"}]}, True),
        ("anthropic_messages", said() | {"system": [{"type": "image", "source": {"url": FAR}}]}, False),
        ("anthropic_messages", said({"type": "thinking", "thinking": "t", "signature": "s"}), False),
        ("anthropic_messages", said({"type": "text", "text": "t", "citations": [{"url": FAR}]}), False),
        ("anthropic_messages", said() | {"system": {"source": {"url": FAR}}}, False),
        ("openai_responses", {"input": LONG}, True),
        ("openai_responses", put(), True),
        ("openai_responses", put(OUTPUT, type="message", id="m", status="completed"), True),
        ("openai_responses", put(OUTPUT | {"annotations": [{"url": FAR}]}), False),
        ("openai_responses", put({"type": "input_file", "file_url": FAR}), False),
        ("openai_responses", put(type="function_call"), False),
        ("openai_responses", put(output=[{"image_url": FAR}]), False),
        ("openai_responses", {"input": [LONG]}, False),
        ("openai_responses", {"input": {"image_url": FAR, "text": LONG}}, False),
    ],
)
def test_what_says_nothing_but_text(dialect: DialectName, fields: dict[str, Any], plain: bool) -> None:
    body = json.dumps({"model": "m", "max_tokens": 5} | fields).encode()
    head = PASSING[dialect].read_head(body)
    assert (head.plain, head.members is None) == (plain, False)


@pytest.mark.parametrize("dialect", ["anthropic_messages", "openai_responses"])
def test_large_bodies_are_rewritten_like_small_ones(dialect: DialectName) -> None:
    passing = PASSING[dialect]
    for more in ({}, {"store": None, "include": ["x"]}, {"store": False, "max_output_tokens": 9}):
        sent = []
        for text in ("hi", LONG):
            fields = {"max_tokens": 5, "zz": text, "model": "m", "messages": [], "input": "hi"} | more
            body = json.dumps(fields).encode()
            inbound = Inbound(dialect, body, passing.read_head(body), output_tokens_max=7)
            written = json.loads(b"".join(passing.rewrite(inbound, "theirs", PROVIDERS["openai"].style)))
            assert written.pop("zz") == text
            sent.append(written)
        assert sent[0] == sent[1] and sent[0]["model"] == "theirs"


LARGE = "QUJD" * 20_000


@pytest.mark.parametrize(
    ("dialect", "with_data", "with_address"),
    [
        (
            "openai_chat",
            lambda data: {"messages": [{"role": "user", "content": [image(f"data:image/png;base64,{data}")]}]},
            lambda url: {"messages": [{"role": "user", "content": [image(url)]}]},
        ),
        (
            "anthropic_messages",
            lambda data: block("image", type="base64", media_type="image/png", data=data),
            lambda url: block("image", type="url", url=url),
        ),
        (
            "openai_responses",
            lambda data: shown(type="input_image", image_url=f"data:image/png;base64,{data}"),
            lambda url: shown(type="input_image", image_url=url),
        ),
    ],
)
def test_images_and_addresses_of_large_bodies(dialect: DialectName, with_data: Any, with_address: Any) -> None:
    passing = PASSING[dialect]

    def asked(fields: dict[str, Any]) -> tuple[bool, bool]:
        body = json.dumps({"model": "m", "max_tokens": 5, "zz": LARGE} | fields).encode()
        inbound = Inbound(dialect, body, passing.read_head(body))
        return passing.may_need(inbound, frozenset(("image_urls",))), passing.inside(inbound)

    assert asked(with_data(LARGE)) == (False, False)
    assert asked(with_address("https://example.com/x.png")) == (True, False)
    assert asked(with_address(FAR)) == (True, True)
    assert asked(with_address(f"http://{'a' * 5000}@169.254.169.254/")) == (True, True)


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
