"""What models write is on one line in every stream, for readers that end lines wherever Unicode does."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.dialects import anthropic_messages, gemini, openai_chat, openai_completions, openai_responses
from adapters.dialects.openai_responses.request_in import ResponsesInbound
from adapters.dialects.openai_wire import Inbound, ResponseHead
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    Event,
    Finished,
    Generation,
    Message,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

ENDS = "a\u2028b\u2029c\x85d"
TOKEN = TokenLogprob(1, -0.5, ENDS.encode(), (TopLogprob(2, -0.7, ENDS.encode()),))
HEAD = ResponseHead("resp_1", 1_700_000_000, "m", "fp")
GENERATION = Generation(logprobs=1)
CHAT = ChatRequest("m", (Message("user", "hi"),), generation=GENERATION)
COMPLETION = CompletionRequest("m", ("hi",), generation=GENERATION)
EVENTS: list[Event] = [
    Started(3),
    ReasoningDelta(0, ENDS),
    ReasoningDelta(0, "", ENDS),
    TextDelta(0, ENDS),
    TextDelta(0, ENDS, (TOKEN,)),
    ToolCallDelta(0, 0, f'{{"a":"{ENDS}', ENDS, ENDS, ENDS),
    ToolCallDelta(0, 0, f'{ENDS}"}}'),
    RefusalDelta(0, ENDS),
    ChoiceFinished(0, "stop", stop_sequence=ENDS),
    Finished(Usage(3, 5)),
]
RENDERERS: list[Any] = [
    openai_chat.ChunkRenderer(HEAD, Inbound(CHAT, stream=True)),
    openai_completions.ChunkRenderer(HEAD, Inbound(COMPLETION, stream=True)),
    openai_responses.ChunkRenderer(HEAD, ResponsesInbound(request=CHAT, stream=True, thoughts=True)),
    anthropic_messages.ChunkRenderer(HEAD, Inbound(CHAT, stream=True)),
    gemini.ChunkRenderer(HEAD, Inbound(CHAT, stream=True)),
]


@pytest.mark.parametrize("renderer", RENDERERS, ids=lambda one: one.__module__.split(".")[2])
def test_no_event_has_a_line_end_of_its_models(renderer: Any) -> None:
    stream = b"".join(renderer.render(event) for event in EVENTS)
    assert stream.decode().splitlines() == stream.decode().split("\n")[:-1]
    assert b"\\u2028b\\u2029c\\u0085d" in stream
