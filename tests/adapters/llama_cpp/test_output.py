import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.formats.reader import CallPiece, Piece, TextPiece
from adapters.llama_cpp.output import OutputParser
from adapters.llama_cpp.tools import named
from adapters.types import Tool

Calls = list[tuple[str, str]]

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


def parser(*known: str) -> OutputParser:
    numbers = itertools.count()
    tools = tuple(map(Tool, known)) or None
    return OutputParser(named("hermes"), None, lambda: f"call_{next(numbers)}", tools)


def parse(pieces: list[str], *known: str) -> tuple[str, Calls]:
    """The text and the calls, after checking the order and the ids of what was streamed."""
    reader = parser(*known)
    streamed: list[Piece] = [piece for text in pieces for piece in reader.push(text)]
    streamed += reader.finish()
    calls: Calls = []
    for piece in streamed:
        if not isinstance(piece, CallPiece):
            assert piece.text
        elif piece.name is not None:
            assert (piece.index, piece.id) == (len(calls), f"call_{len(calls)}")
            calls.append((piece.name, piece.arguments))
        else:
            assert (piece.index, piece.id) == (len(calls) - 1, None)
            calls[-1] = calls[-1][0], calls[-1][1] + piece.arguments
    assert reader.called == bool(calls)
    return "".join(piece.text for piece in streamed if isinstance(piece, TextPiece)), calls


ARGUMENTS = '{"city": "Paris"}'
READ = [
    ("Hello.", "Hello.", []),
    (" a\n", " a\n", []),
    (CALL, "", [("weather", ARGUMENTS)]),
    (f"Let me see.\n\n{CALL}\n", "Let me see.", [("weather", ARGUMENTS)]),
    (f"{CALL}\n{CALL}", "", [("weather", ARGUMENTS), ("weather", ARGUMENTS)]),
    (f"{CALL}\n Done. ", "Done. ", [("weather", ARGUMENTS)]),
    ('<tool_call>\n{"arguments": {"a": [1]}, "name": "weather"}\n</tool_call>', "", [("weather", '{"a": [1]}')]),
    ('<tool_call>{"name": "weather"}</tool_call>', "", [("weather", "{}")]),
    ('<tool_call>{"id": 7, "name": "weather", "arguments": {}, "x": null}</tool_call>', "", [("weather", "{}")]),
    ('<tool_call>{"name":"we\\u0061ther","arguments":{}}</tool_call>', "", [("weather", "{}")]),
    # The text of the arguments is the model's own, whatever is in its strings.
    (
        '<tool_call>{"name": "weather", "arguments": { "q":"}</tool_call>\\"\\\\", "r" : {"s":[{}]} }}</tool_call>',
        "",
        [("weather", '{ "q":"}</tool_call>\\"\\\\", "r" : {"s":[{}]} }')],
    ),
    # Cut after the call was announced.
    ('<tool_call>{"name": "weather", "arguments": {"city": "Pa', "", [("weather", '{"city": "Pa')]),
    ('<tool_call>{"name": "weather", "arguments": {"city": "\\', "", [("weather", '{"city": "\\')]),
    ('<tool_call>{"name": "weather", "arguments": {}', "", [("weather", "{}")]),
    ('<tool_call>{"name": "weather", "arguments": {}}</tool_', "", [("weather", "{}")]),
    # Braces too few and too many.
    (f'<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}</tool_call>x', "x", [("weather", ARGUMENTS)]),
    (f'<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}}}</tool_call>x', "x", [("weather", ARGUMENTS)]),
    ('<tool_call>{"name": "weather", "arguments": {"a": 1</tool_call>x', "x", [("weather", '{"a": 1')]),
    # A false start before a call.
    (f"<tool_call>{CALL}", "<tool_call>", [("weather", ARGUMENTS)]),
    (f"{CALL} <tool_call>no</tool_call>", "<tool_call>no</tool_call>", [("weather", ARGUMENTS)]),
    (f"a <tool <{CALL}", "a <tool <", [("weather", ARGUMENTS)]),
]


@pytest.mark.parametrize(("text", "shown", "calls"), READ)
def test_reading_whole_and_character_by_character(text: str, shown: str, calls: Calls) -> None:
    assert parse([text], "weather") == (shown, calls)
    assert parse(list(text), "weather") == (shown, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>hello</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}, "name": "other"}</tool_call>',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"arguments": {a: 1}, "name": "weather"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": null}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "wea\nther", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather" "arguments": {}}</tool_call>',
        '<tool_call>{"x": , "name": "weather"}</tool_call>',
        '<tool_call>{"x": [<], "name": "weather"}</tool_call>',
        '<tool_call>{"name": "weather", "argu',
        '<tool_call>{"name": "weather", "arguments": ',
        'a \n <tool_call> {"name": "weather',
        "</tool_call>",
    ],
)
def test_what_is_not_a_call_stays_text(text: str) -> None:
    for wrapped in (text, f" x\n{text}\ny "):
        assert parse([wrapped], "weather") == (wrapped, [])
        assert parse(list(wrapped), "weather") == (wrapped, [])


def test_without_known_tools_every_name_is_a_call() -> None:
    assert parse([CALL]) == ("", [("weather", ARGUMENTS)])


def test_pieces_come_as_early_as_they_can() -> None:
    reader = parser("weather")
    assert reader.push("Hi <") == [TextPiece("Hi")]
    assert reader.push("b> ") == [TextPiece(" <b>")]
    assert reader.push('<tool_call>{"name": "weather"') == []
    called_before = reader.called
    assert reader.push(', "arguments": {"ci') == [
        CallPiece(0, "call_0", "weather", ""),
        CallPiece(0, None, None, '{"ci'),
    ]
    assert (called_before, reader.called) == (False, True)
    assert reader.push('ty": "\\') == [CallPiece(0, None, None, 'ty": "')]
    assert reader.push('n"') == [CallPiece(0, None, None, '\\n"')]
    assert reader.push("}}</tool_call>") == [CallPiece(0, None, None, "}")]
    assert reader.finish() == []


FRAGMENTS = st.sampled_from(
    (
        *(
            "<tool_call>",
            "</tool_call>",
            '{"name": ',
            '"weather"',
            '"other"',
            ', "arguments": ',
            "{",
            "}",
            "[",
            "]",
            '"',
        ),
        *("\\", ",", ":", " ", "\n", "1", "null", "<", "é", CALL, '{"arguments": {"a":"b"}, ', '"name": "weather"'),
    )
)


@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=14).map("".join), st.data())
def test_any_split_reads_the_same_and_nothing_is_lost(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, calls = parse(pieces, "weather")
    assert (shown, calls) == parse([text], "weather")
    if not calls:
        assert shown == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), JSON), st.sampled_from([None, 2]), st.booleans(), st.booleans(), st.integers(1, 9))
def test_any_arguments_come_through_exactly(
    arguments: dict[str, object], indent: int | None, ascii_only: bool, name_last: bool, step: int
) -> None:
    written = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    parts = ['"name": "weather"', f'"arguments": {written}']
    body = ", ".join(reversed(parts) if name_last else parts)
    text = f"Look:\n<tool_call>\n{{{body}}}\n</tool_call>"
    assert parse([text[at : at + step] for at in range(0, len(text), step)], "weather") == (
        "Look:",
        [("weather", written)],
    )
