"""Images in OpenAI messages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from adapters.dialects import openai_chat, openai_parts
from adapters.errors import InvalidRequest
from adapters.types import DocumentPart, ImagePart, ImageUrl, Message, NativePart, TextPart

Json = dict[str, Any]
PIXEL = base64.b64encode(b"an image").decode()


def text(value: str) -> Json:
    return {"type": "text", "text": value}


def image(url: str, **more: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def parse(*parts: Json, role: str = "user") -> Message:
    message: Json = {"role": role, "content": parts} | ({"tool_call_id": "c"} if role == "tool" else {})
    return openai_chat.parse_request(json.dumps({"model": "m", "messages": [message]}).encode()).request.messages[0]


def test_images_keep_their_place_between_texts() -> None:
    message = parse(text("a"), image(f"data:image/png;base64,{PIXEL}"), text("b"), text("c"))
    assert message.content == (TextPart("a"), ImagePart(b"an image", "image/png"), TextPart("b"), TextPart("c"))
    assert message.text == "a\nb\nc"


def test_parts_that_are_all_text_are_text() -> None:
    assert parse(text("a"), text("b")).content == "a\nb"


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{PIXEL}",
        f"DATA:image/PNG;base64,{PIXEL}",
        f"data:image/png;name=a.png;base64,{PIXEL}",
    ],
)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_data_urls_become_images(url: str, role: str) -> None:
    assert parse(image(url, detail="high"), role=role).content == (ImagePart(b"an image", "image/png"),)


@pytest.mark.parametrize("url", ["http://8.8.8.8/x.png", "https://example.com/x.png", "HTTPS://example.com/x.png"])
def test_web_addresses_wait_for_somebody_to_fetch_them(url: str) -> None:
    assert parse(image(url)).content == (ImageUrl(url),)


@pytest.mark.parametrize(
    "part",
    [
        image("file:///etc/passwd"),
        image("FILE:///etc/passwd"),
        image("ftp://example.com/x.png"),
        image("gopher://x"),
        image("/etc/passwd"),
        image(""),
        image("https"),
        image("https://example.com/" + "x" * 9000),
        image("data:"),
        image("data:image/png;base64,"),
        image("data:image/png;base64,%%%"),
        image("data:image/png;base64,YW4="[:-1]),
        image(f"data:image/png;base64, {PIXEL}"),
        image(f"data:image/png,{PIXEL}"),
        image(f"data:text/html;base64,{PIXEL}"),
        image(f"data:image/svg+xml;base64,{PIXEL}"),
        image(f"data:;base64,{PIXEL}"),
        image("data:image/png;base64," + "\u00e9" * 8),
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {}},
    ],
)
def test_what_is_no_image_is_refused_by_its_part(part: Json) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text("a"), part)
    assert caught.value.param == "messages[0].content[1]"


def test_a_part_without_its_image_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"type": "image_url"})
    assert caught.value.param == "messages[0].content[0].image_url"


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_users_and_tools_show_images(role: str) -> None:
    with pytest.raises(InvalidRequest, match="only possible in user and tool messages"):
        parse(image(f"data:image/png;base64,{PIXEL}"), role=role)


def test_the_number_of_images_is_bounded() -> None:
    parts = [image(f"data:image/png;base64,{PIXEL}")] * (openai_parts.IMAGES_MAX + 1)
    assert len(parse(*parts[1:]).content or ()) == openai_parts.IMAGES_MAX
    with pytest.raises(InvalidRequest) as caught:
        parse(*parts)
    assert caught.value.param == f"messages[0].content[{openai_parts.IMAGES_MAX}]"


def test_the_size_of_images_is_bounded() -> None:
    large = base64.b64encode(bytes(openai_parts.IMAGE_BYTES_MAX)).decode()
    with pytest.raises(InvalidRequest, match="an image has at most"):
        parse(image(f"data:image/png;base64,{large}AAAAAAAA"))
    with pytest.raises(InvalidRequest, match="all images and documents have at most") as caught:
        parse(image(f"data:image/png;base64,{large}"), image(f"data:image/png;base64,{large}"))
    assert caught.value.param == "messages[0].content[1]"


def test_documents_and_recordings() -> None:
    file = {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PIXEL}", "filename": "a.pdf"}}
    kept = {"type": "file", "file": {"file_id": "file-1"}}
    sound = {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}}
    content = parse(file, kept, sound).content
    assert isinstance(content, tuple)
    document, native, audio = content
    assert document == DocumentPart(b"an image", "application/pdf", title="a.pdf")
    assert isinstance(native, NativePart) and json.loads(native.source) == kept
    assert isinstance(audio, NativePart) and json.loads(audio.source) == sound


def test_how_closely_to_look_is_kept_for_those_who_fetch() -> None:
    assert parse(image("https://example.com/x.png", detail="low")).content == (
        ImageUrl("https://example.com/x.png", detail="low"),
    )


def test_markers_of_what_to_cache() -> None:
    marked = text("a") | {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    picture = image(f"data:image/png;base64,{PIXEL}") | {"cache_control": {"type": "ephemeral"}}
    assert parse(marked, text("b"), picture).content == (
        TextPart("a", "1h"),
        TextPart("b"),
        ImagePart(b"an image", "image/png", "5m"),
    )
