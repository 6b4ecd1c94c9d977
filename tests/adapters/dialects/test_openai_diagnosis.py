"""What a prompt reused, told in a field that is not OpenAI's."""

from __future__ import annotations

import json

import msgspec
import pytest

from adapters.dialects import openai_chat, openai_completions, openai_wire
from adapters.types import Started
from tests.adapters.dialects import test_openai_completions
from tests.adapters.dialects.test_openai_chat import EVENTS, HEAD, parse, rendered
from tests.fakes import DIAGNOSIS, HELLO


@pytest.mark.parametrize("usage", [True, False])
def test_a_cache_diagnosis_comes_with_the_first_chunks(usage: bool) -> None:
    events = (Started(3, cache=DIAGNOSIS), *EVENTS[1:])
    *chunks, _ = rendered(events, n=2, stream_options={"include_usage": usage})
    diagnosis = {"cache": msgspec.to_builtins(DIAGNOSIS)}
    assert [chunk.get("gateway") for chunk in chunks[:2]] == [diagnosis, diagnosis]
    plain = rendered(EVENTS, n=2, stream_options={"include_usage": usage})[:-1]
    assert [{key: chunk[key] for key in chunk if key != "gateway"} for chunk in chunks] == plain


def test_a_cache_diagnosis_in_the_whole_answer() -> None:
    folded = openai_wire.Folded(1)
    for event in (Started(3, cache=DIAGNOSIS), *HELLO[1:]):
        folded.add(event)
    answer = json.loads(openai_chat.render_answer(HEAD, parse().request, folded))
    assert answer["gateway"] == {
        "cache": {
            "cached_tokens": 8,
            "session_tokens": 30,
            "recomputed_tokens": 14,
            "recompute_us": 600,
            "restore_us": 100,
            "tier": "disk",
            "divergence": {"token": 8, "message": 1, "role": "user", "expected": "\u2028", "got": " is"},
        }
    }


def test_a_cache_diagnosis_comes_in_a_chunk_before_the_text() -> None:
    renderer = openai_completions.ChunkRenderer(HEAD, test_openai_completions.parse(stream=True))
    assert renderer.render(Started(3)) == b""
    chunk = json.loads(renderer.render(Started(3, cache=DIAGNOSIS))[6:])
    assert chunk["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": None}]
    assert chunk["gateway"]["cache"]["divergence"]["message"] == 1
