from __future__ import annotations

import json
import random

import pytest

from adapters import nesting
from adapters.dialects import openai_chat
from adapters.dialects.openai_chat_events import EventParser
from adapters.dialects.openai_passing import read_chat
from adapters.errors import InvalidRequest, UpstreamInvalid
from adapters.nesting import DEPTH_MAX, STRIDE, too_deep
from adapters.relay import PASSING
from adapters.types import DialectName, Inbound, ReasoningDelta


def nested(depth: int, begin: str = "[", end: str = "]", inside: str = "") -> bytes:
    return (begin * depth + inside + end * depth).encode()


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("[", "]"),
        ('{"a":', "}"),
        ('[{"]": {}, "x": ', "}]"),
        (' [ "\\"]}" ,', ',"{[\\\\"]'),
        ('["\\\\\\"]", [],', ',"}\\n"]'),
        ('{"é]":"]]]]]","b":', "}"),
    ],
)
def test_levels_are_told_from_brackets_in_texts(begin: str, end: str) -> None:
    times = DEPTH_MAX // (1 + begin.count("[{"))
    fits, over = nested(times, begin, end, "0"), nested(times + STRIDE, begin, end, "0")
    assert not too_deep(fits)
    assert too_deep(over)
    # Whatever follows, and where it breaks off: a decoder sees only the beginning.
    assert too_deep(over + b'"' + over)
    assert too_deep(begin.encode() * 2 * (times + STRIDE))


def test_many_brackets_are_not_many_levels() -> None:
    assert not too_deep(b"[" + b"[]," * 20_000 + b"{}]")
    assert not too_deep(json.dumps({"text": '[{"' * 20_000, "more": [{}] * 20_000}).encode())


def test_random_values_are_as_deep_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "DEPTH_MAX", 6)
    monkeypatch.setattr(nesting, "STRIDE", 1)
    dice = random.Random(7)

    def value(left: int) -> object:
        match dice.randrange(4) if left else 0:
            case 0 | 1:
                return dice.choice(["", "]", '["', "\\", '\\"{', "{}}\\\\", 1, None])
            case 2:
                return [value(left - 1) for _ in range(dice.randrange(4))]
        return {dice.choice(["a", '"[', "\\", "é}"]): value(left - 1) for _ in range(dice.randrange(4))}

    def depth(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    found = set()
    for _ in range(3000):
        made = [value(dice.randrange(12))]
        for _ in range(dice.randrange(5)):
            made = [made]
        deep = depth(made) > 6
        found.add(deep)
        assert too_deep(json.dumps(made).encode()) == (deep and len(json.dumps(made)) > 12)
    assert found == {True, False}


@pytest.mark.parametrize("depth", [DEPTH_MAX + STRIDE, 100_000])
@pytest.mark.parametrize("long", ["", "a" * 100_000, "é" * 10_000])
def test_what_is_nested_too_deeply_is_refused_before_it_is_decoded(depth: int, long: str) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"x":%b,"y":"%b"}' % (nested(depth), long.encode())
    for read in (read_chat, openai_chat.parse_request):
        with pytest.raises(InvalidRequest, match="nested too deeply") as caught:
            read(body)
        assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("depth", [1, 400, 4_000])
def test_what_a_provider_nests_breaks_nothing(depth: int) -> None:
    """Of thoughts in thoughts, which nobody sends, only the outer ones are read."""
    request = openai_chat.parse_request(b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')
    thoughts = '[{"type":"thinking","text":"a","thinking":' * depth + "[]" + "}]" * depth
    chunk = '{"choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":' + thoughts + "}]}}]}"
    try:
        events = EventParser(request.request).feed("", chunk.encode())
    except UpstreamInvalid:
        assert depth > 100
    else:
        assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "a"


@pytest.mark.parametrize("depth", [0, 930, 4_000])
@pytest.mark.parametrize("dialect", ["openai_chat", "openai_responses", "anthropic_messages"])
def test_no_address_hides_behind_levels(dialect: DialectName, depth: int) -> None:
    url = '"http://169.254.169.254/a.png"'
    part = {
        "openai_chat": '{"type":"image_url","image_url":{"url":%s}}',
        "openai_responses": '{"type":"input_image","image_url":%s}',
        "anthropic_messages": '{"type":"image","source":{"type":"url","url":%s}}',
    }[dialect].replace("%s", url)
    content = f'[{{"role":"user","content":[{"[" * depth}{"]" * depth}{"," if depth else ""}{part}]}}]'
    body = f'{{"model":"m","max_tokens":5,"store":false,"messages":{content},"input":{content}}}'.encode()
    try:
        head = PASSING[dialect].read_head(body)
    except InvalidRequest:
        assert depth > 900
    else:
        assert PASSING[dialect].inside(Inbound(dialect, body, head))
