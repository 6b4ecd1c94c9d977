"""`POST /v1/completions`, the legacy endpoint for raw prompts."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import openai_completions as dialect
from adapters.types import CompletionRequest
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, read_json_body
from gateway.api.openai.generation import Rendering, answer, caller_of, openai_headers
from gateway.inference import Inference

RENDERING: Rendering[CompletionRequest] = Rendering(
    "cmpl-", dialect.ChunkRenderer, dialect.render_answer, openai_headers
)


class Completions:
    """Raw prompts."""

    def __init__(self, inference: Inference, body_bytes_max: int) -> None:
        self._inference = inference
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                "/v1/completions",
                "POST",
                self.create,
                "inference",
                "Continue raw prompts",
                shapes.completions(dialect.Body),
            ),
        )

    async def create(self, request: Request) -> Response:
        inbound = dialect.parse_request(await read_json_body(request, self._body_bytes_max))
        caller = caller_of(request, inbound.session_key)
        opening = self._inference.complete(request.state.principal, inbound.request, caller)
        return await answer(request, inbound, opening, dialect.choice_count(inbound.request), RENDERING)
