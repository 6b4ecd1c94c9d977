"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import openai_models as dialect
from gateway.api import shapes
from gateway.api.http import Doc, Endpoint, Response, json_response
from gateway.catalog import Catalog


class Models:
    """What the caller may use."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                "/v1/models",
                "GET",
                self.list,
                "models.read",
                "The models you may use",
                Doc("models", answer=shapes.listed(shapes.model())),
            ),
            Endpoint(
                "/v1/models/{id:path}",
                "GET",
                self.retrieve,
                "models.read",
                "One model",
                Doc("models", answer=shapes.model()),
            ),
        )

    async def list(self, request: Request) -> Response:
        targets = self._catalog.list(request.state.principal)
        return json_response(dialect.render_list((target.name, target.created_s, target.card) for target in targets))

    async def retrieve(self, request: Request) -> Response:
        target = self._catalog.resolve(request.state.principal, request.path_params["id"])
        return json_response(dialect.render_one(target.name, target.created_s, target.card))
