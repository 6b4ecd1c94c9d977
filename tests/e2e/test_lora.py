"""LoRA adapters through the real server: chosen per request, never mixed, and bad ones told apart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server
from tests.models import random_lora
from tests.models.random_gguf import truncate

PROMPT = "The weather in Paris and the weather in London are much the same at any time of the year"


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lora")
    truncate(random_lora.lora(folder / "whole.gguf"), folder / "cut.gguf", 20_000)
    config = f"""
models:
  - name: tiny
    path: {tiny_model}
    aliases: [t]
    engine:
      threads: 1
      loras:
        - {{name: one, path: {random_lora.lora(folder / "one.gguf")}}}
        - {{name: two, path: {random_lora.lora(folder / "two.gguf", seed=2)}, scale: 0.5}}
  - name: broken
    path: {tiny_model}
    engine: {{threads: 1, loras: [{{name: cut, path: {folder / "cut.gguf"}}}]}}
"""
    with Server(folder, config=config) as server:
        yield server


def ask(server: Server, model: str = "tiny", **more: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "seed": 1} | more
    with server.client() as client:
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def test_an_adapter_is_asked_for_by_name_or_in_the_body(server: Server) -> None:
    plain, one, two = ask(server), ask(server, "tiny:one"), ask(server, "tiny:two")
    assert one["model"] == "tiny:one" and len({text(plain), text(one), text(two)}) == 3
    assert text(ask(server, "t:one")) == text(one)
    assert text(ask(server, lora=[{"name": "one"}])) == text(ask(server, lora=[{"id": 0, "scale": 1}])) == text(one)
    assert text(ask(server, lora=[{"id": 1}])) == text(ask(server, lora=[{"id": 1, "scale": 0.5}])) == text(two)
    assert text(ask(server, lora=[{"id": 0, "scale": 0}])) == text(ask(server, lora=[])) == text(plain)
    both = text(ask(server, lora=[{"id": 1}, {"id": 0}]))
    assert both == text(ask(server, lora=[{"name": "one"}, {"name": "two"}])) not in (text(one), text(two))


def test_models_lists_them_with_their_model(server: Server) -> None:
    with server.client() as client:
        models = {model["id"]: model.get("parent") for model in client.get("/v1/models").json()["data"]}
    assert models == {"tiny": None, "tiny:one": "tiny", "tiny:two": "tiny", "broken": None, "broken:cut": "broken"}


def test_a_conversation_keeps_its_cache_under_its_own_adapter_only(server: Server) -> None:
    cached = []
    for model in ("tiny", "tiny:one", "tiny", "tiny:one"):
        answer = ask(server, model, seed=None, prompt="Once more: " + PROMPT * 3)
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0] and min(cached[2:]) > 50


def test_streams_of_several_sets_run_side_by_side(server: Server) -> None:
    models = ["tiny", "tiny:one", "tiny:two", "tiny"] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda model: ask(server, model, max_tokens=200), models))
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [200] * 8


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "tiny:three"}, 404, "model"),
        ({"lora": [{"name": "three"}]}, 400, "lora"),
        ({"lora": [{"id": 2}]}, 400, "lora"),
        ({"lora": [{"id": -1}]}, 400, "lora"),
        ({"lora": [{"id": 0}, {"name": "one"}]}, 400, "lora"),
        ({"lora": [{"id": 0, "name": "one"}]}, 400, "lora"),
        ({"lora": [{}]}, 400, "lora"),
        ({"lora": [{"id": 0, "scale": "1"}]}, 400, "lora"),
        ({"lora": [{"id": 0, "scale": 1e9}]}, 400, "lora"),
        ({"lora": {"id": 0}}, 400, "lora"),
        ({"lora": [{"id": 0}] * 17}, 400, "lora"),
        ({"model": "tiny:one", "lora": [{"name": "two"}]}, 400, "lora"),
    ],
)
def test_what_is_refused(server: Server, body: dict[str, Any], status: int, param: str) -> None:
    with server.client() as client:
        for path, prompt in (
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ):
            answer = client.post(path, json={"model": "tiny", "max_tokens": 2} | prompt | body)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["param"].split("[")[0] == param


def test_a_bad_adapter_fails_its_model_with_a_reason_and_no_other(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json={"model": "broken:cut", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_invalid")
        assert "LoRA adapter 'cut'" in server.log.read_text()
        assert "cut.gguf" not in answer.text
    assert len(server.workers()) == 1
