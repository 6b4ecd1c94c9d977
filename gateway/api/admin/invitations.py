"""Invitations into an organisation: made, listed and withdrawn by those who administrate its people."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, part_of, shown
from gateway.api.people import PeopleParts
from gateway.auth import Role
from gateway.auth.roles import Resource, outranks


class InvitationBody(Body, kw_only=True, frozen=True):
    """Who is invited, and as what. `org_id` null: your own organisation."""

    email: Annotated[str, Meta(min_length=1, max_length=254)]
    role: Role = "member"
    org_id: Annotated[str, Meta(max_length=100)] | None = None


class InvitationQuery(Paging, kw_only=True, frozen=True):
    """`org_id` null: your own organisation."""

    org_id: str | None = None


class InvitationShown(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation. `token` is in the answer to its creation only: it is what signing up takes."""

    object: str = "invitation"
    id: str
    email: str
    org_id: str
    role: Role
    inviter: str
    created_at: Moment
    expires_at: Moment
    token: str | None = None


class InvitationRoutes:
    """`/admin/v1/invitations`."""

    def __init__(self, parts: PeopleParts | None) -> None:
        self._invitations = None if parts is None else parts.invitations
        self._orgs = None if parts is None else parts.orgs

    def routes(self) -> tuple[Route, ...]:
        path, one = "/admin/v1/invitations", "/admin/v1/invitations/{id}"
        return (
            Route(
                "GET",
                path,
                "users.read",
                self.list,
                "Open invitations into an organisation",
                query=InvitationQuery,
                answer=list[InvitationShown],
            ),
            Route(
                "POST",
                path,
                "users.write",
                self.create,
                "Invite somebody, who signs up with the token that this answers",
                body=InvitationBody,
                answer=InvitationShown,
                status=201,
                action="invitation.create",
            ),
            Route(
                "DELETE",
                one,
                "users.write",
                self.withdraw,
                "Withdraw an invitation",
                about=self._about,
                action="invitation.withdraw",
            ),
        )

    async def list(self, call: Call[InvitationQuery, None]) -> Page[InvitationShown]:
        org_id = await self._org_id(call, call.query.org_id)
        call.require("users.read", _resource(org_id), "org_id")
        found = await kept(self._invitations).list(org_id)
        part, cursor = part_of(found, call.query, lambda one: one.id)
        return Page([shown(InvitationShown, one) for one in part], cursor)

    async def create(self, call: Call[None, InvitationBody]) -> InvitationShown:
        body, principal = call.body, call.principal
        org_id = await self._org_id(call, body.org_id)
        call.require("users.write", _resource(org_id), "org_id")
        if principal.scopes is not None:
            message = "A key with scopes invites nobody, as whoever comes is not bound by them."
            raise errors.error("permission_denied", message)
        if not outranks(principal, body.role, _resource(org_id)):
            raise errors.error("permission_denied", f"Your role is below that of {body.role}.", param="role")
        inviter = principal.user_id or principal.key_id
        invitation, token = await kept(self._invitations).create(body.email, org_id, body.role, inviter)
        call.note(invitation.id, email=invitation.email, org=org_id, role=body.role)
        return shown(InvitationShown, invitation, token=token)

    async def withdraw(self, call: Call[None, None]) -> None:
        await kept(self._invitations).withdraw(call.path["id"])

    async def _about(self, call: Call[None, None]) -> Resource | None:
        found = await kept(self._invitations).get(call.path["id"])
        return None if found is None or found.used_us is not None else _resource(found.org_id)

    async def _org_id(self, call: Call[Any, Any], wanted: str | None) -> str:
        """The organisation that is meant, which the caller may see and which is open."""
        org_id = wanted or call.principal.org_id
        if org_id is None:
            raise errors.error("invalid_value", "Say which organisation: org_id.", param="org_id")
        org = await kept(self._orgs).get(call.principal, org_id)
        if org.archived_us is not None:
            raise errors.error("conflict", "The organisation is archived.")
        return org.id


def _resource(org_id: str) -> Resource:
    return Resource(tenant=org_id, org_id=org_id)
