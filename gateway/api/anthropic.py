"""Anthropic's Messages API: `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import anthropic_messages as dialect
from adapters.types import ChatRequest
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, json_response, read_json_body, run_until_disconnect
from gateway.api.openai.generation import Rendering, answer, caller_of, count_headers, room_headers
from gateway.api.remote_images import RemoteImages, with_images
from gateway.inference import Inference
from gateway.streams import Stream


def _headers(stream: Stream, took_ms: int) -> dict[str, str]:
    return room_headers(stream.meter)


RENDERING: Rendering[ChatRequest] = Rendering("msg_", dialect.ChunkRenderer, dialect.render_answer, _headers)


class Messages:
    """Conversations as Anthropic's clients have them."""

    def __init__(self, inference: Inference, images: RemoteImages, body_bytes_max: int) -> None:
        self._inference = inference
        self._images = images
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                "/v1/messages",
                "POST",
                self.create,
                "inference",
                "Continue a conversation (Anthropic)",
                shapes.messages(dialect.Body),
            ),
            Endpoint(
                "/v1/messages/count_tokens",
                "POST",
                self.count,
                "inference",
                "How many tokens a conversation has (Anthropic)",
                shapes.message_tokens(dialect.CountBody),
            ),
        )

    async def create(self, request: Request) -> Response:
        inbound = dialect.parse_request(await read_json_body(request, self._body_bytes_max))
        inbound = await with_images(request, inbound, self._images, self._inference, "messages")
        caller = caller_of(request, inbound.session_key)
        opening = self._inference.chat(request.state.principal, inbound.request, caller)
        return await answer(request, inbound, opening, 1, RENDERING)

    async def count(self, request: Request) -> Response:
        asked = dialect.parse_count(await read_json_body(request, self._body_bytes_max))
        counting = self._inference.count_tokens(request.state.principal, asked)
        count = await run_until_disconnect(request, counting)
        return json_response(dialect.render_count(count.tokens), headers=count_headers(count))
