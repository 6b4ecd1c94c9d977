"""`GET /v1/models` and `GET /v1/models/{id}`, in Anthropic's shape for clients that send its version."""

from __future__ import annotations

from starlette.requests import Request

from adapters.dialects import anthropic_messages
from adapters.dialects import openai_models as dialect
from adapters.errors import InvalidRequest
from gateway.api import shapes
from gateway.api.http import Doc, Endpoint, Response, json_response
from gateway.catalog import Catalog, Target

ANTHROPIC_VERSION = "anthropic-version"
PAGE_MAX = 1000
PAGE = 20


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
        if ANTHROPIC_VERSION in request.headers:
            page, more = _page(targets, request)
            models = [(target.name, target.created_s, target.card) for target in page]
            return json_response(anthropic_messages.render_models(models, more=more))
        return json_response(dialect.render_list((target.name, target.created_s, target.card) for target in targets))

    async def retrieve(self, request: Request) -> Response:
        target = self._catalog.resolve(request.state.principal, request.path_params["id"])
        render = anthropic_messages.render_model if ANTHROPIC_VERSION in request.headers else dialect.render_one
        return json_response(render(target.name, target.created_s, target.card))


def _page(targets: tuple[Target, ...], request: Request) -> tuple[tuple[Target, ...], bool]:
    """The page that `limit`, `after_id` and `before_id` ask for, and whether there are more in its direction."""
    asked = request.query_params
    limit = asked.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= PAGE_MAX):
        raise InvalidRequest(f"'limit' has to be between 1 and {PAGE_MAX}.", param="limit")
    size = int(limit[:9])
    if "before_id" in asked:
        before = targets[: _place(targets, asked["before_id"], "before_id")]
        return before[-size:], len(before) > size
    start = _place(targets, asked["after_id"], "after_id") + 1 if "after_id" in asked else 0
    return targets[start : start + size], len(targets) > start + size


def _place(targets: tuple[Target, ...], id: str, param: str) -> int:
    place = next((index for index, target in enumerate(targets) if target.name == id), None)
    if place is None:
        raise InvalidRequest(f"'{param}' is none of the models' ids.", param=param)
    return place
