"""What OpenAI's dialects are said to lose is just that. The others have such tests beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from adapters.dialects import openai_chat, openai_chat_requests, openai_responses
from adapters.dialects import openai_wire as wire
from adapters.providers import PROVIDERS, ProviderKind
from adapters.types import (
    ChatRequest,
    ChoiceFinished,
    DocumentPart,
    Event,
    Finished,
    Generation,
    ImagePart,
    Message,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)

USER = Message("user", "hi")
ASK = ChatRequest("m", (USER,))
CALL = Message("assistant", None, tool_calls=(ToolCall("c1", "f", "{}"),))
RESULT = Message("tool", "18", tool_call_id="c1")
THREE = tuple(Tool(name) for name in "fgh")
DOCUMENT = DocumentPart(b"x", "application/pdf", title="a.pdf")


def with_messages(*messages: Message) -> ChatRequest:
    return replace(ASK, messages=messages)


def sampled(**sampling: Any) -> ChatRequest:
    return replace(ASK, generation=Generation(sampling=Sampling(**sampling)))


def chat(request: ChatRequest, kind: ProviderKind = "openai") -> ChatRequest:
    """The request as it is understood on the other side."""
    return openai_chat.parse_request(openai_chat_requests.render_request(request, PROVIDERS[kind].style)).request


def responses(request: ChatRequest) -> ChatRequest:
    rendered = openai_responses.render_request(request, PROVIDERS["openai"].style)
    return openai_responses.parse_request(rendered).request


def narrowed(again: Callable[[ChatRequest], ChatRequest]) -> list[str]:
    asked = replace(ASK, tools=THREE, tool_choice=ToolChoice("required", ("f", "h")))
    return [tool.name for tool in again(asked).tools]


CHAT: dict[str, Callable[[], object]] = {
    "top_k": lambda: (
        chat(replace(ASK, generation=Generation(ignore_eos=True, sampling=Sampling(top_k=4, min_p=0.1)))) == ASK
        and chat(sampled(top_k=4), "vllm") == sampled(top_k=4)
    ),
    "developer": lambda: chat(with_messages(Message("developer", "s"), USER), "groq").messages[0].role == "system",
    "names": lambda: chat(with_messages(replace(USER, name="Ann")), "groq").messages == (USER,),
    "markers": lambda: chat(with_messages(Message("user", (TextPart("hi", "5m"),)))).messages == (USER,),
    "failed tools": lambda: chat(with_messages(USER, CALL, replace(RESULT, is_error=True))).messages[2] == RESULT,
    "images in results": lambda: (
        [
            one.role
            for one in chat(
                with_messages(USER, CALL, replace(RESULT, content=(TextPart("18"), ImagePart(b"x", "image/png"))))
            ).messages
        ]
        == ["user", "assistant", "tool", "user"]
    ),
    "documents": lambda: (
        "context"
        not in str(
            json.loads(
                openai_chat_requests.render_request(
                    with_messages(Message("user", (replace(DOCUMENT, context="c", cite=True),))),
                    PROVIDERS["openai"].style,
                )
            )
        )
    ),
    "thoughts": lambda: (
        chat(
            with_messages(USER, Message("assistant", "x", reasoning="a", thoughts=(Thought("a", "s"),)), USER)
        ).messages[1]
        == Message("assistant", "x")
    ),
    "signatures of calls": lambda: (
        chat(with_messages(USER, replace(CALL, tool_calls=(ToolCall("c1", "f", "{}", "gemini:s"),)), RESULT)).messages[
            1
        ]
        == CALL
    ),
    "budget of thinking": lambda: (
        chat(replace(ASK, thinking=Thinking(True, "low", 500))).thinking == Thinking(True, "low")
    ),
    "a narrowed choice": lambda: narrowed(chat) == ["f", "h"],
    "letters of ids": lambda: len(chat(with_messages(USER, CALL, RESULT), "mistral").messages[1].tool_calls[0].id) == 9,
}

RESPONSES: dict[str, Callable[[], object]] = {
    "truncation": lambda: b"truncation" not in openai_responses.render_request(ASK, PROVIDERS["openai"].style),
    "seed": lambda: responses(sampled(seed=5)) == ASK,
    "penalties": lambda: responses(sampled(presence_penalty=1, frequency_penalty=1)) == ASK,
    "top_k": lambda: (
        responses(replace(ASK, generation=Generation(ignore_eos=True, sampling=Sampling(top_k=4, min_p=0.1)))) == ASK
    ),
    "names": lambda: responses(with_messages(replace(USER, name="Ann"))).messages == (USER,),
    "markers": lambda: responses(with_messages(Message("user", (TextPart("hi", "5m"),)))).messages == (USER,),
    "failed tools": lambda: responses(with_messages(USER, CALL, replace(RESULT, is_error=True))).messages[2] == RESULT,
    "unsigned thoughts": lambda: (
        responses(
            with_messages(USER, Message("assistant", "x", reasoning="a", thoughts=(Thought("a", "gemini:b"),)), USER)
        ).messages[1]
        == Message("assistant", "x")
    ),
    "signatures of calls": lambda: (
        responses(
            with_messages(USER, replace(CALL, tool_calls=(ToolCall("c1", "f", "{}", "gemini:s"),)), RESULT)
        ).messages[1]
        == CALL
    ),
    "budget of thinking": lambda: (
        responses(replace(ASK, thinking=Thinking(True, None, 500))).thinking.tokens_max is None
    ),
    "documents": lambda: (
        responses(with_messages(Message("user", (replace(DOCUMENT, context="c", cite=True),)))).messages
        == (Message("user", (DOCUMENT,)),)
    ),
    "stop sequence": lambda: b"STOP" not in told(ChoiceFinished(0, "stop", stop_sequence="STOP")),
    "audio tokens": lambda: b"audio" not in told(usage=Usage(5, 9, prompt_audio_tokens=2, completion_audio_tokens=2)),
    "annotations": lambda: all(isinstance(one, Started) for one in cited()),
}


def told(end: ChoiceFinished | None = None, usage: Usage | None = None) -> bytes:
    head = wire.ResponseHead("i", 0, "m", "f")
    renderer = openai_responses.ChunkRenderer(head, openai_responses.ResponsesInbound(request=ASK, stream=True))
    last = end or ChoiceFinished(0, "stop"), Finished(usage or Usage())
    events: tuple[Event, ...] = (Started(5), TextDelta(0, "x"), *last)
    return b"".join(map(renderer.render, events))


def cited() -> Sequence[Event]:
    citation = b'{"type":"response.output_text.annotation.added","annotation":{"type":"url_citation"}}'
    return openai_responses.EventParser(ASK).feed("", citation)


@pytest.mark.parametrize(
    ("losses", "lost"),
    [(CHAT, openai_chat_requests.LOST), (RESPONSES, openai_responses.LOST)],
    ids=["chat", "responses"],
)
def test_what_is_said_to_be_lost_is_just_that(losses: dict[str, Callable[[], object]], lost: Mapping[str, str]) -> None:
    assert set(losses) == set(lost)
    assert not [name for name, proof in losses.items() if not proof()]
