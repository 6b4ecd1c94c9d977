"""Why a request went where it did."""

from __future__ import annotations

import msgspec
from starlette.requests import Request

from gateway import errors
from gateway.api import shapes
from gateway.api.http import Doc, Endpoint, Response, json_response
from gateway.auth import Principal
from gateway.ledger.export import usd
from gateway.routing.decisions import Attempt, Decisions


class RouteDecisions:
    """`GET /v1/decisions/{id}`, for a tenant's own requests to routes."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    def endpoints(self) -> tuple[Endpoint, ...]:
        doc = Doc("usage", answer=shapes.decision())
        summary = "Which targets a request was tried at, and why not at others"
        return (Endpoint("/v1/decisions/{id}", "GET", self.show, "usage.read", summary, doc),)

    async def show(self, request: Request) -> Response:
        principal: Principal = request.state.principal
        tenant = None if principal.admin else principal.tenant
        found = self._decisions.find(request.path_params["id"], tenant)
        if found is None:
            raise errors.error("not_found", "There is no such decision, or it is too long ago.")
        return json_response(
            msgspec.json.encode(
                {
                    "id": found.request_id,
                    "object": "decision",
                    "route": found.route,
                    "policy": found.policy,
                    "attempts": [_shown(one) for one in found.attempts],
                    "passed_over": found.passed_over,
                }
            )
        )


def _shown(attempt: Attempt) -> dict[str, object]:
    """A try; only one that failed has a message, and only one that was given up a cost that nobody tells."""
    shown: dict[str, object] = {
        "target": attempt.target,
        "outcome": attempt.outcome,
        "waited_ms": round(attempt.waited_s * 1000, 3),
        "took_ms": round(attempt.took_s * 1000, 3),
    }
    if attempt.message is not None:
        shown["message"] = attempt.message
    return shown if attempt.cost_nano is None else shown | {"cost_usd_max": usd(attempt.cost_nano)}
