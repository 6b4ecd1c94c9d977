"""`POST /v1/chat/completions`."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import openai_chat as dialect
from adapters.types import ChatRequest
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, read_json_body
from gateway.api.openai.generation import Rendering, answer, caller_of, openai_headers
from gateway.api.remote_images import RemoteImages, with_images
from gateway.inference import Inference

RENDERING: Rendering[ChatRequest] = Rendering("chatcmpl-", dialect.ChunkRenderer, dialect.render_answer, openai_headers)


class ChatCompletions:
    """Conversations."""

    def __init__(self, inference: Inference, images: RemoteImages, body_bytes_max: int) -> None:
        self._inference = inference
        self._images = images
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                "/v1/chat/completions",
                "POST",
                self.create,
                "inference",
                "Continue a conversation",
                shapes.chat(dialect.Body),
            ),
        )

    async def create(self, request: Request) -> Response:
        inbound = dialect.parse_request(await read_json_body(request, self._body_bytes_max))
        inbound = await with_images(request, inbound, self._images, self._inference)
        caller = caller_of(request, inbound.session_key)
        opening = self._inference.chat(request.state.principal, inbound.request, caller)
        return await answer(request, inbound, opening, inbound.request.generation.n, RENDERING)
