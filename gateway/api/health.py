"""Whether the gateway lives and can serve, what it has counted, and what it is. All of it is public.

Nothing here belongs to a tenant: model names, states and totals only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from starlette.requests import Request

from gateway import errors
from gateway.api import shapes
from gateway.api.http import Doc, Endpoint, Response, error_response, json_response, respond
from gateway.telemetry import Telemetry

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ModelStatus(Protocol):
    """The part of an adapter's status that is shown here: `loading`, `ready`, `failed`, `restarting`, `stopped`,
    `sleeping` (until somebody asks for it) or `pulling`."""

    @property
    def state(self) -> str: ...

    @property
    def progress(self) -> float: ...


class Health:
    """`models` reads the state of every configured model by name, `draining` whether the end has begun, `stuck` whether
    no request can be recorded, so that none is let in."""

    def __init__(
        self,
        telemetry: Telemetry,
        models: Callable[[], Mapping[str, ModelStatus]],
        draining: Callable[[], bool],
        stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        self._telemetry = telemetry
        self.statuses = models
        self._draining = draining
        self._stuck = stuck

    def endpoints(self) -> tuple[Endpoint, ...]:
        alive = Doc("server", answer=shapes.thing(status=shapes.TEXT))
        metrics = Doc("server", answer={"type": "string"}, media=("text/plain",))
        return (
            Endpoint(
                "/health",
                "GET",
                self.health,
                "public",
                "Whether requests can be served, with each model's state",
                shapes.health(),
            ),
            Endpoint("/health/live", "GET", self.live, "public", "200 while the process answers", alive),
            Endpoint(
                "/health/ready",
                "GET",
                self.health,
                "public",
                "The same as /health, for readiness probes",
                shapes.health(),
            ),
            Endpoint("/metrics", "GET", self.metrics, "public", "Prometheus metrics", metrics),
        )

    async def live(self, request: Request) -> Response:
        return json_response(b'{"status":"ok"}')

    async def health(self, request: Request) -> Response:
        models = {
            name: {"state": status.state, "progress": round(status.progress, 3)}
            for name, status in self.statuses().items()
        }
        problem = self._problem({model["state"] for model in models.values()})
        if problem is None:
            return json_response(msgspec.json.encode({"status": "ok", "models": models}))
        answer = error_response(problem)
        answer.body = msgspec.json.encode({"status": problem.message.lower(), "models": models, **problem.body()})
        return answer

    def _problem(self, states: set[object]) -> errors.GatewayError | None:
        """Why nothing can be served, in llama-server's words where it has some."""
        if self._draining():
            return errors.error("shutting_down", "Shutting down")
        if self._stuck():
            return errors.error("overloaded", "Usage cannot be recorded")
        if states & {"ready", "sleeping"}:
            return None
        if states & {"loading", "pulling", "restarting", "stopped"}:
            return errors.error("model_loading", "Loading model")
        return errors.error("model_unavailable", "No model could be loaded")

    async def metrics(self, request: Request) -> Response:
        return respond(self._telemetry.scrape(), METRICS_TYPE)


def front_page(version: str, endpoints: Iterable[Endpoint]) -> Endpoint:
    """`GET /`: what this is, and where everything is."""
    body = msgspec.json.format(
        msgspec.json.encode(
            {
                "name": "inference-gateway",
                "version": version,
                "description": "An OpenAI-compatible inference gateway. Point an OpenAI SDK's base_url at /v1.",
                "endpoints": {f"{endpoint.method} {endpoint.shown}": endpoint.summary for endpoint in endpoints},
            }
        ),
        indent=2,
    )

    about = Doc("server", answer={"type": "object"})

    async def front(request: Request) -> Response:
        return json_response(body + b"\n")

    return Endpoint("/", "GET", front, "public", "What this server is", about)
