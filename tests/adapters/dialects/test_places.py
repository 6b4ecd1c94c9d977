"""Texts of requests that are passed on: where they lie, what is none, and others in their places."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.dialects.pieces import LEVELS_MAX, pieces
from adapters.dialects.places import TEXTS_MAX, TokenIds, places, put
from adapters.errors import InvalidRequest, UpstreamInvalid
from adapters.members import Members
from adapters.said import readable, saying
from adapters.types import Head, Inbound

CODE = "QUJD" * 40
NOTE = "data:text/plain;base64," + base64.b64encode(b"a note").decode()
TOOL: dict[str, Any] = {"name": "look_up", "description": "Looks up", "parameters": {"type": "object", "title": "T t"}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind", "name": "Bob"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": CODE}}]},
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "look_up", "arguments": '{"x": 1}'}}]},
    {"role": "tool", "tool_call_id": "c", "content": "found", "zz": {"unknown": ["deep"]}},
]


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        (
            {"messages": MESSAGES, "tools": [{"type": "function", "function": TOOL}], "seed": 5, "user": "me"},
            [
                *[("Be kind", "plain"), ("Bob", "fixed"), ("Hi", "plain"), ('{"x": 1}', "json"), ("found", "plain")],
                *[("deep", "plain"), ("Looks up", "plain"), ('{"type":"object","title":"T t"}', "json")],
                ("me", "plain"),
            ],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": NOTE}}]}]},
            [("a note", "plain")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": "4111 1111"}}]}]},
            [("4111 1111", "plain")],
        ),
        (
            {
                "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "5m"}}],
                "messages": [
                    {"role": "user", "content": "q"},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hm", "signature": CODE},
                            {"type": "tool_use", "id": "t", "name": "n", "input": {"to": "bob", "n": 7}},
                        ],
                    },
                ],
            },
            [("s", "plain"), ("q", "plain"), ("hm", "fixed"), ('{"to":"bob","n":7}', "json")],
        ),
        (
            {
                "instructions": "i",
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "t"}]}],
                "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
                "reasoning": {"effort": "low", "summary": "auto"},
                "include": ["reasoning.encrypted_content"],
                "metadata": {"a b": "c"},
            },
            [("i", "plain"), ("t", "plain"), ('{"type":"object"}', "fixed"), ("a b", "fixed"), ("c", "plain")],
        ),
        ({"prompt": ["one", "two"], "stop": ["end"]}, [("one", "plain"), ("two", "plain"), ("end", "plain")]),
        ({"input": "one", "tool_choice": "not an identifier"}, [("one", "plain"), ("not an identifier", "plain")]),
        ({"content": 'a"\\\n\u00e9\U0001f600'}, [('a"\\\n\u00e9\U0001f600', "plain")]),
        ({"empty": "", "none": None, "list": [], "object": {}}, []),
    ],
)
@pytest.mark.parametrize("spelling", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_texts_are_found_where_they_are(
    fields: dict[str, Any], texts: list[tuple[str, str]], spelling: dict[str, Any]
) -> None:
    body = json.dumps({"model": "m", **fields}, **spelling).encode()
    found = places(body)
    assert [(one.text, one.sort) for one in found] == texts
    assert put(body, []) == body
    for place in found:
        assert json.loads(put(body, [(place, place.text)])) == json.loads(body)


@pytest.mark.parametrize("fields", [{"prompt": [1, 2]}, {"input": [[1, 2], [3]]}])
def test_token_ids_are_told(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    with pytest.raises(TokenIds):
        places(body)
    assert asyncio.run(readable(Inbound("openai_completions", body, Head("m")))) is None


def test_the_same_member_twice_is_two_texts() -> None:
    body = rb'{"content":"one","content":"\u0074wo"}'
    assert [place.text for place in places(body)] == ["one", "two"]


def test_half_a_surrogate_cannot_be_read() -> None:
    with pytest.raises(msgspec.DecodeError):
        places(rb'{"content":"\ud800"}')


def test_only_what_changed_is_other_bytes() -> None:
    body = b'{ "messages": [\n {"content" : "a \\u0062", "x":1.50 }, {"content":"c"}], "arguments": "{ }" ,"zz":[1e2]}'
    inbound = Inbound("openai_chat", body, Head("m", members=Members({}, body), plain=True))
    where = asyncio.run(readable(inbound))
    assert where is not None and [one.text for one in where] == ["a b", "c", "{ }"]
    assert saying(inbound, where, ["a b", "c", "{ }"]) is inbound
    masked = saying(inbound, where, ["a b", "[X]", "{ }"])
    assert masked.body == body.replace(b'"c"', b'"[X]"')
    assert (masked.head.members, masked.head.plain) == (None, False)


def test_a_file_stays_one() -> None:
    body = json.dumps({"file_data": NOTE, "other": "data:text/plain;base64,%%"}).encode()
    (file, other) = places(body)
    assert (file.text, other.sort) == ("a note", "plain")
    changed = json.loads(put(body, [(file, "another")]))["file_data"]
    assert base64.b64decode(changed.partition(",")[2]) == b"another"
    (broken,) = places(b'{"file_data": "data:text/plain;base64,a"}')
    assert broken.sort == "fixed"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=12,
)


@given(body=st.dictionaries(st.sampled_from("abcd"), values, max_size=4), ascii=st.booleans(), indent=st.booleans())
def test_every_text_of_what_nobody_knows_is_found_and_can_be_replaced(body: Any, ascii: bool, indent: bool) -> None:
    def texts(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node] if node else []
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return [text for one in inner for text in texts(one)]

    encoded = json.dumps(body, ensure_ascii=ascii, indent=1 if indent else None).encode()
    found = places(encoded)
    assert [one.text for one in found] == texts(body)
    replaced = put(encoded, [(one, "x" + one.text) for one in found])
    assert texts(json.loads(replaced)) == ["x" + text for text in texts(body)]


def nested(depth: int) -> bytes:
    return b'{"input":' + b"[" * depth + b",".join([b'"a",null'] * 1000) + b"]" * depth + b"}"


def steps(work: Callable[[bytes], object], body: bytes) -> int:
    """How many lines of Python it runs, each round of a loop counted."""
    count = 0

    def note(frame: object, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        work(body)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("find", [places, pieces])
def test_how_deep_texts_lie_makes_finding_them_no_slower(find: Callable[[bytes], object]) -> None:
    assert steps(find, nested(400)) < 2 * steps(find, nested(4))


def test_what_leads_to_a_text_of_an_answer_is_bounded() -> None:
    assert {len(one.channel) for one in pieces(nested(400)).found} == {LEVELS_MAX}
    deep = b'{"choices":[{"index":1,"delta":{"content":"x"}}]}'
    (found,) = pieces(deep).found
    assert (found.choice, found.channel) == (1, ("choices", "[]", "delta", "content", "index=1"))


def test_more_texts_than_anybody_could_look_at_are_refused() -> None:
    body = b'{"%b":["a"' + b',"a"' * TEXTS_MAX + b"]}"
    with pytest.raises(InvalidRequest, match="50000 texts"):
        places(body % b"x")
    with pytest.raises(UpstreamInvalid):
        pieces(body % b"x")
    assert pieces(body % b"instructions").found == []
