"""Tools explained in words."""

from __future__ import annotations

from adapters.llama_cpp.teaching import teach
from adapters.types import Message, Tool, ToolCall

CLOCK = Tool("now", "The time.", b'{"type":"object"}')
ASKED = Message("user", "What time is it?")


def test_tools_go_to_the_system_message() -> None:
    for turns in ((Message("system", "Be brief."), ASKED), (ASKED,)):
        first, *rest = teach(turns, (CLOCK,))
        assert first.role == "system" and rest == [ASKED]
        assert '{"name":"now","description":"The time.","parameters":{"type":"object"}}' in first.text
        assert "<tool_call>" in first.text and ("Be brief." in first.text) == (len(turns) > 1)
    assert teach((ASKED,), ()) == (ASKED,)


def test_calls_and_results_become_text() -> None:
    turns = (
        Message("assistant", "Wait.", tool_calls=(ToolCall("c1", "now", '{"a": 1}'), ToolCall("c2", "now", "{}"))),
        Message("tool", "5 pm", tool_call_id="c1"),
    )
    said, heard = teach(turns, ())
    call = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    assert said.text == f"Wait.\n{call}\n" + call.replace('{"a": 1}', "{}") and not said.tool_calls
    assert (heard.role, heard.text) == ("user", "<tool_response>\n5 pm\n</tool_response>")
