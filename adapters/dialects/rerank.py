"""Reranking as Jina, Cohere, vLLM and llama-server spell it: a query and documents in, their scores out, best first."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from adapters.dialects import openai_wire as wire
from adapters.types import Ranking, RerankRequest

DOCUMENTS_MAX = 2048

_encode = msgspec.json.Encoder().encode


class Document(msgspec.Struct):
    text: str


class Body(wire.RequestFields, kw_only=True):
    model: wire.ModelName
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=DOCUMENTS_MAX)]
    top_n: wire.Count | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None


class RerankInbound(msgspec.Struct, frozen=True):
    """A parsed request, how many results are wanted, and whether each comes with its document."""

    request: RerankRequest
    top_n: int
    with_documents: bool = False


_decoder = msgspec.json.Decoder(Body)


def parse_request(body: bytes) -> RerankInbound:
    """The request in canonical form; raises `InvalidRequest` with the path of the field at fault."""
    fields = wire.decode(_decoder, body)
    wire.refuse_redirects(fields)
    documents = tuple(one if isinstance(one, str) else one.text for one in fields.documents)
    request = RerankRequest(fields.model, fields.query, documents, bool(fields.raw_scores))
    return RerankInbound(request, fields.top_n or len(documents), bool(fields.return_documents))


def render_answer(id: str, model: str, inbound: RerankInbound, ranking: Ranking) -> bytes:
    """The best documents, equal ones in the order of the request."""
    documents = inbound.request.documents
    best = sorted(range(len(documents)), key=lambda index: -ranking.scores[index])
    results = [
        {"index": index, "relevance_score": ranking.scores[index]}
        | ({"document": {"text": documents[index]}} if inbound.with_documents else {})
        for index in best[: inbound.top_n]
    ]
    usage = {"prompt_tokens": ranking.prompt_tokens, "total_tokens": ranking.prompt_tokens}
    return _encode({"id": id, "object": "list", "model": model, "results": results, "usage": usage})
