"""How many tokens the requests of a dataset have, and what their answers may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from adapters import estimates
from adapters.dialects import openai_chat, openai_completions, openai_embeddings
from adapters.errors import InvalidRequest
from adapters.types import ChatRequest, CompletionRequest, EmbeddingRequest, Usage
from gateway.api.admin.routes import Query
from gateway.auth import Principal
from gateway.catalog import Catalog
from gateway.inference import Inference
from gateway.ledger.export import usd

# Of larger datasets so many rows are counted, spread evenly over all.
COUNTED_MAX = 500
OUTPUT_TOKENS = 256

Asked = ChatRequest | CompletionRequest | EmbeddingRequest

PARSERS: Mapping[str, Callable[[bytes], Asked]] = {
    "/v1/chat/completions": lambda body: openai_chat.parse_request(body).request,
    "/v1/completions": lambda body: openai_completions.parse_request(body).request,
    "/v1/embeddings": lambda body: openai_embeddings.parse_request(body).request,
}


class ForecastAsked(Query, frozen=True, kw_only=True):
    """`model` answers in the place of the one that the requests name. `output_tokens` is how long an answer is taken to
    be whose request does not bound it."""

    model: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    output_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = OUTPUT_TOKENS


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a dataset would come to. `counted_rows` of its `rows` were counted, `invalid_rows` of these the model's API
    would refuse. `tokenised`: by its own tokeniser, else from their bytes. `exact`: so were all of them. Answers
    are taken to be as long as they may be. `cost_usd` null: the model has no price."""

    object: str = "dataset.forecast"
    dataset: str
    model: str
    rows: int
    counted_rows: int
    invalid_rows: int
    tokenised: bool
    exact: bool
    input_tokens: int
    output_tokens: int
    cost_usd: str | None


class _Row(NamedTuple):
    """One request's tokens, and what it costs, if that is known."""

    input_tokens: int
    output_tokens: int
    cost_nano: int | None


class Forecasts:
    """Counts for a caller. `local` are the models whose tokenisers are here."""

    def __init__(self, inference: Inference, catalog: Catalog, local: frozenset[str]) -> None:
        self._inference = inference
        self._catalog = catalog
        self._local = local

    async def of(
        self, principal: Principal, identity: str, lines: Sequence[Line], rows: int, asked: ForecastAsked
    ) -> Forecast:
        """What the dataset of so many rows would come to of which these are some. Raises what a request to the model
        would raise."""
        model = self._catalog.resolve(principal, asked.model or lines[0].body_model).name
        tokenised = model in self._local
        known = list[_Row]()
        for line in lines:
            with suppress(InvalidRequest):
                known.append(await self._count(principal, line, model, asked.output_tokens))
        priced = [row.cost_nano for row in known if row.cost_nano is not None]

        def of_all(counted: Iterable[int]) -> int:
            return -(-sum(counted) * rows // len(lines))

        return Forecast(
            dataset=identity,
            model=model,
            rows=rows,
            counted_rows=len(lines),
            invalid_rows=len(lines) - len(known),
            tokenised=tokenised,
            exact=tokenised and len(lines) == rows,
            input_tokens=of_all(row.input_tokens for row in known),
            output_tokens=of_all(row.output_tokens for row in known),
            cost_usd=usd(of_all(priced)) if len(priced) == len(known) else None,
        )

    async def _count(self, principal: Principal, line: Line, model: str, output_tokens: int) -> _Row:
        request = replace(PARSERS[line.url](bytes(line.body)), model=model)
        tokens = await self._tokens(principal, request) if model in self._local else estimates.prompt_tokens(request)
        answers = 0
        if not isinstance(request, EmbeddingRequest):
            bound = request.generation.max_tokens
            answers = request.generation.n * (output_tokens if bound is None else bound)
        price = self._catalog.price_of(model)
        return _Row(tokens, answers, None if price is None else price.cost_nano(Usage(tokens, answers)))

    async def _tokens(self, principal: Principal, request: Asked) -> int:
        if isinstance(request, ChatRequest):
            return (await self._inference.count_tokens(principal, request)).tokens
        texts = request.prompts if isinstance(request, CompletionRequest) else request.inputs
        return sum(
            [
                len(await self._inference.tokenize(principal, request.model, text, special=True))
                if isinstance(text, str)
                else len(text)
                for text in texts
            ]
        )


class Line(msgspec.Struct, frozen=True):
    """One request of a dataset."""

    url: str
    body: msgspec.Raw

    @property
    def body_model(self) -> str:
        return msgspec.json.decode(self.body, type=_Model).model


class _Model(msgspec.Struct, frozen=True):
    model: str


def sampled(path: Path, rows: int) -> list[Line]:
    """Some of a dataset's requests, evenly spread, or all. Blocks."""
    decoder, step = msgspec.json.Decoder(Line), max(1, -(-rows // COUNTED_MAX))
    with path.open("rb") as lines:
        return [decoder.decode(line) for number, line in enumerate(lines) if number % step == 0]
