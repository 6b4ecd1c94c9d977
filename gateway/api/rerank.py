"""`POST /v1/rerank`, and under the names that other servers and SDKs give it."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import rerank as dialect
from gateway.api import shapes
from gateway.api.http import Endpoint, Response, json_response, read_json_body, run_until_disconnect
from gateway.api.openai.generation import caller_of, meter_headers, served_fields
from gateway.catalog import Catalog
from gateway.inference import Inference

PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")


class Rerank:
    """Documents by how well they answer a query."""

    def __init__(self, inference: Inference, catalog: Catalog, body_bytes_max: int) -> None:
        self._inference = inference
        self._catalog = catalog
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        summary = "Order documents by how well they answer a query"
        return tuple(
            Endpoint(path, "POST", self.create, "inference", summary, shapes.rerank(dialect.Body)) for path in PATHS
        )

    async def create(self, request: Request) -> Response:
        inbound = dialect.parse_request(await read_json_body(request, self._body_bytes_max))
        principal = request.state.principal
        model = self._catalog.resolve(principal, inbound.request.model).name
        work = self._inference.rerank(principal, inbound.request, caller_of(request))
        ranking, meter = await run_until_disconnect(request, work)
        request.state.log.update(model=model, prompt_tokens=ranking.prompt_tokens, **served_fields(meter.served))
        id = f"rerank-{request.state.request_id}"
        headers = {"x-gateway-model": model} | meter_headers(meter)
        return json_response(dialect.render_answer(id, model, inbound, ranking), headers=headers)
