"""Every row of the table: what its models write comes back as calls, however it is cut, broken or mixed with text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp import reasoning, tools
from adapters.llama_cpp.formats.reader import CallPiece, Piece, ReasoningPiece, TextPiece
from adapters.llama_cpp.formats.row import NAME, ToolFormat
from adapters.llama_cpp.output import OutputParser
from adapters.llama_cpp.templates import CHATML
from adapters.llama_cpp.tools import FORMATS, GENERIC, named, sniff
from adapters.types import Tool
from tests.adapters.llama_cpp.written_calls import Call, written

ROWS = [*FORMATS, GENERIC]
WEATHER = Tool(
    "get_weather",
    "The weather.",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "place": {"type": "object"},
                "note": {"type": ["string", "null"]},
                "factor": {"type": "number"},
            },
        }
    ).encode(),
)
CLOCK = Tool("now", "The time.", b'{"type":"object","properties":{}}')
TOOLS = (WEATHER, CLOCK)

SIMPLE: Call = ("get_weather", {"city": "Paris"})
UNICODE: Call = ("get_weather", {"city": "Zürich 東京 🌍", "days": 3})
NESTED: Call = (
    "get_weather",
    {
        "city": "line one\nline two, {x: [1]} (y) </a>",
        "days": -2,
        "exact": True,
        "tags": ["a", "b c", "d]"],
        "place": {"name": "x}", "at": {"lat": 1.5, "ids": [1, 2, []]}, "none": None},
        "note": None,
        "factor": 2.5,
    },
)
EMPTY: Call = ("now", {})
CALLS = {"simple": [SIMPLE], "unicode": [UNICODE], "nested": [NESTED], "empty": [EMPTY], "two": [UNICODE, EMPTY]}


def parser(row: ToolFormat, **more: Any) -> OutputParser:
    numbers = itertools.count()
    return OutputParser(row, more.pop("thoughts", None), lambda: f"call_{next(numbers)}", TOOLS, **more)


def read(reader: OutputParser, pieces: Sequence[str]) -> tuple[str, str, list[Call]]:
    """Text, thoughts and calls, after checking the order and the ids of what was streamed."""
    streamed: list[Piece] = [piece for text in pieces for piece in reader.push(text)]
    streamed += reader.finish()
    calls: list[tuple[str, str]] = []
    for piece in streamed:
        if isinstance(piece, CallPiece):
            if piece.name is not None:
                assert (piece.index, piece.id) == (len(calls), f"call_{len(calls)}")
                calls.append((piece.name, piece.arguments))
            else:
                assert (piece.index, piece.id) == (len(calls) - 1, None)
                calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
        else:
            assert piece.text
    text = "".join(piece.text for piece in streamed if isinstance(piece, TextPiece))
    thoughts = "".join(piece.text for piece in streamed if isinstance(piece, ReasoningPiece))
    return text, thoughts, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_calls_come_back_cut_at_every_character(row: ToolFormat, calls: list[Call]) -> None:
    if row.single:
        calls = calls[:1]
    text = written(row, calls)
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(1, len(text)))):
        reader = parser(row)
        assert read(reader, pieces) == ("", "", calls)
        assert reader.called and not reader.malformed


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_text_before_and_after(row: ToolFormat) -> None:
    if row.anchored or row.primed or row.address:
        pytest.skip("its calls begin an answer")
    text = f"Let me see.\n\n{written(row, [SIMPLE])}\nDone."
    for pieces in ([text], list(text)):
        shown, _, calls = read(parser(row), pieces)
        assert (shown, calls) == ("Let me see.Done.", [SIMPLE])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_at_most_one_call_where_calls_are_not_parallel(row: ToolFormat) -> None:
    shown, _, calls = read(parser(row, parallel=False), [written(row, [SIMPLE, EMPTY])])
    assert calls == [SIMPLE] and shown == ""


BREAKS: dict[str, Callable[[ToolFormat], str]] = {
    "unknown name": lambda row: written(row, [("other", {"city": "Paris"})]),
    "cut before the name": lambda row: written(row, [SIMPLE]).partition("get_weather")[0],
    "cut in the name": lambda row: written(row, [SIMPLE]).partition("weather")[0],
    "no call": lambda row: row.trigger + " is how calls begin",
}


@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_not_a_call_stays_text(row: ToolFormat, kind: str) -> None:
    text = BREAKS[kind](row)
    for pieces in ([text], list(text)):
        reader = parser(row)
        shown, _, calls = read(reader, pieces)
        for skipped in (row.address.replace(NAME, "other"), *row.skips):
            text = text.replace(skipped, "")
        assert not calls and not reader.called
        assert shown.split() == text.split()
        if len(row.trigger) > 1 and row.trigger in text:
            assert reader.malformed


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_call_that_breaks_off_keeps_what_it_got(row: ToolFormat) -> None:
    whole = written(row, [NESTED])
    reader = parser(row)
    pieces = [piece for piece in reader.push(whole[: whole.index("line two")]) if isinstance(piece, CallPiece)]
    pieces += [piece for piece in reader.finish() if isinstance(piece, CallPiece)]
    assert pieces[0].name == "get_weather" and reader.malformed
    assert "".join(piece.arguments for piece in pieces).startswith('{"city": "line one')


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_no_piece_of_a_call_that_was_cut_is_text(row: ToolFormat) -> None:
    whole = written(row, [UNICODE])
    for end in range(1, len(whole)):
        reader = parser(row)
        streamed = [*reader.push(whole[:end]), *reader.finish()]
        if reader.called:
            assert not any(isinstance(piece, TextPiece) for piece in streamed), whole[:end]


JSON_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<>\\`'\"[]{}()｜|"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"\A[a-z_]{1,8}\Z"), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": JSON_TEXT,
        "days": st.integers(-(2**53), 2**53),
        "exact": st.booleans(),
        "tags": st.lists(JSON_TEXT, max_size=3),
        "place": st.dictionaries(st.from_regex(r"\A[a-z_]{1,8}\Z"), JSON, max_size=3),
        "factor": st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 3)),
    },
)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@given(st.lists(ARGUMENTS, min_size=1, max_size=3), st.data())
def test_whatever_is_written_is_read(row: ToolFormat, several: list[dict[str, Any]], data: st.DataObject) -> None:
    if row.body == "elements":
        # Inside of an object whose schema says nothing, text that looks like a number is one.
        several = [{key: value for key, value in one.items() if key != "place"} for one in several]
    calls: list[Call] = [("get_weather", arguments) for arguments in several[: 1 if row.single else 3]]
    text = written(row, calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert read(parser(row), pieces) == ("", "", calls)


# Recorded shapes, each as its family's documentation or template has it.
PREFIX = "]<]minimax[>["
SHAPES: list[tuple[str, str, str, list[Call]]] = [
    ("hermes", '<tool_call>{"name":"get_weather","arguments":{"city":"Paris"}}</tool_call>', "", [SIMPLE]),
    ("hermes", '<tool_call>\n{"arguments": {"city": "Paris"}, "name": "get_weather"}\n</tool_call>', "", [SIMPLE]),
    ("llama-json", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [SIMPLE]),
    ("llama-json", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [SIMPLE]),
    ("llama-json", '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}', "", [SIMPLE]),
    ("llama-json", '{"type": "answer", "city": "Paris"}', '{"type": "answer", "city": "Paris"}', []),
    ("llama-pythonic", "[get_weather(city='Paris'), now()]", "", [SIMPLE, EMPTY]),
    ("llama-pythonic", '<|python_start|>[get_weather("Paris")]<|python_end|>', "<|python_end|>", [SIMPLE]),
    ("llama-pythonic", "[1, 2] are numbers", "[1, 2] are numbers", []),
    ("llama-pythonic", '[get_weather(city="\\u00fc\\x41\\n\\q")]', "", [("get_weather", {"city": "üA\n\\q"})]),
    ("mistral-list", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]',
     "", [SIMPLE]),
    ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}', "", [SIMPLE]),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}', "", [SIMPLE, EMPTY]),
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", [SIMPLE]),
    ("deepseek-v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
     '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```'
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "", [SIMPLE, EMPTY]),
    ("deepseek-v3.1", "Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
     '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', "Yes.", [SIMPLE]),
    ("qwen3-coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
     "</parameter>\n</function>\n</tool_call>", "", [("get_weather", {"city": "Paris", "days": 3})]),
    ("qwen3-coder", "<function=get_weather>\n<parameter=city>\n<b>\n\n</parameter>\n</function>\n</tool_call>", "",
     [("get_weather", {"city": "<b>\n"})]),
    ("qwen3-coder", "<tool_call><function=get_weather><parameter=unknown>[1, 2]</parameter></function></tool_call>", "",
     [("get_weather", {"unknown": [1, 2]})]),
    ("qwen3-coder", "<tool_call><function=get_weather><parameter=exact>True</parameter></function></tool_call>", "",
     [("get_weather", {"exact": True})]),
    ("qwen3-coder", '<function=get_weather>\n<parameter=tags>\n["</parameter>"]\n</parameter>\n</function>', "",
     [("get_weather", {"tags": ["</parameter>"]})]),
    ("seed-oss", "<seed:tool_call>\n<function=get_weather>\n<parameter=tags>['a', \"b's\"]</parameter>\n"
     "<parameter=place>{'x': None, 'y': [True]}</parameter>\n<parameter=city>['a']</parameter>\n</function>\n"
     "</seed:tool_call>", "",
     [("get_weather", {"tags": ["a", "b's"], "place": {"x": None, "y": [True]}, "city": "['a']"})]),
    ("seed-oss", "<seed:tool_call>\n<function=get_weather>\n<parameter=tags>['a', </parameter>\n<parameter=place>"
     "{'x': 1}}</parameter>\n</function>\n</seed:tool_call>", "",
     [("get_weather", {"tags": "['a', ", "place": "{'x': 1}}"})]),
    ("glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
     "", [SIMPLE]),
    ("glm", "<tool_call>get_weather<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>", "",
     [("get_weather", {"days": 3})]),
    ("kimi-k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
     '{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
     "<|tool_call_end|><|tool_calls_section_end|>", "", [SIMPLE, EMPTY]),
    ("harmony", '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}',
     "", [SIMPLE]),
    ("harmony", ' to=functions.get_weather<|channel|>commentary json<|message|>{"city":"Paris"}', "", [SIMPLE]),
    ("harmony", "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant<|channel|>commentary"
     ' to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>', "Let me look.", [SIMPLE]),
    ("harmony", "<|channel|>final<|message|>Hello.", "Hello.", []),
    ("harmony", "<|channel|>commentary to=assistant<|channel|>final<|message|>Hello.", "Hello.", []),
    ("kimi-k2", '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}'
     "<|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}", "", [SIMPLE, EMPTY]),
    ("kimi-k3", '<|open|>response<|sep|>Yes.<|close|>response<|sep|><|open|>tools<|sep|><|open|>call '
     'tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>'
     '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
     '<|open|>call tool="now" index="2"<|sep|>'
     "<|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|><|end_of_msg|>", "Yes.",
     [("get_weather", {"city": "Paris", "days": 3}), EMPTY]),
    ("kimi-k3", "Hello.<|close|>response<|sep|><|close|>message<|sep|>", "Hello.", []),
    ("hy3", "<tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n<arg_key:opensource>days"
     "</arg_key:opensource>\n<arg_value:opensource>3</arg_value:opensource>\n</tool_call:opensource>\n"
     "<tool_call:opensource>now<tool_sep:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>", "",
     [("get_weather", {"days": 3}), EMPTY]),
    ("muse", ' to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter '
     'name="city">Paris</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>\n</atem:invoke>\n'
     '</atem:function_calls><|eom|><|start|>assistant to=now<|message|><atem:function_calls>\n<atem:invoke name="now">'
     "\n</atem:invoke>\n</atem:function_calls><|eot|>", "", [("get_weather", {"city": "Paris", "days": 3}), EMPTY]),
    ("muse", " to=user<|message|>Yes.<|eom|><|start|>assistant to=now<|message|><atem:function_calls>\n<atem:invoke "
     'name="now">\n</atem:invoke>\n</atem:function_calls>', "Yes.", [EMPTY]),
    ("muse", "<|message|>Hello.<|eot|>", "Hello.", []),
    ("muse", " to=someone, who is to=nobody", " to=someone, who is to=nobody", []),
    ("minimax-m3", '</mm:think>Yes.~<tool_call>\n~<invoke name="get_weather">~<city>Paris~</city>~<tags>\n'
     "~<item>a~</item>\n~<item>3~</item>~</tags>~<place>~<x>1.5~</x>~<ids>~<item>~<a>b~</a>~</item>~</ids>~</place>~</invoke>\n"
     '~<invoke name="now">~</invoke>\n~</tool_call>'.replace("~", PREFIX), "Yes.",
     [("get_weather", {"city": "Paris", "tags": ["a", "3"], "place": {"x": 1.5, "ids": [{"a": "b"}]}}), EMPTY]),
    ("minimax-m3", '~<tool_call>~<invoke name="get_weather">~<tags>~</tags>~<place>{"a": [1]}~</place>~<days>~</days>'
     "~</invoke>".replace("~", PREFIX), "", [("get_weather", {"tags": [], "place": {"a": [1]}, "days": None})]),
    ("olmo-3", 'Yes.<function_calls>get_weather(city="Paris", exact=true, note=null)\nnow()</function_calls>', "Yes.",
     [("get_weather", {"city": "Paris", "exact": True, "note": None}), EMPTY]),
    ("olmo-3", "<function_calls>\n[get_weather(city='Paris', exact=True)]\n</function_calls>", "",
     [("get_weather", {"city": "Paris", "exact": True})]),
    ("solar-open", "<|content|>Yes.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5"
     '<|tool_call:name|>get_weather<|tool_call:args|>{"city": "Paris"}<|tool_call:end|>'
     "<|tool_call:begin|><|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|><|calls|>", "Yes.", [SIMPLE, EMPTY]),
    ("granite-3", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", [SIMPLE]),
    ("phi-4", 'functools[{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", [SIMPLE]),
    ("command-r7b", '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
     '{"city": "Paris"}}\n]<|END_ACTION|>', "", [SIMPLE]),
    ("command-r7b", "<|START_RESPONSE|>Hello.<|END_RESPONSE|>", "Hello.", []),
    ("apertus", '<|tools_prefix|>[{"get_weather": {"city": "Paris"}}, {"now": {}}]<|tools_suffix|>', "",
     [SIMPLE, EMPTY]),
    ("gigachat-3", 'Yes.<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "get_weather", "arguments": '
     '{"city": "Paris"}}', "Yes.", [SIMPLE]),
    ("gigachat-3.1", '<|function_call|>{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [SIMPLE]),
    ("minicpm", '<function name="get_weather"><param name="city"><![CDATA[<b></param>]]></param><param name="days">'
     "<![CDATA[3]]></param></function>", "", [("get_weather", {"city": "<b></param>", "days": 3})]),
    ("gemma-4", "Hello.<channel|>", "Hello.", []),
    ("command-r", 'Action:\n```json\n[{"tool_name": "get_weather", "parameters": {"city": "Paris"}}]\n```', "",
     [SIMPLE]),
    ("command-r", 'Action: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": {\n'
     '            "city": "Paris"\n        }\n    }\n]```', "", [SIMPLE]),
    ("functionary-v3.2", 'get_weather\n{"city": "Paris"}>>>now\n{}', "", [SIMPLE, EMPTY]),
    ("functionary-v3.2", 'all\nLet me see.>>>get_weather\n{"city": "Paris"}', "Let me see.", [SIMPLE]),
    ("functionary-v3.2", "all\nHello.", "Hello.", []),
    ("functionary-v3.1", '<function=get_weather>{"city": "Paris"}</function>', "", [SIMPLE]),
    ("gemma-code", "```tool_code\nget_weather(city='Paris')\nnow()\n```", "", [SIMPLE, EMPTY]),
    ("function-gemma", "<start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>",
     "", [SIMPLE]),
    ("gemma-4", '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3,exact:true}<tool_call|>', "",
     [("get_weather", {"city": "Paris", "days": 3, "exact": True})]),
    ("lfm2", '<|tool_call_start|>[get_weather(city="Paris", place={"a": True, "b": null})]<|tool_call_end|>', "",
     [("get_weather", {"city": "Paris", "place": {"a": True, "b": None}})]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "shown", "calls"), SHAPES)
def test_recorded_shapes(name: str, text: str, shown: str, calls: list[Call]) -> None:
    for pieces in ([text], list(text)):
        assert read(parser(named(name)), pieces) == (shown, "", calls)


THOUGHTS = [
    ("think", "hermes", "<think>\nHm, <b>.\n</think>\n\nHello.", False),
    ("think", "hermes", "Hm, <b>.\n</think>\n\nHello.", True),
    ("mistral", "mistral", "[THINK]Hm, <b>.[/THINK]Hello.", False),
    ("command", "command-r7b", "<|START_THINKING|>Hm, <b>.<|END_THINKING|><|START_RESPONSE|>Hello.<|END_RESPONSE|>",
     False),
    ("seed", "seed-oss", "<seed:think>Hm, <b>.</seed:think>Hello.", False),
    ("gemma", "gemma-4", "<|channel>thought\nHm, <b>.<channel|>Hello.", False),
    ("apriel", "tool-calls-list", "Hm, <b>.\n[BEGIN FINAL RESPONSE]\nHello.", True),
    ("kimi-k3", "kimi-k3", "Hm, <b>.<|close|>think<|sep|><|open|>response<|sep|>Hello.", True),
    ("hy3", "hy3", "<think:opensource>Hm, <b>.</think:opensource>Hello.", False),
    ("solar", "solar-open", "<|think|>Hm, <b>.<|end|><|begin|>assistant<|content|>Hello.<|end|>", False),
    ("muse", "muse", " to=self<|message|>Hm, <b>.<|eom|><|start|>assistant to=user<|message|>Hello.<|eot|>", False),
    ("minimax-m3", "minimax-m3", "<mm:think>Hm, <b>.</mm:think>Hello.", False),
    ("apertus", "apertus", "<|inner_prefix|>Hm, <b>.<|inner_suffix|>Hello.", False),
    ("harmony", "harmony", "<|channel|>analysis<|message|>Hm, <b>.<|end|><|start|>assistant<|channel|>final<|message|>"
     "Hello.", False),
]  # fmt: skip


@pytest.mark.parametrize(("how", "name", "text", "thinking"), THOUGHTS)
def test_thoughts_are_told_apart(how: str, name: str, text: str, thinking: bool) -> None:
    row, thoughts = named(name), reasoning.named(how)
    for pieces in ([text], list(text)):
        found = read(parser(row, thoughts=thoughts, thinking=thinking), pieces)
        assert found == ("Hello.", "Hm, <b>.", [])
    call = text.replace("Hello.", "").replace("<|START_RESPONSE|><|END_RESPONSE|>", "") + written(row, [SIMPLE])
    call = call.replace("<|channel|>final<|message|>", "")
    for pieces in ([call], list(call)):
        found = read(parser(row, thoughts=thoughts, thinking=thinking), pieces)
        assert found == ("", "Hm, <b>.", [SIMPLE])


def test_a_call_among_thoughts_is_a_thought() -> None:
    row = named("hermes")
    text = f"<think>{written(row, [SIMPLE])}</think>No."
    assert read(parser(row, thoughts=reasoning.named("think")), [text]) == ("No.", written(row, [SIMPLE]), [])


@pytest.mark.parametrize("row", [row for row in ROWS if len(row.trigger) > 1], ids=lambda row: row.name)
def test_a_call_that_no_end_of_thoughts_stands_before(row: ToolFormat) -> None:
    if row.primed or row.address:
        pytest.skip("its calls begin an answer")
    text = f"Hm, {row.trigger[0]}.\n\n{written(row, [SIMPLE])}"
    for pieces in ([text], list(text)):
        found = read(parser(row, thoughts=reasoning.named("think"), thinking=True), pieces)
        assert found == ("", f"Hm, {row.trigger[0]}.", [SIMPLE])


def test_thoughts_about_calls_stream() -> None:
    reader = parser(named("hermes"), thoughts=reasoning.named("think"), thinking=True)
    thought = "I may write <tool_call> and a name. " + "But I do not know which one. " * 8
    shown = "".join(piece.text for piece in reader.push(thought) if isinstance(piece, ReasoningPiece))
    assert shown == thought.rstrip()


def test_thoughts_that_never_end_and_empty_ones() -> None:
    row, think = named("hermes"), reasoning.named("think")
    assert read(parser(row, thoughts=think), ["<think>Hm"]) == ("", "Hm", [])
    assert read(parser(row, thoughts=think), ["<think>\n\n</think>\n\nHi"]) == ("Hi", "", [])
    assert read(parser(row, thoughts=think), ["What is <think>?"]) == ("What is <think>?", "", [])
    assert read(parser(row, thoughts=think), ["<think></think>" * 5000 + "Hi"]) == ("Hi", "", [])


def test_markers_do_not_hide_in_each_other() -> None:
    """The search takes the first marker that is complete, which must not be inside of one that began before."""
    for row in ROWS:
        markers = OutputParser(row, None, str)._markers
        for one, other in itertools.permutations(markers, 2):
            assert other not in one[1:-1], (row.name, one, other)


MARKS = [(row.name, " ".join(row.marks)) for row in FORMATS]


@pytest.mark.parametrize(("name", "marks"), MARKS)
def test_sniffing(name: str, marks: str) -> None:
    assert sniff(marks) == name


# What tells the templates of families apart, as they spell it.
TEMPLATES: list[tuple[str, str, str]] = [
    ("kimi-k3", "kimi-k3", "{{- '<|open|>' + tag -}} {{- '<|close|>' + tag + '<|sep|>' -}} {{- '<|end_of_msg|>' -}}"),
    ("hy3", "hy3", "{%- set HYTK = ':opensource' %}{%- set a = '<think{}>'.format(HYTK) %}"
     "{%- set b = '<tool_calls{}>'.format(HYTK) %}{%- set c = '<arg_key{}>'.format(HYTK) %}"),
    ("hy3", "hy3", "<think:opensource>{{ text }}</think:opensource><tool_call:opensource>{{ name }}"
     "<tool_sep:opensource>"),
    ("olmo-3", "", "{{- '<functions>' -}}{{- tools | tojson -}}{{- '</functions>' -}}"
     "{{- '<function_calls>' + message['function_calls'] + '</function_calls>' -}}"),
    ("minimax-m3", "minimax-m3", "{%- set ns_token = ']<]minimax[>[' -%}{%- set begin = '<mm:think>' -%}"),
    ("muse", "muse", "{{- '<|start|>assistant to=self<|message|>' + message['reasoning_content'] + '<|eom|>' -}}"
     "{{- '<atem:function_calls>\\n<atem:invoke name=' -}}"),
    ("solar-open", "solar", "{{- '<|begin|>assistant<|think|>' + message.reasoning }}"
     "{{- '<|begin|>assistant<|tool_calls|>' }}{{- '<|tool_call:begin|>' + tool_call.id "
     "+ '<|tool_call:name|>' + tool_call.function.name }}"),
]  # fmt: skip


@pytest.mark.parametrize(("calls", "thoughts", "source"), TEMPLATES)
def test_templates_are_recognised(calls: str, thoughts: str, source: str) -> None:
    assert (sniff(source), reasoning.sniff(source) or "") == (calls, thoughts)


def test_templates_without_tools_or_thoughts() -> None:
    assert sniff(CHATML) is None
    assert reasoning.sniff(CHATML) is None
    assert len(set(tools.NAMES)) == len(tools.NAMES)
    assert {reasoning.sniff(row.begin + row.end) for row in reasoning.FORMATS} == {
        row.name for row in reasoning.FORMATS
    }


def test_thinking_begins_in_the_prompt() -> None:
    row = reasoning.named("think")
    assert reasoning.begun(row, "<|im_start|>assistant\n<think>\n")
    assert not reasoning.begun(row, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
