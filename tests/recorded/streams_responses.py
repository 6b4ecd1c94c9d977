"""Streams of the Responses API, byte for byte after its documentation, and what they say."""

# Each line is one event, as it was sent.
# ruff: noqa: E501
from __future__ import annotations

from adapters.types import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

STREAMS: dict[str, tuple[bytes, list[Event]]] = {
    "text": (
        b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_67","object":"response","created_at":1741290958,"status":"in_progress","error":null,"incomplete_details":null,"output":[],"usage":null}}\n\n'
        b'event: response.in_progress\ndata: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_67","status":"in_progress"}}\n\n'
        b'event: response.output_item.added\ndata: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"msg_67","type":"message","status":"in_progress","role":"assistant","content":[]}}\n\n'
        b'event: response.content_part.added\ndata: {"type":"response.content_part.added","sequence_number":3,"item_id":"msg_67","output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}\n\n'
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_67","output_index":0,"content_index":0,"delta":"Hi","logprobs":[{"token":"Hi","logprob":-0.5,"bytes":[72,105],"top_logprobs":[]}],"obfuscation":"a"}\n\n'
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":5,"item_id":"msg_67","output_index":0,"content_index":0,"delta":" \xe2\x82\xac"}\n\n'
        b'event: response.output_text.done\ndata: {"type":"response.output_text.done","sequence_number":6,"item_id":"msg_67","output_index":0,"content_index":0,"text":"Hi \xe2\x82\xac"}\n\n'
        b'event: response.completed\ndata: {"type":"response.completed","sequence_number":7,"response":{"id":"resp_67","status":"completed","usage":{"input_tokens":37,"output_tokens":11,"output_tokens_details":{"reasoning_tokens":4},"input_tokens_details":{"cached_tokens":30},"total_tokens":48}}}\n\n',
        [
            Started(0),
            TextDelta(0, "Hi", (TokenLogprob(-1, -0.5, b"Hi"),)),
            TextDelta(0, " €"),
            ChoiceFinished(0, "stop"),
            Finished(Usage(37, 11, 30, 4)),
        ],
    ),
    "thoughts and calls": (
        b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{}}\n\n'
        b'event: response.output_item.added\ndata: {"type":"response.output_item.added","output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"gAA"}}\n\n'
        b'event: response.reasoning_summary_part.added\ndata: {"type":"response.reasoning_summary_part.added","item_id":"rs_1","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""}}\n\n'
        b'event: response.reasoning_summary_text.delta\ndata: {"type":"response.reasoning_summary_text.delta","item_id":"rs_1","output_index":0,"summary_index":0,"delta":"**Thinking**"}\n\n'
        b'event: response.reasoning_summary_part.added\ndata: {"type":"response.reasoning_summary_part.added","item_id":"rs_1","output_index":0,"summary_index":1,"part":{"type":"summary_text","text":""}}\n\n'
        b'event: response.reasoning_summary_text.delta\ndata: {"type":"response.reasoning_summary_text.delta","item_id":"rs_1","output_index":0,"summary_index":1,"delta":"**Calling**"}\n\n'
        b'event: response.output_item.done\ndata: {"type":"response.output_item.done","output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"**Thinking**"}],"encrypted_content":"gAAAB=="}}\n\n'
        b'event: response.output_item.added\ndata: {"type":"response.output_item.added","output_index":1,"item":{"id":"fc_1","type":"function_call","status":"in_progress","arguments":"","call_id":"call_1","name":"f"}}\n\n'
        b'event: response.output_item.added\ndata: {"type":"response.output_item.added","output_index":2,"item":{"id":"fc_2","type":"function_call","status":"in_progress","arguments":"","call_id":"call_2","name":"g"}}\n\n'
        b'event: response.function_call_arguments.delta\ndata: {"type":"response.function_call_arguments.delta","item_id":"fc_2","output_index":2,"delta":"{}"}\n\n'
        b'event: response.function_call_arguments.delta\ndata: {"type":"response.function_call_arguments.delta","item_id":"fc_1","output_index":1,"delta":"{\\"a\\":1}"}\n\n'
        b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":1,"output_tokens":2,"total_tokens":3}}}\n\n',
        [
            Started(0),
            ReasoningDelta(0, "**Thinking**"),
            ReasoningDelta(0, "\n\n"),
            ReasoningDelta(0, "**Calling**"),
            ReasoningDelta(0, "", "openai:gAAAB=="),
            ToolCallDelta(0, 0, "", "call_1", "f"),
            ToolCallDelta(0, 0, '{"a":1}'),
            ToolCallDelta(0, 1, "", "call_2", "g"),
            ToolCallDelta(0, 1, "{}"),
            ChoiceFinished(0, "tool_calls"),
            Finished(Usage(1, 2)),
        ],
    ),
    "refused and cut": (
        b'data: {"type":"response.created","response":{}}\n\n'
        b'data: {"type":"response.refusal.delta","delta":"No"}\n\n'
        b'data: {"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"usage":null}}\n\n',
        [Started(0), RefusalDelta(0, "No"), ChoiceFinished(0, "length"), Finished(Usage())],
    ),
}
