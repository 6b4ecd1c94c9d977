"""`POST /v1/chat/completions`."""

from __future__ import annotations

from msgspec.structs import replace
from starlette.requests import Request

from adapters.dialects import openai_chat as dialect
from adapters.types import ChatRequest
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, read_json_body, run_until_disconnect
from gateway.api.openai.generation import Rendering, answer, caller_of, openai_headers
from gateway.api.remote_images import RemoteImages
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
        principal = request.state.principal
        if self._images.wanted(inbound.request) and not self._inference.takes_image_urls(principal, inbound.request):
            fetched = await run_until_disconnect(request, self._images.fetched(inbound.request))
            inbound = replace(inbound, request=fetched)
        caller = caller_of(request, inbound.session_key)
        opening = self._inference.chat(principal, inbound.request, caller)
        return await answer(request, inbound, opening, inbound.request.generation.n, RENDERING)
