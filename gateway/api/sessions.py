"""The conversations the gateway keeps, over HTTP: listed, inspected, pinned, forked, forgotten.

`{id}` is the key a client gave its session, percent-encoded, or the id that every session has.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request

from adapters.dialects import sessions as dialect
from adapters.errors import InvalidRequest
from adapters.types import SessionAction
from gateway.api import shapes
from gateway.api.http import Doc, Endpoint, Response, event_of, json_response, read_json_body, run_until_disconnect
from gateway.audit import Audit
from gateway.errors import GatewayError
from gateway.sessions import Selection, Session, Sessions

LIMIT_DEFAULT = 20
LIMIT_MAX = 100


class Where(msgspec.Struct, kw_only=True, frozen=True):
    """What the query of every route of sessions can say; a tenant, or `*` for all, is for administrators."""

    model: str | None = None
    tenant: str | None = None


class Pages(Where, kw_only=True, frozen=True):
    """What the query of a list can say besides."""

    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT
    after: str | None = None


class KeptSessions:
    """What a tenant's conversations have left in the engines, and what becomes of it."""

    def __init__(self, sessions: Sessions, audit: Audit, body_bytes_max: int) -> None:
        self._sessions = sessions
        self._audit = audit
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/v1/sessions/{id:text}"
        told = Doc("sessions", query=Where, answer=shapes.session())
        forked = Doc("sessions", query=Where, body=dialect.Fork, answer=shapes.session())
        deleted = shapes.session("session.deleted", deleted=shapes.FLAG)
        ends = {"first_id": shapes.or_null(shapes.TEXT), "last_id": shapes.or_null(shapes.TEXT)}
        unavailable = shapes.many(shapes.TEXT)
        listed = shapes.listed(shapes.session(), "", **ends, has_more=shapes.FLAG, unavailable_models=unavailable)
        return (
            Endpoint(
                "/v1/sessions",
                "GET",
                self.list,
                "sessions",
                "Your kept conversations",
                Doc("sessions", query=Pages, answer=listed),
            ),
            Endpoint(one, "GET", self.retrieve, "sessions", "One kept conversation", told),
            Endpoint(
                one,
                "DELETE",
                self.delete,
                "sessions",
                "Erase it everywhere",
                Doc("sessions", query=Where, answer=deleted),
            ),
            Endpoint(f"{one}/pin", "POST", self._changing("pin"), "sessions", "Never drop it to make room", told),
            Endpoint(f"{one}/unpin", "POST", self._changing("unpin"), "sessions", "Let it be dropped again", told),
            Endpoint(
                f"{one}/reset", "POST", self._changing("reset"), "sessions", "Forget its history, keep its name", told
            ),
            Endpoint(
                f"{one}/fork", "POST", self.fork, "sessions", "Continue it twice: a copy under another key", forked
            ),
        )

    async def list(self, request: Request) -> Response:
        limit, after = page_limit(request), request.query_params.get("after")
        work = self._sessions.kept(request.state.principal, _selection(request))
        listing = await run_until_disconnect(request, work)
        tenant = _selection(request).tenant
        if tenant not in (None, request.state.principal.tenant):
            self._audit.add_repeatable(event_of(request.scope, "session.list", "", owner=tenant))
        page, has_more = _page(listing.sessions, limit, after)
        shown = [(one.model, one.info) for one in page]
        return json_response(dialect.render_list(shown, has_more=has_more, unavailable=listing.unavailable))

    async def retrieve(self, request: Request) -> Response:
        work = self._sessions.find(request.state.principal, request.path_params["id"], _selection(request))
        return _one(await self._audited(request, "read", work))

    async def delete(self, request: Request) -> Response:
        session = await self._change(request, "delete")
        return json_response(dialect.render_deleted(session.model, session.info))

    async def fork(self, request: Request) -> Response:
        key = dialect.parse_fork(await self._optional_body(request))
        return _one(await self._change(request, "fork", key or f"fork_{secrets.token_hex(12)}"))

    def _changing(self, action: SessionAction) -> Callable[[Request], Awaitable[Response]]:
        async def change(request: Request) -> Response:
            return _one(await self._change(request, action))

        return change

    async def _change(self, request: Request, action: SessionAction, new_key: str | None = None) -> Session:
        name, where = request.path_params["id"], _selection(request)
        work = self._sessions.change(request.state.principal, name, where, action, new_key)
        return await self._audited(request, action, work)

    async def _audited(self, request: Request, action: str, work: Coroutine[Any, Any, Session]) -> Session:
        """Do the work, and record it where it erases a session or concerns another tenant's."""
        principal, name, where = request.state.principal, request.path_params["id"], _selection(request)
        action = f"session.{action}"
        try:
            session = await run_until_disconnect(request, work)
        except GatewayError as error:
            if error.code == "not_found" and (owner := await self._sessions.owner(principal, name, where)) is not None:
                self._audit.add_repeatable(event_of(request.scope, action, name, error.code, owner=owner))
            raise
        done = event_of(request.scope, action, session.info.id, owner=session.info.tenant, model=session.model)
        foreign = session.info.tenant != principal.tenant
        if action == "session.read" and foreign:
            self._audit.add_repeatable(done)
        elif action == "session.delete" or foreign:
            self._audit.add(done)
        return session

    async def _optional_body(self, request: Request) -> bytes:
        headers = request.headers
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return b"{}"
        return await read_json_body(request, self._body_bytes_max)


def _selection(request: Request) -> Selection:
    query = request.query_params
    return Selection(query.get("model") or None, query.get("tenant") or None)


def page_limit(request: Request) -> int:
    text = request.query_params.get("limit", str(LIMIT_DEFAULT))
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= LIMIT_MAX):
        message = f"Invalid value for 'limit': expected an integer between 1 and {LIMIT_MAX}."
        raise InvalidRequest(message, param="limit")
    return int(text)


def _page(sessions: list[Session], limit: int, after: str | None) -> tuple[list[Session], bool]:
    """At most `limit` sessions that follow the one whose id is `after`, and whether there are more."""
    start = 0
    if after is not None:
        ids = [one.info.id for one in sessions]
        if after not in ids:
            raise InvalidRequest("Invalid value for 'after': there is no session with this id.", param="after")
        start = ids.index(after) + 1
    return sessions[start : start + limit], len(sessions) > start + limit


def _one(session: Session) -> Response:
    return json_response(dialect.render_one(session.model, session.info))
