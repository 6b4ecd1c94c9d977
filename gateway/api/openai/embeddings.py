"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request

from adapters.dialects import openai_embeddings as dialect
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, json_response, read_json_body, run_until_disconnect
from gateway.api.openai.generation import OPENAI_VERSION, caller_of, meter_headers, served_fields
from gateway.catalog import Catalog
from gateway.inference import Inference


class EmbeddingVectors:
    """Texts as vectors."""

    def __init__(self, inference: Inference, catalog: Catalog, body_bytes_max: int) -> None:
        self._inference = inference
        self._catalog = catalog
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                "/v1/embeddings",
                "POST",
                self.create,
                "inference",
                "Turn texts into vectors",
                shapes.embeddings(dialect.Body),
            ),
        )

    async def create(self, request: Request) -> Response:
        inbound = dialect.parse_request(await read_json_body(request, self._body_bytes_max))
        arrived_s = time.perf_counter()
        principal = request.state.principal
        model = self._catalog.resolve(principal, inbound.request.model).name
        work = self._inference.embed(principal, inbound.request, caller_of(request))
        embeddings, meter = await run_until_disconnect(request, work)
        request.state.log.update(model=model, prompt_tokens=embeddings.prompt_tokens, **served_fields(meter.served))
        headers = {
            "openai-version": OPENAI_VERSION,
            "openai-processing-ms": str(round((time.perf_counter() - arrived_s) * 1000)),
            "x-gateway-model": model,
            **meter_headers(meter),
        }
        parts = []
        for part in dialect.render_answer(model, embeddings, as_base64=inbound.base64):
            parts.append(part)
            await asyncio.sleep(0)  # Streams of others go on while thousands of vectors are written.
        return json_response(b"".join(parts), headers=headers)
