"""The audit log as its readers see it: administrators everything, those of an organisation what happened in it."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway import errors
from gateway.api.admin.routes import Call, Moment, Page, Paging, Route, shown, since_us, until_us
from gateway.audit import Audit, Entry, Filter


class AuditQuery(Paging, kw_only=True, frozen=True):
    """`action` is the beginning of the action's name, such as `key.`."""

    since: Moment | None = None
    until: Moment | None = None
    actor: str | None = None
    tenant: str | None = None
    action: str | None = None
    outcome: str | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to which thing, and how it ended: `ok`, or the code of the error that he was told."""

    object: str = "audit.entry"
    at: Moment
    number: int
    id: str
    actor: str
    tenant: str
    address: str
    action: str
    subject: str
    outcome: str
    request_id: str
    details: dict[str, Any]
    hash: str


class AuditRoutes:
    """`GET /admin/v1/audit`."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/audit",
                "audit.read",
                self.list,
                "The audit log, the newest entry first",
                query=AuditQuery,
                answer=list[AuditEntry],
            ),
        )

    async def list(self, call: Call[AuditQuery, None]) -> Page[AuditEntry]:
        query, reach = call.query, call.reach
        tenant = query.tenant
        if not reach.everything:
            if tenant not in (None, reach.org_id):
                raise errors.error("permission_denied", "Only your own organisation's entries.", param="tenant")
            tenant = reach.org_id
        wanted = Filter(
            since_us=since_us(query.since),
            until_us=until_us(query.until),
            actor=query.actor,
            tenant=tenant,
            action=query.action,
            outcome=query.outcome,
        )
        entries, has_more = await self._audit.page(wanted, query.limit, query.after)
        return Page([_shown(entry) for entry in entries], entries[-1].id if has_more else None)


def _shown(entry: Entry) -> AuditEntry:
    """An entry as its readers see it."""
    return shown(AuditEntry, entry, details=msgspec.json.decode(entry.details))
