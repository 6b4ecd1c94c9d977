"""Tools explained in words."""

from __future__ import annotations

from adapters.llama_cpp.teaching import spell, teach
from adapters.llama_cpp.tools import GENERIC, named
from adapters.types import Message, Tool, ToolCall

CLOCK = Tool("now", "The time.", b'{"type":"object"}')
ASKED = Message("user", "What time is it?")


def test_tools_go_to_the_system_message() -> None:
    for turns in ((Message("system", "Be brief."), ASKED), (ASKED,)):
        first, *rest = teach(turns, (CLOCK,), GENERIC)
        assert first.role == "system" and rest == [ASKED]
        assert '{"name":"now","description":"The time.","parameters":{"type":"object"}}' in first.text
        assert "<tool_call>" in first.text and ("Be brief." in first.text) == (len(turns) > 1)
    assert teach((ASKED,), (), GENERIC) == (ASKED,)


def test_tools_are_called_as_the_models_format_has_it() -> None:
    text = teach((ASKED,), (CLOCK,), named("granite-3"))[0].text
    assert '<|tool_call|>[{"name": "the_function", "arguments": {"the_parameter": "its value"}}]' in text
    assert "<tool_response>" not in text


def test_calls_and_results_become_text() -> None:
    turns = (
        Message("assistant", "Wait.", tool_calls=(ToolCall("c1", "now", '{"a": 1}'), ToolCall("c2", "now", "{}"))),
        Message("tool", "5 pm", tool_call_id="c1"),
    )
    said, heard = spell(turns, GENERIC)
    call = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    assert said.text == f"Wait.\n{call}\n" + call.replace('{"a": 1}', "{}") and not said.tool_calls
    assert (heard.role, heard.text) == ("user", "<tool_response>\n5 pm\n</tool_response>")


def test_results_of_several_calls_are_one_message() -> None:
    results = (Message("tool", "5 pm", tool_call_id="c1"), Message("tool", "6 pm", tool_call_id="c2"), ASKED)
    told, asked = spell(results, GENERIC)
    assert told.text.count("<tool_response>") == 2 and asked == ASKED
    assert spell(results, named("lfm2")) == results


def test_calls_are_spelt_in_the_models_format() -> None:
    turn = Message("assistant", tool_calls=(ToolCall("c1", "now", '{"zone": "utc"}'), ToolCall("c2", "now", "no JSON")))
    (said,) = spell((turn,), named("lfm2"))
    assert said.text == '<|tool_call_start|>[now(zone="utc"), now()]<|tool_call_end|>' and not said.tool_calls
