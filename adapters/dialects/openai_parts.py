"""The content of OpenAI chat messages: text, and parts of which some are images, documents or audio."""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from adapters.dialects.openai_tools import invalid
from adapters.errors import InvalidRequest
from adapters.public import leads_inside
from adapters.types import DocumentPart, ImagePart, ImageUrl, Message, NativePart, Role, TextPart
from adapters.types import Part as CanonicalPart

IMAGES_MAX = 32
IMAGE_BYTES_MAX = 20 << 20
IMAGES_BYTES_MAX = 32 << 20
URL_CHARS_MAX = 8192
MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/gif", "image/bmp", "image/webp")

AudioFormat = Literal["wav", "mp3", "flac", "opus", "pcm16", "aac", "ogg", "m4a", "webm"]

_encode = msgspec.json.Encoder().encode


class ImageReference(msgspec.Struct):
    """Of an image that is here `detail` is ignored: each model has its own way to look at one."""

    url: str
    detail: Annotated[str, Meta(max_length=64)] | None = None


class FileReference(msgspec.Struct, omit_defaults=True):
    """A file itself, as a data: URL, or the id under which OpenAI has it."""

    file_data: str | None = None
    file_id: Annotated[str, Meta(max_length=256)] | None = None
    filename: Annotated[str, Meta(max_length=512)] | None = None


class Audio(msgspec.Struct):
    data: str
    format: AudioFormat


class CacheControl(msgspec.Struct):
    """Anthropic's marker, which gateways take in this dialect as well."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageReference | None = None
    file: FileReference | None = None
    input_audio: Audio | None = None
    cache_control: CacheControl | None = None


Content = str | tuple[CanonicalPart, ...] | None


def parse_content(content: str | list[Part] | None, role: Role, path: str) -> Content:
    """Text as it is and parts of text joined by line ends, each being a block of its own; parts where one is more than
    that, or is marked to be cached."""
    if content is None or isinstance(content, str):
        return content
    if not content:
        raise invalid(path, "expected at least one part")
    parts = tuple(_part(part, role, f"{path}[{index}]") for index, part in enumerate(content))
    texts = [part.text for part in parts if isinstance(part, TextPart) and part.cache is None]
    return "\n".join(texts) if len(texts) == len(parts) else parts


def _part(part: Part, role: Role, path: str) -> CanonicalPart:
    control = part.cache_control
    parsed = _text(part, path) if part.type in ("text", "refusal") else _shown(part, role, path)
    if control is None or isinstance(parsed, NativePart):
        return parsed
    return replace(parsed, cache=control.ttl or "5m")


def _text(part: Part, path: str) -> TextPart:
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise _missing(f"{path}.{part.type}")
    return TextPart(text)


def _shown(part: Part, role: Role, path: str) -> CanonicalPart:
    """What is no text."""
    if part.type not in ("image_url", "file", "input_audio"):
        raise invalid(path, "expected a part of type 'text', 'image_url', 'file' or 'input_audio'")
    if role not in ("user", "tool"):
        noun = {"image_url": "images", "file": "files"}.get(part.type, "recordings")
        raise invalid(path, f"{noun} are only possible in user and tool messages")
    match part:
        case Part(type="image_url", image_url=ImageReference(url=url, detail=detail)):
            image = parse_image_url(url, path)
            return replace(image, detail=detail) if isinstance(image, ImageUrl) else image
        case Part(type="file", file=FileReference(file_data=str() as data, filename=name)):
            return parse_document(data, name, path)
        case Part(type="file", file=FileReference(file_id=str()) as file):
            return NativePart("openai_chat", _encode({"type": "file", "file": file}))
        case Part(type="file", file=FileReference()):
            raise invalid(path, "expected 'file_data' or 'file_id'")
        case Part(type="input_audio", input_audio=Audio() as audio):
            parse_base64(audio.data, path, "recording")
            return NativePart("openai_chat", _encode({"type": "input_audio", "input_audio": audio}))
    raise _missing(f"{path}.{part.type}")


def parse_document(data: str, name: str | None, path: str) -> DocumentPart:
    """The document in a data: URL, or in base64 alone, which is a PDF then."""
    head, comma, payload = data.rpartition(",")
    media_type = head.lower().removeprefix("data:").partition(";")[0] if comma else "application/pdf"
    return DocumentPart(parse_base64(payload, path, "file"), media_type, title=name)


def _missing(path: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{path}'.", param=path)


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
    if leads_inside(url):
        raise invalid(path, "expected an address on the public internet")
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
