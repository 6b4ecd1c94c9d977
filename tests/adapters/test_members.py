from __future__ import annotations

import json
import random

import msgspec
import pytest

from adapters import members
from adapters.dialects import openai_passing
from adapters.dialects.anthropic_messages.passing import MESSAGES
from adapters.dialects.client import Style
from adapters.dialects.openai_responses.passing import RESPONSES
from adapters.dialects.passing import Passing
from adapters.dialects.plain import fields_of
from adapters.errors import InvalidRequest
from adapters.members import CUT_BYTES_MIN, KEPT_BYTES, LONG_BYTES, Members, outlined
from adapters.types import DialectName, Inbound

LONG = "hello there " * 10_000


class Fields(msgspec.Struct):
    model: str = ""
    options: dict[str, str] = {}


def body_of(given: object) -> bytes:
    return json.dumps(given, separators=(",", ":")).encode()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are long from 12 bytes on, whatever the size of the body."""
    for name, value in {"LONG_BYTES": 12, "KEPT_BYTES": 8, "CUT_BYTES_MIN": 0, "BYTES_PER_TEXT": 1}.items():
        monkeypatch.setattr(members, name, value)


@pytest.mark.usefixtures("small")
def test_the_outline_of_random_objects_differs_in_long_texts_only() -> None:
    chance = random.Random(11)
    alphabet = ["a", "\\", '"', "\n", "{", "}", ",", ":", "ü", "\u2028"]
    cut = 0
    for _ in range(300):
        given = {
            f"k{number}": "".join(chance.choices(alphabet, [30, 1, 1, 1, 1, 1, 1, 1, 1, 1], k=chance.randrange(40)))
            if chance.random() < 0.7
            else [number, {"x": "y" * chance.randrange(30)}]
            for number in range(chance.randrange(1, 8))
        }
        body = json.dumps(given, indent=chance.choice([None, 1])).encode()
        outline, cuts = outlined(body)
        read = Members(msgspec.json.decode(outline, type=dict[str, msgspec.Raw]), outline, cuts)
        cut += len(cuts)
        assert list(read.values) == list(given)
        for at in range(len(outline)):
            assert outline[at] == body[read.place(at)]
        whole = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        for name, value in read.values.items():
            begin = outline.index(bytes(value), outline.index(b'"%b"' % name.encode()) + len(name) + 2)
            assert body[read.place(begin) : read.place(begin + len(bytes(value)))] == bytes(whole[name])
    assert cut > 100


@pytest.mark.parametrize(
    ("passing", "dialect", "given"),
    [
        (openai_passing.CHAT, "openai_chat", {"messages": [{"role": "user", "content": LONG}], "n": 2}),
        (
            openai_passing.CHAT,
            "openai_chat",
            {"messages": [{"role": "user", "content": LONG + '\\"\n'}], "stop": "model"},
        ),
        (MESSAGES, "anthropic_messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 5}),
        (RESPONSES, "openai_responses", {"input": LONG, "store": False}),
    ],
)
def test_requests_with_long_texts_are_read_and_rewritten_as_ever(
    passing: Passing, dialect: DialectName, given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of({**given, "model": "public"})

    def seen() -> tuple[object, ...]:
        head = passing.read_head(body)
        inbound = Inbound(dialect, body, head)
        said = msgspec.structs.replace(head, members=None)
        may = [passing.may_need(inbound, {one}) for one in ("tools", "images", "logprobs", "reasoning")]
        return said, may, b"".join(passing.rewrite(inbound, "other", Style()))

    heads = passing.read_head(body).members
    assert heads is not None and heads.cuts and len(heads.outline) < len(body) // 10
    quick = seen()
    monkeypatch.setattr(members, "CUT_BYTES_MIN", len(body) + 1)
    assert seen() == quick


def test_what_a_head_is_made_of_is_never_cut() -> None:
    options = {"x": "y" * 2 * LONG_BYTES}
    fields, read = fields_of(msgspec.json.Decoder(Fields), body_of({"options": options, "said": LONG, "model": "m"}))
    assert read is not None and read.cuts and len(bytes(read.values["options"])) < 2 * KEPT_BYTES
    assert fields == Fields("m", options)


@pytest.mark.parametrize("end", ["", '"', '"}]', '"}],"model":"m"}}'])
def test_what_is_wrong_behind_a_long_text_is_told_where_it_is(end: str) -> None:
    body = ('{"messages":[{"content":"' + LONG + end).encode()
    with pytest.raises(InvalidRequest) as refused:
        fields_of(msgspec.json.Decoder(Fields), body)
    with pytest.raises(msgspec.DecodeError) as expected:
        msgspec.json.decode(body)
    assert str(expected.value) in refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        body_of({"said": "x" * (CUT_BYTES_MIN - 100)}),
        json.dumps({"said": "ü" + LONG}, ensure_ascii=False).encode(),
        body_of({"said": ["short"] * 50_000}),
    ],
)
def test_small_bodies_short_texts_and_what_is_not_ascii_stay_whole(body: bytes) -> None:
    assert outlined(body) == (body, ())
