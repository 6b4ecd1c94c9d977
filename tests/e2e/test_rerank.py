"""Reranking models through the real server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.server import Server
from tests.models import random_gguf

DOCUMENTS = ["Paris is the capital.", {"text": "two words"}, "London has good weather", "x"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("rerank")
    config = f"""
models:
  - name: bert
    path: {random_gguf.bert_reranker(folder / "bert.gguf")}
    engine: {{threads: 1}}
  - name: qwen
    path: {random_gguf.decoder_reranker(folder / "qwen.gguf")}
    engine: {{threads: 1, context_tokens: 512}}
"""
    with Server(folder, config=config) as server:
        yield server


def ask(server: Server, path: str = "/v1/rerank", **more: Any) -> Any:
    body = {"model": "bert", "query": "What is the capital of France?", "documents": DOCUMENTS} | more
    with server.client() as client:
        return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def scores(answer: Any) -> dict[int, float]:
    return {found["index"]: found["relevance_score"] for found in answer.json()["results"]}


@pytest.mark.parametrize("model", ["bert", "qwen"])
def test_documents_come_out_best_first_with_probabilities(server: Server, model: str) -> None:
    answer = ask(server, model=model)
    found = scores(answer)
    assert answer.status_code == 200 and sorted(found) == [0, 1, 2, 3]
    assert list(found.values()) == sorted(found.values(), reverse=True) and 0 < min(found.values()) < 1
    assert answer.json()["usage"]["prompt_tokens"] > 20
    best = ask(server, "/rerank", model=model, top_n=1, return_documents=True).json()["results"]
    assert [one["index"] for one in best] == [next(iter(found))]
    assert best[0]["document"]["text"] in ("Paris is the capital.", "two words", "London has good weather", "x")
    raw = scores(ask(server, model=model, raw_scores=True))
    logits = {index: 1 / (1 + math.exp(-score)) for index, score in raw.items()}
    assert (logits if model == "bert" else raw) == pytest.approx(found, abs=1e-6)


def test_many_at_once_get_their_own_answers(server: Server) -> None:
    queries = [f"question number {number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda query: scores(ask(server, query=query)), queries))
    assert together == [pytest.approx(scores(ask(server, query=query)), abs=0.01) for query in queries]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nothing"}, 404, "model"),
        ({"query": 5}, 400, "query"),
        ({"query": ""}, 400, "query"),
        ({"documents": []}, 400, "documents"),
        ({"documents": ["\ud800"]}, 400, None),
        ({"documents": [{"image": "x"}]}, 400, "documents[].text"),
        ({"documents": ["fits", "word " * 5000]}, 400, "documents"),
        ({"query": "word " * 5000}, 400, "documents"),
        ({"documents": ["x"] * 3000}, 400, "documents"),
        ({"top_n": -1}, 400, "top_n"),
        ({"base_url": "http://127.0.0.1"}, 400, "base_url"),
    ],
)
def test_what_is_refused(server: Server, body: dict[str, Any], status: int, param: str | None) -> None:
    workers = server.workers()
    answer = ask(server, **body)
    assert answer.status_code == status, answer.text
    found = (answer.json()["error"]["param"] or "").split("[")[0]
    assert found == (param or "").split("[")[0]
    assert server.workers() == workers


def test_each_kind_of_model_keeps_to_its_entrances(server: Server) -> None:
    with server.client() as client:
        kinds = {one["id"]: one["capabilities"] for one in client.get("/v1/models").json()["data"]}
        assert kinds == {"bert": ["rerank"], "qwen": ["rerank"]}
        for path, body in (("/v1/embeddings", {"input": "x"}), ("/v1/completions", {"prompt": "x"})):
            answer = client.post(path, json={"model": "bert"} | body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
