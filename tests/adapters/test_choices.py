"""What may stand at a place of a body."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from adapters.choices import choices
from adapters.dialects import openai_wire as wire
from adapters.errors import InvalidRequest


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(msgspec.Struct):
    kind: Literal["image", "text"] = "text"
    colour: Colour | None = None
    inner: Part | None = None


class Body(msgspec.Struct, rename={"kept": "is_kept"}):
    parts: list[Part | str] = []
    pair: tuple[int, Annotated[Literal["a", "b"], Meta(description="x")]] = (1, "a")
    kept: Literal["yes", "no"] | int = 1
    by_name: dict[str, Literal["x"]] = {}
    any: Any = None


@pytest.mark.parametrize(
    ("path", "possible"),
    [
        (".parts[0].kind", ["image", "text"]),
        (".parts[...].colour", ["red", "blue"]),
        (".parts[3].inner.inner.kind", ["image", "text"]),
        (".pair[1]", ["a", "b"]),
        (".is_kept", ["no", "yes"]),
        (".kept", []),
        (".by_name[...]", ["x"]),
        (".any.thing[0]", []),
        ("", []),
    ],
)
def test_choices(path: str, possible: list[str]) -> None:
    assert choices(Body, path) == possible


def test_a_body_with_another_word_is_told_which_there_are() -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.decode(msgspec.json.Decoder(Body), b'{"parts": [{"kind": "sound"}]}', "input")
    told = "Invalid value for 'input.parts[0].kind': expected one of 'image', 'text', but got 'sound' instead."
    assert (caught.value.message, caught.value.param) == (told, "input.parts[0].kind")
