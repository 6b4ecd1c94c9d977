"""Vectors of providers that have an API of their own for them."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgspec
import pytest

from adapters.errors import InvalidRequest, UpstreamInvalid, UpstreamRefused
from adapters.providers import ProviderKind
from adapters.types import EmbeddingRequest
from tests.adapters.provider import CALLER, remote, reply
from tests.adapters.upstream import Peer, run

GOOGLE = {"region": "eu", "project": "mine"}
VERTEX = "/v1/projects/mine/locations/eu/publishers/google/models"


class Case(NamedTuple):
    """A question with what it is on the wire, and an answer with the tokens it tells of."""

    kind: ProviderKind
    model: str
    path: str
    body: dict[str, Any]
    answer: dict[str, Any]
    tokens: int


TWO: list[list[float]] = [[0.5, 1.0], [0.25, 2.0]]
CASES = [
    Case(
        "gemini",
        "gemini-embedding-001",
        "/v1beta/models/gemini-embedding-001:batchEmbedContents",
        {
            "requests": [
                {
                    "model": "models/gemini-embedding-001",
                    "outputDimensionality": 2,
                    "taskType": "RETRIEVAL_QUERY",
                    "content": {"parts": [{"text": text}]},
                }
                for text in ("a", "b")
            ]
        },
        {"embeddings": [{"values": one} for one in TWO], "usageMetadata": {"promptTokenCount": 7}},
        7,
    ),
    Case(
        "vertex",
        "text-embedding-005",
        f"{VERTEX}/text-embedding-005:predict",
        {
            "instances": [{"content": text, "task_type": "RETRIEVAL_QUERY"} for text in ("a", "b")],
            "parameters": {"outputDimensionality": 2},
        },
        {
            "predictions": [
                {"embeddings": {"values": one, "statistics": {"truncated": False, "token_count": 3.0}}} for one in TWO
            ]
        },
        6,
    ),
    Case(
        "cohere",
        "embed-v4.0",
        "/v2/embed",
        {
            "model": "embed-v4.0",
            "texts": ["a", "b"],
            "input_type": "search_query",
            "embedding_types": ["float"],
            "output_dimension": 2,
        },
        {"embeddings": {"float": TWO}, "meta": {"billed_units": {"input_tokens": 5.0}}},
        5,
    ),
    Case(
        "bedrock",
        "cohere.embed-multilingual-v3",
        "/model/cohere.embed-multilingual-v3/invoke",
        {"texts": ["a", "b"], "input_type": "search_query", "embedding_types": ["float"], "output_dimension": 2},
        {"embeddings": TWO},
        2,
    ),
]
ASKED = EmbeddingRequest("public", ("a", "b"), 2, "query")


class Recording:
    """Answers each question and keeps it."""

    def __init__(self, *answers: bytes) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._answers = list(answers)

    async def __call__(self, peer: Peer) -> None:
        while True:
            head, body = await peer.request()
            self.asked.append((head.decode().split(" ")[1].removeprefix("/v1"), msgspec.json.decode(body)))
            answer = self._answers[min(len(self.asked), len(self._answers)) - 1]
            await peer.send(reply(answer, content_type="application/json"))


def model_of(script: Recording, kind: ProviderKind, model: str) -> Any:
    place = GOOGLE if kind == "vertex" else {"region": "eu"} if kind == "bedrock" else {}
    return remote(script, kind, {"model": model, "kinds": ("embedding",)}, **place)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.model}")
def test_on_the_wire(case: Case) -> None:
    async def scenario() -> None:
        script = Recording(msgspec.json.encode(case.answer))
        async with model_of(script, case.kind, case.model) as (model, _):
            found = await model.embed(ASKED, CALLER)
        assert found.vectors == tuple(struct.pack("<2f", *one) for one in TWO)
        assert (found.dimensions, found.prompt_tokens) == (2, case.tokens)
        ((path, body),) = script.asked
        assert (path, body) == (case.path, case.body)

    run(scenario())


def test_texts_that_a_model_takes_one_by_one() -> None:
    async def scenario() -> None:
        texts = tuple("x" * (i + 1) for i in range(20))
        script = Recording(b'{"embedding":[0.5,1],"inputTextTokenCount":3}')
        async with model_of(script, "bedrock", "amazon.titan-embed-text-v2:0") as (model, _):
            found = await model.embed(EmbeddingRequest("public", texts), CALLER)
        assert (len(found.vectors), found.dimensions, found.prompt_tokens) == (20, 2, 60)
        assert sorted(body["inputText"] for _, body in script.asked) == list(texts)
        assert {path for path, _ in script.asked} == {"/model/amazon.titan-embed-text-v2%3A0/invoke"}

    run(scenario())


def test_one_failure_is_that_of_all() -> None:
    async def failing(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            failed = b'"b"' in body
            answer = b'{"message":"no"}' if failed else b'{"embedding":[1]}'
            await peer.send(reply(answer, 500 if failed else 200, "application/json"))

    async def scenario() -> None:
        async with remote(failing, "bedrock", {"model": "amazon.titan-embed-text-v1"}, region="eu") as (model, _):
            with pytest.raises(UpstreamRefused):
                await model.embed(EmbeddingRequest("public", ("a", "b", "c")), CALLER)

    run(scenario())


@pytest.mark.parametrize(
    ("kind", "model", "request_"),
    [
        ("vertex", "text-embedding-005", EmbeddingRequest("public", ((1, 2),))),
        ("cohere", "embed-v4.0", EmbeddingRequest("public", ("a", (1, 2)))),
        ("bedrock", "amazon.titan-embed-text-v1", EmbeddingRequest("public", ((1, 2),))),
        ("bedrock", "anthropic.claude", EmbeddingRequest("public", ("a",))),
    ],
)
def test_what_no_model_takes(kind: ProviderKind, model: str, request_: EmbeddingRequest) -> None:
    async def scenario() -> None:
        script = Recording(b"{}")
        async with model_of(script, kind, model) as (remote_model, _):
            with pytest.raises(InvalidRequest) as caught:
                await remote_model.embed(request_, CALLER)
        assert caught.value.code == "unsupported_parameter" and script.asked == []

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"{}",
        b'{"embeddings":[]}',
        b'{"embeddings":{"float":[[1]]}}',
        b'{"embeddings":[[1],[1,2]]}',
        b'{"embeddings":[[],[]]}',
        b'{"embeddings":[[1],[1e999]]}',
        b'{"embeddings":[[1],[1e300]]}',
        b'{"embeddings":[[1],["x"]]}',
    ],
)
def test_vectors_that_are_none(answer: bytes) -> None:
    async def scenario() -> None:
        async with model_of(Recording(answer), "cohere", "embed-v4.0") as (model, _):
            with pytest.raises(UpstreamInvalid):
                await model.embed(ASKED, CALLER)

    run(scenario())


def test_vectors_of_several_lengths() -> None:
    async def scenario() -> None:
        script = Recording(b'{"embedding":[1]}', b'{"embedding":[1,2]}')
        async with model_of(script, "bedrock", "amazon.titan-embed-text-v1") as (model, _):
            with pytest.raises(UpstreamInvalid, match="several lengths"):
                await model.embed(EmbeddingRequest("public", ("a", "b")), CALLER)

    run(scenario())
