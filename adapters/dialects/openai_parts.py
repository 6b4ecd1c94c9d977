"""The content of OpenAI chat messages: text, and parts of which some are images."""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from adapters.dialects.openai_tools import invalid
from adapters.errors import InvalidRequest
from adapters.types import DocumentPart, ImagePart, ImageUrl, Message, Role, TextPart

IMAGES_MAX = 32
IMAGE_BYTES_MAX = 20 << 20
IMAGES_BYTES_MAX = 32 << 20
URL_CHARS_MAX = 8192
MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/gif", "image/bmp", "image/webp")

_REFUSED = {
    "input_audio": "this model does not take audio",
    "file": "this model does not take files",
}


class ImageReference(msgspec.Struct):
    """`detail` is taken and ignored: each model has its own way to look at an image."""

    url: str
    detail: Annotated[str, Meta(max_length=64)] | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageReference | None = None


Content = str | tuple[TextPart | ImagePart | ImageUrl, ...] | None


def parse_content(content: str | list[Part] | None, role: Role, path: str) -> Content:
    """Text as it is and parts of text joined by line ends, each being a block of its own; parts where one is an
    image."""
    if content is None or isinstance(content, str):
        return content
    if not content:
        raise invalid(path, "expected at least one part")
    parts = tuple(_part(part, role, f"{path}[{index}]") for index, part in enumerate(content))
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else parts


def _part(part: Part, role: Role, path: str) -> TextPart | ImagePart | ImageUrl:
    if part.type == "image_url":
        if role not in ("user", "tool"):
            raise invalid(path, "images are only possible in user and tool messages")
        if part.image_url is None:
            raise InvalidRequest(f"Missing required parameter: '{path}.image_url'.", param=f"{path}.image_url")
        return parse_image_url(part.image_url.url, path)
    if part.type not in ("text", "refusal"):
        raise invalid(path, _REFUSED.get(part.type, "expected a part of type 'text' or 'image_url'"))
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.{part.type}'.", param=f"{path}.{part.type}")
    return TextPart(text)


def parse_image_url(url: str, path: str) -> ImagePart | ImageUrl:
    """The image in a `data:` URL, or the web address of one."""
    scheme, separator, rest = url.partition(":")
    match scheme.lower():
        case "data":
            return _data_image(rest, path)
        case "http" | "https" if separator:
            return ImageUrl(check_url(url, path))
    raise invalid(path, "expected a data: URL")


def check_url(url: str, path: str) -> str:
    """A web address as it is; raises for anything else."""
    if not url.lower().startswith(("http://", "https://")):
        raise invalid(path, "expected a web address")
    if len(url) > URL_CHARS_MAX:
        raise invalid(path, f"a web address has at most {URL_CHARS_MAX} characters")
    return url


def _data_image(rest: str, path: str) -> ImagePart:
    head, comma, payload = rest.partition(",")
    media_type, *attributes = head.lower().split(";")
    if not comma or attributes[-1:] != ["base64"]:
        raise invalid(path, "expected 'data:image/...;base64,' and the image in base64")
    return parse_image(media_type, payload, path)


def parse_image(media_type: str, payload: str, path: str) -> ImagePart:
    """An image in base64."""
    if media_type not in MEDIA_TYPES:
        raise invalid(path, f"expected one of the media types {', '.join(MEDIA_TYPES)}")
    if len(payload) // 4 * 3 > IMAGE_BYTES_MAX + 3:
        raise invalid(path, f"an image has at most {IMAGE_BYTES_MAX} bytes")
    return ImagePart(parse_base64(payload, path, "image"), media_type)


def parse_base64(payload: str, path: str, noun: str) -> bytes:
    """What is never empty."""
    try:
        data = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise invalid(path, f"the {noun} is not valid base64") from None
    if not data:
        raise invalid(path, f"the {noun} is empty")
    return data


def check_images(messages: Iterable[Message]) -> None:
    """Raises when a conversation has too many images and documents or too many bytes of them."""
    count = size = 0
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
            if not isinstance(part, ImagePart | ImageUrl | DocumentPart):
                continue
            count += 1
            size += len(part.data) if not isinstance(part, ImageUrl) else 0
            path = f"messages[{i}].content[{j}]"
            if count > IMAGES_MAX:
                raise invalid(path, f"a request has at most {IMAGES_MAX} images and documents")
            if size > IMAGES_BYTES_MAX:
                raise invalid(path, f"all images and documents have at most {IMAGES_BYTES_MAX} bytes")
