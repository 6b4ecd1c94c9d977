from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from pydantic import BaseModel

from adapters import errors
from adapters.types import (
    ChoiceFinished,
    Constraint,
    Event,
    Finished,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    Thought,
    ToolCallDelta,
    Usage,
)
from tests.fakes import DIAGNOSIS, HELLO
from tests.gateway.api.openai.door import opened
from tests.gateway.api.wire import run

ASK: Any = {"model": "m", "input": "hi"}
PATH = "/v1/responses"


def test_unary() -> None:
    async def scenario() -> None:
        async with opened(strict=True) as door:
            raw = await door.sdk.responses.with_raw_response.create(
                **ASK, instructions="Be kind.", prompt_cache_key="s"
            )
            answer = raw.parse()
            assert answer.output_text == "Hello world" and answer.status == "completed"
            assert answer.model == "org/model" and answer.instructions == "Be kind."
            assert answer.id == "resp_" + raw.headers["x-request-id"]
            assert answer.store is False
            assert answer.usage is not None and answer.usage.total_tokens == 9
            assert answer.usage.input_tokens_details.cached_tokens == 3
            assert raw.headers["x-gateway-model"] == "org/model" and raw.headers["x-gateway-cached-tokens"] == "3"
            assert raw.headers["openai-processing-ms"].isdecimal()
            (request,) = door.adapter.requests
            assert request.messages == (Message("developer", "Be kind."), Message("user", "hi"))  # type: ignore[union-attr]
            assert door.adapter.callers[0].session_key == "s"
            assert door.outcomes() == {"ok": 1}

    run(scenario())


def test_stream() -> None:
    async def scenario() -> None:
        async with opened(strict=True) as door:
            raw = await door.sdk.responses.with_raw_response.create(**ASK, stream=True)
            assert raw.headers["content-type"].startswith("text/event-stream")
            events = [event async for event in raw.parse()]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
            assert events[-1].response.output_text == "Hello world"
            assert events[-1].response.usage.output_tokens == 2

    run(scenario())


class Day(BaseModel):
    name: str


def test_the_sdks_helpers_fold_and_parse() -> None:
    said = [TextDelta(0, '{"name": '), TextDelta(0, '"Monday"}'), ChoiceFinished(0, "stop")]
    script: list[Event] = [Started(1), *said, Finished(Usage(1, 2))]

    async def scenario() -> None:
        async with opened(script) as door:
            parsed = await door.sdk.responses.parse(**ASK, text_format=Day)
            assert parsed.output_parsed == Day(name="Monday")
            async with door.sdk.responses.stream(**ASK, text_format=Day) as stream:
                pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                final = await stream.get_final_response()
            assert pieces == ['{"name": ', '"Monday"}'] and final.output_parsed == Day(name="Monday")
            constraint = door.adapter.requests[0].generation.constraint  # type: ignore[union-attr]
            assert isinstance(constraint, Constraint) and constraint.strict
            assert parsed.text is not None and parsed.text.format is not None
            assert parsed.text.format.name == "Day"  # type: ignore[union-attr]

    run(scenario())


TOOL: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}


def test_thoughts_and_calls_go_back_as_they_came() -> None:
    thought = [ReasoningDelta(0, "hm"), ReasoningDelta(0, "", "openai:c2ln")]
    call = [ToolCallDelta(0, 0, "", "call_1", "f"), ToolCallDelta(0, 0, '{"x":1}')]
    script: list[Event] = [Started(1), *thought, *call, ChoiceFinished(0, "tool_calls"), Finished(Usage(1, 9, 0, 2))]

    async def scenario() -> None:
        async with opened(script) as door:
            turns: list[Any] = [{"role": "user", "content": "hi"}]
            ask: Any = {"model": "m", "tools": [TOOL], "include": ["reasoning.encrypted_content"]}
            answer = await door.sdk.responses.create(**ask, input=turns)
            assert [item.type for item in answer.output] == ["reasoning", "function_call"]
            assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens == 2
            turns += answer.output
            turns.append({"type": "function_call_output", "call_id": "call_1", "output": "2"})
            async with door.sdk.responses.stream(**ask, input=turns) as stream:
                final = await stream.get_final_response()
            assert [item.type for item in final.output] == ["reasoning", "function_call"]
            _, said, told = door.adapter.requests[1].messages  # type: ignore[union-attr]
            assert said.thoughts == (Thought("hm", "openai:c2ln"),) and said.tool_calls[0].arguments == '{"x":1}'
            assert told == Message("tool", "2", tool_call_id="call_1")

    run(scenario())


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "some"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"api_base": "http://127.0.0.1:1"}, "api_base"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": None}, "input"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [PATH, PATH + "/input_tokens"])
def test_what_is_refused(path: str, more: dict[str, Any], param: str) -> None:
    async def scenario() -> None:
        async with opened() as door:
            answer = await door.http.post(path, json=ASK | more)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == param
            assert answer.headers["x-request-id"] and door.adapter.requests == []

    run(scenario())


def test_what_the_sdk_leaves_out_or_denies_is_fine() -> None:
    async def scenario() -> None:
        async with opened() as door:
            fields = {"store": False, "previous_response_id": None, "conversation": None, "background": False}
            assert (await door.http.post(PATH, json=ASK | fields | {"input": "x"})).status_code == 200

    run(scenario())


def test_a_failure_in_the_stream_is_an_error_event() -> None:
    async def scenario() -> None:
        async with opened([*HELLO[:2], errors.EngineFailed("It broke.")]) as door:
            answer = await door.http.post(PATH, json=ASK | {"stream": True})
            *_, before, last = answer.text.strip().split("\n\n")
            assert last.startswith("event: error\ndata: ")
            told = json.loads(last.partition("data: ")[2])
            assert told["type"] == "error" and told["message"] == told["error"]["message"] == "It broke."
            assert told["code"] == "model_unavailable" and told["param"] is None
            assert told["sequence_number"] == json.loads(before.partition("data: ")[2])["sequence_number"] + 1
            with pytest.raises(openai.APIError, match=r"It broke\."):
                async for _ in await door.sdk.responses.create(**ASK, stream=True):
                    pass

    run(scenario())


def test_how_long_an_input_is() -> None:
    async def scenario() -> None:
        async with opened() as door:
            counted = await door.sdk.responses.input_tokens.count(**ASK)
            assert counted.object == "response.input_tokens" and counted.input_tokens > 0

    run(scenario())


def test_what_became_of_the_cache_is_told_on_request() -> None:
    script = [replace(HELLO[0], cache=DIAGNOSIS), *HELLO[1:]]

    async def scenario() -> None:
        async with opened(script) as door:
            headers = {"X-Gateway-Explain": "cache"}
            whole = (await door.http.post(PATH, json=ASK, headers=headers)).json()
            assert whole["gateway"]["cache"]["tier"] == "disk"
            async with door.sdk.responses.stream(**ASK, extra_headers=headers) as stream:
                final = await stream.get_final_response()
            assert (final.model_extra or {})["gateway"] == whole["gateway"]
            assert door.adapter.callers[0].explain_cache

    run(scenario())
