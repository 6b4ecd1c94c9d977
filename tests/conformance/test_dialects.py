"""Every dialect is the inverse of itself: what it renders it parses back, within what it can say."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.aws import MessageSplitter
from adapters.dialects import (
    anthropic_messages,
    bedrock_converse,
    gemini,
    openai_chat,
    openai_chat_events,
    openai_chat_requests,
    openai_responses,
    openai_wire,
)
from adapters.dialects.client import EventParser, Style
from adapters.sse import EventSplitter
from adapters.types import ChatRequest, ChoiceFinished, Message
from tests.adapters.dialects.replay import replayed
from tests.conformance.conversations import Words, for_providers, requests, streams

HEAD = openai_wire.ResponseHead("id-1", 1700000000, "m", "fp_1")


class Inverse(msgspec.Struct, frozen=True, kw_only=True):
    """Both halves of a dialect."""

    words: Words
    render_request: Callable[[ChatRequest], bytes]
    parse_request: Callable[[bytes], ChatRequest]
    renderer: Callable[[], openai_wire.EventRenderer]
    parser: Callable[[], EventParser]
    splitter: Callable[[], EventSplitter | MessageSplitter] = EventSplitter


# A provider that departs from OpenAI's dialect wherever that says more.
EVERYTHING = Style(
    developer_role=True, reasoning="reasoning", thoughts="reasoning_details", cache_control=True, extra_sampling=True
)
ASKED = ChatRequest("m", (Message("user", "hi"),))

DIALECTS: dict[str, Inverse] = {
    "anthropic_messages": Inverse(
        words=Words(
            model="claude-sonnet-4-6",
            lifetimes=("5m", "1h"),
            tool_markers=True,
            call_markers=True,
            image_urls=True,
            documents=True,
            document_urls=True,
            tool_images=True,
            tool_errors=True,
            redacted=True,
            parallel=True,
            strict=True,
            efforts=("low", "medium", "high", "xhigh", "max"),
            hides=True,
            schema_param="output_config.format",
            end_user=True,
            stop_sequence=True,
            details=(
                ChoiceFinished(0, "content_filter", detail="refusal"),
                ChoiceFinished(0, "length", detail="model_context_window_exceeded"),
                ChoiceFinished(0, "stop", detail="pause_turn"),
            ),
            refusals=True,
            cache_writes=True,
            long_writes=True,
            reasoning_usage=True,
        ),
        render_request=lambda request: anthropic_messages.render_request(request, Style()),
        parse_request=lambda body: anthropic_messages.parse_request(body).request,
        renderer=lambda: anthropic_messages.ChunkRenderer(HEAD, openai_wire.Inbound(ASKED, stream=True)),
        parser=lambda: anthropic_messages.EventParser(ASKED),
    ),
    "gemini": Inverse(
        words=Words(
            model="gemini-2.5-flash",
            image_urls=True,
            documents=True,
            document_urls=True,
            tool_errors=True,
            signature="gemini:",
            call_signatures=True,
            narrowed=True,
            temperature_max=2.0,
            both_filters=True,
            seed=True,
            penalties=True,
            budgets=True,
            schema_param="generationConfig.responseJsonSchema",
            json_object=True,
            choices_max=3,
            details=(
                ChoiceFinished(0, "content_filter", detail="SAFETY"),
                ChoiceFinished(0, "content_filter", detail="PROHIBITED_CONTENT"),
                ChoiceFinished(0, "stop", detail="OTHER"),
            ),
            refusals=True,
            reasoning_usage=True,
            whole_calls=True,
        ),
        render_request=lambda request: gemini.render_request(request, Style()),
        parse_request=lambda body: gemini.parse_request(body, "gemini-2.5-flash").request,
        renderer=lambda: gemini.ChunkRenderer(HEAD, openai_wire.Inbound(ASKED, stream=True)),
        parser=lambda: gemini.EventParser(ASKED),
    ),
    "bedrock_converse": Inverse(
        words=Words(
            model="anthropic.claude-sonnet-4-6-v1:0",
            lifetimes=("5m", "1h"),
            tool_markers=True,
            call_markers=True,
            documents=True,
            tool_images=True,
            result_markers=False,
            tool_errors=True,
            redacted=True,
            strict=True,
            forbids_calls=False,
            efforts=("low", "medium", "high", "xhigh", "max"),
            hides=True,
            schema_param="outputConfig.textFormat",
            stop_sequence=True,
            details=(
                ChoiceFinished(0, "content_filter"),
                ChoiceFinished(0, "content_filter", detail="guardrail_intervened"),
                ChoiceFinished(0, "length", detail="model_context_window_exceeded"),
                ChoiceFinished(0, "stop", detail="malformed_model_output"),
            ),
            cache_writes=True,
            long_writes=True,
            prompt_known=False,
        ),
        render_request=lambda request: bedrock_converse.render_request(request, Style()),
        parse_request=lambda body: bedrock_converse.parse_request(body, "anthropic.claude-sonnet-4-6-v1:0").request,
        renderer=lambda: bedrock_converse.ChunkRenderer(HEAD, openai_wire.Inbound(ASKED, stream=True)),
        parser=lambda: bedrock_converse.EventParser(ASKED),
        splitter=MessageSplitter,
    ),
    "openai_chat": Inverse(
        words=Words(
            model="m",
            lifetimes=("5m", "1h"),
            image_urls=True,
            result_markers=False,
            prompt_known=False,
            redacted=True,
            parallel=True,
            strict=True,
            temperature_max=2.0,
            both_filters=True,
            seed=True,
            penalties=True,
            efforts=("minimal", "low", "medium", "high", "xhigh", "max"),
            budgets=True,
            hides=True,
            schema_param="response_format",
            json_object=True,
            end_user=True,
            choices_max=4,
            reasoning_usage=True,
        ),
        render_request=lambda request: openai_chat_requests.render_request(request, EVERYTHING),
        parse_request=lambda body: openai_chat.parse_request(body).request,
        renderer=lambda: openai_chat.ChunkRenderer(HEAD, openai_wire.Inbound(ASKED, stream=True, include_usage=True)),
        parser=lambda: openai_chat_events.EventParser(ASKED),
    ),
    "openai_responses": Inverse(
        words=Words(
            model="m",
            image_urls=True,
            documents=True,
            document_urls=True,
            tool_images=True,
            prompt_known=False,
            signature="openai:",
            parallel=True,
            strict=True,
            narrowed=True,
            temperature_max=2.0,
            both_filters=True,
            top_k=False,
            efforts=("minimal", "low", "medium", "high", "xhigh", "max"),
            stops=False,
            schema_param="text.format",
            json_object=True,
            end_user=True,
            reasoning_usage=True,
        ),
        render_request=lambda request: openai_responses.render_request(request, Style()),
        parse_request=lambda body: openai_responses.parse_request(body).request,
        renderer=lambda: openai_responses.ChunkRenderer(
            HEAD, openai_responses.ResponsesInbound(request=ASKED, stream=True, thoughts=True)
        ),
        parser=lambda: openai_responses.EventParser(ASKED),
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_requests(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    request = data.draw(requests(dialect.words))
    assert for_providers(dialect.parse_request(dialect.render_request(request))) == request


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_streams(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    events = data.draw(streams(dialect.words))
    frames = b"".join(map(dialect.renderer().render, events))
    at = data.draw(st.integers(0, len(frames)))
    assert replayed(dialect.parser(), (frames[:at], frames[at:]), dialect.splitter()) == events
