"""The grammar of every row: it takes what its models write, and whatever it lets pass is a call of the right shape."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from adapters.llama_cpp.formats.row import ToolFormat
from adapters.llama_cpp.tool_grammar import Word, tool_grammar
from adapters.llama_cpp.tools import FORMATS, GENERIC, named
from adapters.types import Tool
from tests.adapters.llama_cpp.test_formats import CALLS, CLOCK, EMPTY, NESTED, SIMPLE, WEATHER, parser, read
from tests.adapters.llama_cpp.written_calls import Call, written

ROWS = [*FORMATS, GENERIC]
TOOLS = (WEATHER, CLOCK)
STEPS_MAX = 6000


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    """One token for each byte."""
    return LLTokenizer("byte")


def words(text: str) -> list[Word]:
    return [Word(text)]


def grammar(row: ToolFormat, *, parallel: bool = True, typed: bool = True, **more: Any) -> str:
    names = frozenset({"get_weather", "now"}) if typed else frozenset()
    fields = {"start": "answer", **more}
    return tool_grammar(row, fields.pop("tools", TOOLS), words, parallel=parallel, typed=names, **fields)


def matcher(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    made = LLMatcher(tokenizer, source, log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def accepts(tokenizer: LLTokenizer, source: str, text: str) -> bool:
    reader = matcher(tokenizer, source)
    tokens = list(text.encode())
    return reader.try_consume_tokens(tokens) == len(tokens) and reader.is_accepting()


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_a_model_writes_is_allowed(
    row: ToolFormat, calls: list[Call], typed: bool, tokenizer: LLTokenizer
) -> None:
    if row.single:
        calls = calls[:1]
    text = written(row, calls)
    assert accepts(tokenizer, grammar(row, typed=typed), text)
    assert not accepts(tokenizer, grammar(row, typed=typed), text.replace("get_weather", "other") + "x")
    if len(calls) > 1:
        assert not accepts(tokenizer, grammar(row, parallel=False, typed=typed), text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_after_a_trigger(row: ToolFormat, tokenizer: LLTokenizer) -> None:
    if row.anchored or row.primed:
        pytest.skip("its calls begin an answer")
    text = written(row, [SIMPLE]).partition(row.trigger)[2]
    assert accepts(tokenizer, grammar(row, start="trigger"), text)


def walk(tokenizer: LLTokenizer, source: str, ends: list[str], seed: int) -> str:
    """A random text that the grammar lets pass, with a liking for endings, `ends` of texts among them."""
    chance = random.Random(seed)
    reader = matcher(tokenizer, source)
    written_bytes = bytearray()
    for step in range(STEPS_MAX):
        forced = reader.compute_ff_bytes()
        if forced:
            assert reader.consume_tokens(list(forced))
            written_bytes += forced
        if reader.is_stopped() or (reader.is_accepting() and chance.random() < 0.5):
            return written_bytes.decode()
        end = next((one for one in ends if reader.deep_copy().try_consume_tokens(list(one.encode())) == len(one)), "")
        if end and chance.random() < 0.2:
            assert reader.consume_tokens(list(end.encode()))
            written_bytes += end.encode()
            continue
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(reader.compute_bitmask(), np.uint8), bitorder="little"))
        # Letters only inside of text, so that what is random cannot look like a marker.
        plain = [int(byte) for byte in allowed if byte < 128 and (chr(byte).isalnum() or chr(byte) in ' "')]
        closing = [int(byte) for byte in allowed if byte < 128 and chr(byte) in '"}])<\n,|']
        choices = plain or [int(byte) for byte in allowed if byte < 128] or [int(byte) for byte in allowed]
        if closing and (step > 40 or chance.random() < 0.4):
            choices = closing
        byte = chance.choice(choices)
        assert reader.consume_token(byte)
        written_bytes.append(byte)
    raise AssertionError(f"no end in sight: {written_bytes[-100:]!r}")


KINDS: dict[str, Any] = {
    "city": str,
    "days": int,
    "exact": bool,
    "tags": list,
    "place": dict,
    "note": (str, type(None)),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_whatever_passes_is_a_call(row: ToolFormat, seed: int, tokenizer: LLTokenizer) -> None:
    ends = [row.tags.end] if row.tags else list(row.style.quotes[:1]) if row.style and not row.style.escapes else []
    ends += [f"{row.prefix}</", "/"] if row.body == "elements" else []
    text = walk(tokenizer, grammar(row, parallel=seed % 2 == 0), ends, seed)
    reader = parser(row)
    shown, _, calls = read(reader, [text])
    assert calls and not shown and not reader.malformed, text
    for name, arguments in calls:
        assert name in ("get_weather", "now")
        for key, kind in KINDS.items():
            assert isinstance(arguments.get(key, None if key not in arguments else 0), kind) or key not in arguments


TYPED = Tool(
    "pick",
    "",
    b'{"type":"object","properties":{"size":{"enum":["small","big"]},"count":{"type":"integer","minimum":3},'
    b'"at":{"$ref":"#/$defs/place"}},"required":["size","at"],"additionalProperties":false,'
    b'"$defs":{"place":{"type":"object","properties":{"x":{"type":"number"}},"required":["x"]}}}',
)
GOOD: Call = ("pick", {"size": "big", "count": 3, "at": {"x": 1.5}})
BAD: list[Call] = [
    ("pick", {"size": "huge", "count": 3, "at": {"x": 1.5}}),
    ("pick", {"size": "big", "count": "three", "at": {"x": 1.5}}),
    ("pick", {"size": "big"}),
    ("pick", {"size": "big", "at": {"x": 1.5}, "more": 1}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_arguments_keep_to_their_schema(row: ToolFormat, tokenizer: LLTokenizer) -> None:
    source = tool_grammar(row, [TYPED], words, parallel=True, start="answer", typed=frozenset({"pick"}))
    assert accepts(tokenizer, source, written(row, [GOOD]))
    for call in BAD:
        assert not accepts(tokenizer, source, written(row, [call])), call
    loose = tool_grammar(row, [TYPED], words, parallel=True, start="answer", typed=frozenset())
    assert accepts(tokenizer, loose, written(row, [BAD[0]]))


def test_control_tokens_are_written_as_such() -> None:
    def split(text: str) -> list[Word]:
        parts = re.split("(</?tool_call>)", text)
        return [Word(one, 6 + one.startswith("</") if "tool_call" in one else None) for one in parts if one]

    source = tool_grammar(named("hermes"), [CLOCK], split, parallel=False, start="answer", typed=frozenset())
    assert 'start: <[6]> "\\n" call' in source and '"}\\n" <[7]>' in source


def test_nested_values_of_code(tokenizer: LLTokenizer) -> None:
    row = named("llama-pythonic")
    text = written(row, [NESTED, EMPTY])
    assert accepts(tokenizer, grammar(row), text)
    assert not accepts(tokenizer, grammar(row), text.replace("True", "true"))
    assert '"true" | "false"' in grammar(named("olmo-3"))
