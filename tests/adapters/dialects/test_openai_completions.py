from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects import openai_completions, openai_wire
from adapters.errors import InvalidRequest
from adapters.types import (
    ChoiceFinished,
    CompletionRequest,
    Event,
    Finished,
    Started,
    TextDelta,
    TokenLogprob,
    TopLogprob,
    Usage,
)

HEAD = openai_wire.ResponseHead("cmpl-1", 1700000000, "m", "fp_1")


def parse(**fields: Any) -> openai_wire.Inbound[CompletionRequest]:
    return openai_completions.parse_request(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hi", ("hi",)),
        (["hi", "ho"], ("hi", "ho")),
        ([1, 2], ((1, 2),)),
        ([0], ((0,),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_prompts(prompt: object, prompts: object) -> None:
    assert parse(prompt=prompt).request.prompts == prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x", ""]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["x", 1]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": ["x", [1]]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": [[-1]]}, "prompt[0][0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 128}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"suffix": 1}, "suffix"),
        ({"temperature": 3}, "temperature"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"stream_options": {}}, "stream_options"),
        ({"api_key": "x"}, "api_key"),
    ],
)
def test_wrong_values_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_fields() -> None:
    request = parse(suffix="s", echo=True, max_tokens=0, logprobs=3, n=2, best_of=2, stop=["a"]).request
    assert (request.suffix, request.echo, openai_completions.choice_count(request)) == ("s", True, 2)
    generation = request.generation
    assert (generation.max_tokens, generation.logprobs, generation.n, generation.stop) == (0, 3, 2, ("a",))
    assert parse().request.generation.max_tokens == 16
    assert parse(suffix="", max_tokens=None, logprobs=0).request.suffix is None


def token(raw: bytes, logprob: float | None = -0.5, *top: TopLogprob) -> TokenLogprob:
    return TokenLogprob(1, logprob, raw, top)


EVENTS: tuple[Event, ...] = (
    Started(prompt_tokens=2),
    TextDelta(0, "né", (token(b"n", None), token(b"\xc3", -1.0), token(b"\xa9", -1.0))),
    TextDelta(0, "!", (token(b"!", -2.0, TopLogprob(7, -0.1, b"?"), TopLogprob(8, -3.0, b"?")),)),
    TextDelta(1, "\u2028"),
    TextDelta(1, ""),
    ChoiceFinished(0, "length"),
    ChoiceFinished(1, "stop"),
    Finished(Usage(2, 5)),
)
LOGPROBS = {
    "tokens": ["n", "bytes:\\xc3", "bytes:\\xa9", "!"],
    "token_logprobs": [None, -1.0, -1.0, -2.0],
    "top_logprobs": [None, {"bytes:\\xc3": -1.0}, {"bytes:\\xa9": -1.0}, {"?": -0.1, "!": -2.0}],
    "text_offset": [0, 1, 2, 2],
}


def rendered(**fields: Any) -> list[Any]:
    renderer = openai_completions.ChunkRenderer(HEAD, parse(n=2, stream=True, **fields))
    frames = b"".join(renderer.render(event) for event in EVENTS).decode()
    payloads = frames.removesuffix("\n\n").split("\n\n")
    assert all(len(payload.splitlines()) == 1 and payload.startswith("data: ") for payload in payloads)
    assert payloads.pop() == "data: [DONE]"
    return [json.loads(payload[6:]) for payload in payloads]


def test_chunks() -> None:
    chunks = rendered()
    assert [chunk["choices"] for chunk in chunks] == [
        [{"text": "né", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": "!", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": "\u2028", "index": 1, "logprobs": None, "finish_reason": None}],
        [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}],
        [{"text": "", "index": 1, "logprobs": None, "finish_reason": "stop"}],
    ]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {("cmpl-1", "text_completion", "m")}


def test_usage_chunk() -> None:
    *chunks, last = rendered(stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)
    assert all(chunk["usage"] is None for chunk in chunks)


def test_streamed_log_probabilities_continue_their_offsets() -> None:
    parts = [chunk["choices"][0]["logprobs"] for chunk in rendered(logprobs=2)[:2]]
    assert {key: parts[0][key] + parts[1][key] for key in LOGPROBS} == LOGPROBS


@pytest.mark.parametrize("top", [0, 2])
def test_answer_is_the_folded_stream(top: int) -> None:
    folded = openai_wire.Folded(2)
    for event in EVENTS:
        folded.add(event)
    answer = json.loads(openai_completions.render_answer(HEAD, parse(n=2, logprobs=top).request, folded))
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 5
    first, second = answer["choices"]
    assert first["text"] == "né!" and first["finish_reason"] == "length"
    assert first["logprobs"] == (LOGPROBS if top else {**LOGPROBS, "top_logprobs": None})
    assert second["text"] == "\u2028" and second["index"] == 1
