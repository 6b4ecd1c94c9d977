from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.dialects import rerank
from adapters.errors import InvalidRequest
from adapters.types import Ranking, RerankRequest

ASK: dict[str, Any] = {"model": "m", "query": "q", "documents": ["a", {"text": "b", "title": "ignored"}, "c"]}


def parsed(**more: Any) -> rerank.RerankInbound:
    return rerank.parse_request(json.dumps(ASK | more).encode())


def test_what_every_spelling_means() -> None:
    assert parsed() == rerank.RerankInbound(RerankRequest("m", "q", ("a", "b", "c")), 3)
    wanted = rerank.RerankInbound(RerankRequest("m", "q", ("a", "b", "c"), raw=True), 2, with_documents=True)
    assert parsed(top_n=2, return_documents=True, raw_scores=True, max_chunks_per_doc=5, rank_fields=["x"]) == wanted


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"query": ["q"]}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": [1]}, "documents[0]"),
        ({"documents": [{}]}, "documents[0].text"),
        ({"documents": ["x"] * 2049}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": "3"}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"api_base": "http://x"}, "api_base"),
    ],
)
def test_what_is_refused(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**more)
    assert (caught.value.param or "").replace("[...]", "[0]").split("[")[0] == param.split("[")[0]


def test_the_best_come_first_and_equal_ones_in_order() -> None:
    answer = json.loads(rerank.render_answer("rerank-1", "m", parsed(), Ranking((0.25, 0.75, 0.25), 9)))
    assert answer == {
        "id": "rerank-1",
        "object": "list",
        "model": "m",
        "results": [
            {"index": 1, "relevance_score": 0.75},
            {"index": 0, "relevance_score": 0.25},
            {"index": 2, "relevance_score": 0.25},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
    first = rerank.render_answer("r", "m", parsed(top_n=1, return_documents=True), Ranking((0.25, 0.75, 0.25), 9))
    assert json.loads(first)["results"] == [{"index": 1, "relevance_score": 0.75, "document": {"text": "b"}}]
