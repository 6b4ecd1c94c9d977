"""The audit log over HTTP, and what the edge and the routes tell it about a request."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request

from gateway.api.http import Endpoint, Response, json_response
from gateway.api.sessions import page_limit
from gateway.api.usage import iso, moment_us
from gateway.audit import Audit, Entry, Filter


class AuditLog:
    """The administrators' view of the audit log."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (Endpoint("/admin/v1/audit", "GET", self.list, "admin", "The audit log, the newest entry first"),)

    async def list(self, request: Request) -> Response:
        query = request.query_params
        wanted = Filter(
            since_us=moment_us(query.get("since"), "since", 0),
            until_us=moment_us(query.get("until"), "until", 2**62),
            **{name: query.get(name) for name in ("actor", "tenant", "action", "outcome")},
        )
        entries, has_more = await self._audit.page(wanted, page_limit(request), query.get("after"))
        data = [shown(entry) for entry in entries]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return json_response(msgspec.json.encode({"object": "list", "data": data} | ends | {"has_more": has_more}))


def shown(entry: Entry) -> dict[str, Any]:
    """An entry as administrators see it."""
    fields = msgspec.structs.asdict(entry)
    at = iso(fields.pop("at_us"))
    return {"object": "audit.entry", "at": at} | fields | {"details": msgspec.json.decode(entry.details)}
