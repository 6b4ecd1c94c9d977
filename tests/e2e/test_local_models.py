"""What the engine promises about local models, tried on real ones: filling in, quantised caches, several at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server
from tests.models import random_gguf

TURN = {"role": "user", "content": "The weather in Paris and in London is the same at any time of the year. " * 12}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("local")
    raw = random_gguf.llama_tiny(folder / "raw.gguf", raw_bytes=True)
    engine = "threads: 1, context_tokens: 2048, cache_tokens: 8192"
    config = f"""
models:
  - {{name: one, path: {tiny_model}, engine: {{{engine}}}}}
  - {{name: two, path: {raw}, engine: {{{engine}}}}}
  - {{name: small-cache, path: {tiny_model}, engine: {{{engine}, kv_type: q8_0}}}}
  - {{name: guessing, path: {tiny_model}, engine: {{{engine}, batch_padding: on}}}}
"""
    with Server(folder, config=config) as server:
        yield server


def post(server: Server, path: str, **body: Any) -> Any:
    with server.client() as client:
        return client.post(path, json={"temperature": 0, "ignore_eos": True} | body)


def stream(server: Server, path: str, **body: Any) -> Iterator[dict[str, Any]]:
    """The choices of a stream's chunks, as they come."""
    with (
        server.client() as client,
        client.stream("POST", path, json={"temperature": 0, "ignore_eos": True, "stream": True} | body) as answer,
    ):
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))["choices"][0]


def tokens(server: Server, text: str) -> list[int]:
    return list(post(server, "/tokenize", model="one", content=text).json()["tokens"])


def test_a_suffix_makes_a_prompt_to_fill_in(server: Server) -> None:
    before, after = "def add(a, b):\n    return ", "\n\nprint(add(1, 2)) <|fim_middle|>"
    marks = [tokens(server, f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle")]
    assert [len(mark) for mark in marks] == [1, 1, 1]
    answer = post(server, "/v1/completions", model="one", prompt=before, suffix=after, max_tokens=8, seed=1).json()
    assert answer["usage"]["completion_tokens"] == 8
    # What a client writes is text: a mark in it does not end the suffix.
    spelt = [*tokens(server, "<|fim_"), *tokens(server, "middle|>")]
    prompt = [*marks[0], *tokens(server, before), *marks[1], *tokens(server, after.removesuffix("<|fim_middle|>"))]
    whole = post(server, "/v1/completions", model="one", prompt=[*prompt, *spelt, *marks[2]], max_tokens=8, seed=1)
    assert whole.json()["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert whole.json()["choices"][0]["text"] == answer["choices"][0]["text"]


def test_a_suffix_is_refused_where_it_would_be_ignored(server: Server) -> None:
    answer = post(server, "/v1/completions", model="one", prompt=[5, 6], suffix="y", max_tokens=2)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")


def test_a_quantised_cache_keeps_and_restores_conversations(server: Server) -> None:
    def turn(messages: list[dict[str, str]], key: str) -> Any:
        body = {"model": "small-cache", "messages": messages, "prompt_cache_key": key, "max_tokens": 20}
        return post(server, "/v1/chat/completions", **body).json()

    first = turn([TURN], "a")
    said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    # Another conversation moves the idle one out of the context, and its next turn brings it back.
    turn([{"role": "user", "content": "Something else altogether. " * 20}], "b")
    second = turn([TURN, said, {"role": "user", "content": "And now?"}], "a")
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 1
    assert second["usage"]["completion_tokens"] == 20


def test_streams_that_repeat_themselves_are_guessed(server: Server) -> None:
    word = tokens(server, " the")[0]
    body = {"model": "guessing", "prompt": "Say it", "n": 3, "max_tokens": 50, "logit_bias": {str(word): 100}}
    answer = post(server, "/v1/completions", **body).json()
    assert [choice["text"] for choice in answer["choices"]] == [" the" * 50] * 3
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 150
    assert server.metric("gateway_guesses_total", model="guessing", outcome="right") > 20


def test_two_models_stream_side_by_side_and_neither_starves(server: Server) -> None:
    counts = {"one": 0, "two": 0}
    when_the_first_ended: list[dict[str, int]] = []
    gate = threading.Barrier(2)

    def run(model: str) -> None:
        for _ in stream(server, "/v1/completions", model=model, prompt="x", max_tokens=1500, logprobs=0):
            if not counts[model]:
                gate.wait(30)
            counts[model] += 1
        when_the_first_ended.append(dict(counts))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, counts))
    assert min(when_the_first_ended[0].values()) > 150, "the slower one got a tenth of the turns at least"
    assert min(counts.values()) > 1000, "and both came to their end"


@pytest.mark.parametrize("model", ["one", "two"])
@pytest.mark.parametrize("stop", [None, [" the", "e"]])
def test_streamed_log_probabilities_are_those_of_the_text(server: Server, model: str, stop: list[str] | None) -> None:
    body = {"model": model, "messages": [TURN], "max_tokens": 40, "logprobs": True, "top_logprobs": 2, "seed": 3}
    choices = list(stream(server, "/v1/chat/completions", **body, stop=stop))
    scores = [score for choice in choices for score in (choice["logprobs"] or {}).get("content") or []]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    written = b"".join(bytes(score["bytes"]) for score in scores)
    # A stop string may begin inside of the last token that is shown.
    assert written.decode(errors="replace").startswith(text) or text.startswith(written.decode(errors="replace"))
    assert abs(len(written.decode(errors="replace")) - len(text)) <= 16
    assert all(score["logprob"] <= 0 and len(score["top_logprobs"]) == 2 for score in scores)
    if stop is None:
        assert len(scores) == 40
    whole = post(server, "/v1/chat/completions", **body, stop=stop).json()["choices"][0]
    assert whole["message"]["content"] == text
    assert [score["token"] for score in whole["logprobs"]["content"]] == [score["token"] for score in scores]


def test_streamed_log_probabilities_of_a_raw_prompt(server: Server) -> None:
    body = {"model": "one", "prompt": "Paris", "max_tokens": 12, "logprobs": 2, "seed": 3, "echo": True}
    streamed: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "text_offset": []}
    text = ""
    for choice in stream(server, "/v1/completions", **body):
        text += choice["text"]
        for name, values in streamed.items():
            values += (choice["logprobs"] or {}).get(name) or []
    whole = post(server, "/v1/completions", **body).json()["choices"][0]
    assert whole["text"] == text
    assert streamed["tokens"] == whole["logprobs"]["tokens"] and "".join(streamed["tokens"]) == text
    assert streamed["text_offset"] == whole["logprobs"]["text_offset"]
    assert streamed["token_logprobs"][0] is None
