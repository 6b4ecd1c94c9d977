"""`POST /v1/responses`, `.../compact` and `.../input_tokens`: OpenAI's Responses API, of which nothing is kept."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import openai_responses as dialect
from adapters.errors import InvalidRequest
from adapters.types import ChatRequest
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, json_response, read_json_body, run_until_disconnect
from gateway.api.openai.generation import Rendering, answer, caller_of, count_headers, openai_headers
from gateway.api.remote_images import RemoteImages, with_images
from gateway.inference import Inference


class Responses:
    """Answers to whole conversations, which the client keeps."""

    def __init__(self, inference: Inference, images: RemoteImages, body_bytes_max: int) -> None:
        self._inference = inference
        self._images = images
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                "/v1/responses",
                "POST",
                self.create,
                "inference",
                "Answer a conversation (OpenAI's Responses)",
                shapes.responses(dialect.Body),
            ),
            Endpoint(
                "/v1/responses/compact",
                "POST",
                self.compact,
                "inference",
                "Compact a conversation, where its provider does that",
                shapes.compaction(dialect.CompactBody),
            ),
            Endpoint(
                "/v1/responses/input_tokens",
                "POST",
                self.count,
                "inference",
                "How many tokens the input of a response has",
                shapes.response_tokens(dialect.Body),
            ),
        )

    async def create(self, request: Request) -> Response:
        inbound = await self._inbound(request)
        inbound = await with_images(request, inbound, self._images, self._inference, "input")
        rendering: Rendering[ChatRequest] = Rendering(
            "resp_",
            lambda head, _: dialect.ChunkRenderer(head, inbound),
            lambda head, _, folded: dialect.render_answer(head, inbound, folded),
            openai_headers,
        )
        opening = self._inference.chat(
            request.state.principal, inbound.request, caller_of(request, inbound.session_key)
        )
        return await answer(request, inbound, opening, 1, rendering)

    async def compact(self, request: Request) -> Response:
        """Those that a provider compacts never come here: they are passed on."""
        asked = dialect.parse_compaction(await read_json_body(request, self._body_bytes_max))
        name = self._inference.name_of(request.state.principal, asked.model)
        message = f"The model '{name}' cannot compact conversations."
        raise InvalidRequest(message, code="unsupported_parameter", param="model")

    async def count(self, request: Request) -> Response:
        inbound = await self._inbound(request)
        counting = self._inference.count_tokens(request.state.principal, inbound.request)
        count = await run_until_disconnect(request, counting)
        return json_response(dialect.render_count(count.tokens), headers=count_headers(count))

    async def _inbound(self, request: Request) -> dialect.ResponsesInbound:
        inbound = dialect.parse_request(await read_json_body(request, self._body_bytes_max))
        dialect.refuse_kept(inbound.store, inbound.previous_response_id, inbound.conversation, inbound.background)
        return inbound
