from __future__ import annotations

import json
import random

import pytest

from adapters.dialects.splicing import members, splice
from adapters.errors import InvalidRequest


def spliced(body: bytes, replaced: dict[str, bytes] | None = None, added: dict[str, bytes] | None = None) -> bytes:
    return b"".join(splice(body, replaced or {}, added or {}))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"NEW"}'),
        (b' {\n"model" :\t"a" , "b":[1.0,1e5]} \n', b' {\n"model" :\t"NEW" , "b":[1.0,1e5]} \n'),
        (b'{"a":{"model":"x"},"model":"a"}', b'{"a":{"model":"x"},"model":"NEW"}'),
        (b'{"model":"a","b":"\\"model\\":1"}', b'{"model":"NEW","b":"\\"model\\":1"}'),
        (b'{"b":"model","model":"a"}', b'{"b":"model","model":"NEW"}'),
        (b'{"model":"a\\"b\\\\","c":1}', b'{"model":"NEW","c":1}'),
        (b'{"x":"\\u00e9","model":"a"}', b'{"x":"\\u00e9","model":"NEW"}'),
        (b'{"mod\\u0065l":"a","x":{"model":"b"}}', b'{"mod\\u0065l":"NEW","x":{"model":"b"}}'),
        (
            b'{"\xc3\xbc":"\xf0\x9f\x98\x80","model":"a","x":["model"]}',
            b'{"\xc3\xbc":"\xf0\x9f\x98\x80","model":"NEW","x":["model"]}',
        ),
        (
            b'{"x":[{"model":[{}]}],"model":"a","y":null,"z":-1.5E+3}',
            b'{"x":[{"model":[{}]}],"model":"NEW","y":null,"z":-1.5E+3}',
        ),
    ],
)
def test_only_the_member_is_replaced(body: bytes, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spliced(body, {"model": b'"NEW"'}) == expected
    monkeypatch.setattr("adapters.dialects.splicing.SEARCHED_BYTES_MAX", 0)
    assert spliced(body, {"model": b'"NEW"'}) == expected


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":"a"}',
        b'{"model":"a","n":1,"n":12,"model":"b"}',
        b'{"n":12,"model":"a","n":1,"model":"b"}',
        b'{"model":"a","x":1,"mod\\u0065l":"b"}',
        b'{"\\u006D\\u006F\\u0064\\u0065\\u006C":"a","model":"b"}',
        b'{"model":"a","x":{"model":"c"},"model":"b"}',
    ],
)
def test_a_member_that_is_there_twice_is_refused(body: bytes, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr("adapters.dialects.splicing.SEARCHED_BYTES_MAX", 0)
    with pytest.raises(InvalidRequest) as refused:
        spliced(body, {"model": b'"NEW"'})
    assert refused.value.param == "model"


def test_members_are_added_in_front_and_objects_replaced() -> None:
    body = b'{ "model":"a", "stream_options" : {"x": [1, 2]} }'
    replaced = {"stream_options": b'{"include_usage":true}', "model": b'"b"'}
    expected = b'{"max_tokens":5, "model":"b", "stream_options" : {"include_usage":true} }'
    assert spliced(body, replaced, {"max_tokens": b"5"}) == expected


@pytest.mark.parametrize("large", [False, True])
def test_random_objects_stay_what_they_are(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr("adapters.dialects.splicing.SEARCHED_BYTES_MAX", 0)
        monkeypatch.setattr("adapters.dialects.splicing.COPIED_BYTES_MAX", 0)
    chance = random.Random(7)
    texts = ["model", '"model"', "\\", "ü", "\u2028", "a\nb", "stream", ""]

    def value(depth: int) -> object:
        match chance.randrange(8 if depth else 5):
            case 0:
                return chance.choice(texts)
            case 1:
                return chance.choice([None, True, 1.5, -3, 10**20])
            case 2 | 3:
                return chance.choice(texts) * 3
            case 4:
                return []
            case 5:
                return [value(depth - 1) for _ in range(3)]
            case _:
                return {chance.choice(texts): value(depth - 1) for _ in range(3)}

    for _ in range(2000):
        fields = {chance.choice(texts) + str(i): value(3) for i in range(3)}
        items = [*fields.items(), ("model", "old")]
        chance.shuffle(items)
        ascii_only, indent = chance.random() < 0.5, chance.choice([None, 1])
        body = json.dumps(dict(items), ensure_ascii=ascii_only, indent=indent).encode()
        expected = json.dumps({**dict(items), "model": "new"}, ensure_ascii=ascii_only, indent=indent).encode()
        assert spliced(body, {"model": b'"new"'}) == expected
        assert [name.encode("latin-1").decode() if name.isascii() else "" for name, _, _ in members(body)][:1]
