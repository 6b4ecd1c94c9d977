from __future__ import annotations

import pytest

from adapters.relay import PASSING
from adapters.sameness import NORMALISED_BYTES_MAX, identity, keepable
from adapters.types import DialectName, Inbound


def of(body: bytes, dialect: DialectName = "openai_chat") -> bytes:
    return identity(Inbound(dialect, body, PASSING[dialect].read_head(body)))


MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
PLAIN = b'{"model":"m",' + MESSAGES + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [ {"content":"hi", "role":"user"} ],\n "model": "alias"}',
        b'{"model":"m",' + MESSAGES + b',"user":"somebody","prompt_cache_key":"c"}',
    ],
)
def test_what_is_the_same(body: bytes) -> None:
    assert of(body) == of(PLAIN)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m",' + MESSAGES + b',"temperature":0}',
        b'{"model":"m",' + MESSAGES + b',"stream":true}',
        b'{"model":"m",' + MESSAGES + b',"seed":1}',
        b'{"model":"m","messages":[{"role":"user","content":"hi "}]}',
        b'{"model":"m","messages":[{"role":"user","content":"no"}],' + MESSAGES + b"}",
        b'{"model":"m",' + MESSAGES + b',"messages":[{"role":"user","content":"no"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"no","content":"hi"}]}',
        b'{"model":"m","zz":1.0,' + MESSAGES.replace(b"hi", b"\\u0068i") + b"}",
    ],
)
def test_what_is_not(body: bytes) -> None:
    assert of(body) != of(PLAIN)


def test_numbers_and_members_stay_apart() -> None:
    bodies = [
        b'{"model":"m","seed":%b}' % seed for seed in (b"1", b"1.0", b"1e0", b'"1"', b"[1]", b"123456789012345678901")
    ]
    assert len({identity(Inbound("openai_chat", body, PASSING["openai_chat"].read_head(body))) for body in bodies}) == 6


def test_a_large_body_only_equals_itself() -> None:
    body = b'{"model":"m","messages":[],"x":"%b"}' % (b"x" * NORMALISED_BYTES_MAX)
    assert of(body) is body


def test_of_whom_it_is_makes_no_difference_to_anthropic_either() -> None:
    plain = b'{"model":"m","max_tokens":5,' + MESSAGES + b"}"
    named = b'{"model":"m","max_tokens":5,"metadata":{"user_id":"u"},' + MESSAGES + b"}"
    assert of(named, "anthropic_messages") == of(plain, "anthropic_messages")


def test_responses_repeat_for_whom_they_are() -> None:
    plain, named = (b'{"model":"m","input":"hi"%b}' % more for more in (b"", b',"user":"u"'))
    assert of(plain, "openai_responses") != of(named, "openai_responses")
    assert of(plain, "openai_responses") == of(plain.replace(b'"m"', b'"alias"'), "openai_responses")


@pytest.mark.parametrize(
    ("dialect", "answer", "kept"),
    [
        ("openai_chat", b'{"choices":[{"finish_reason":"stop"}]}', True),
        ("openai_chat", b'{"choices":[{"finish_reason": "content_filter"}]}', False),
        ("openai_chat", b'{"content":"\\"finish_reason\\":\\"content_filter\\"","content_filter_results":{}}', True),
        ("anthropic_messages", b'{"stop_reason":"refusal"}', False),
        ("openai_responses", b'{"incomplete_details":{"reason":"content_filter"}}', False),
        ("openai_responses", b'{"incomplete_details":{"reason":"max_output_tokens"}}', True),
        ("anthropic_messages", b'{"stop_reason":"max_tokens"}', True),
    ],
)
def test_which_answers_are_kept(dialect: DialectName, answer: bytes, kept: bool) -> None:
    body = b'{"model":"m","max_tokens":5,' + MESSAGES + b"}"
    assert keepable(Inbound(dialect, body, PASSING[dialect].read_head(body)), answer) is kept
