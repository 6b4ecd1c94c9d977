"""People over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, shown
from gateway.auth import Role
from gateway.auth.records import Directory, Name, User, changes, find
from gateway.auth.roles import Resource
from gateway.auth.users import Email, UserChange, Users
from gateway.config_limits import ScopeLimits

ALL = "/admin/v1/users"
ONE = "/admin/v1/users/{id}"


class UserShown(msgspec.Struct, frozen=True, kw_only=True):
    """A person with a role in an organisation; `admin` administrates the whole gateway. All keys and log-ins of a
    disabled one are refused."""

    object: str = "user"
    id: str
    org_id: str | None
    email: str
    name: str
    role: Role
    admin: bool
    created_at: Moment
    disabled_at: Moment | None
    version: int
    limits: ScopeLimits | None


class UserQuery(Paging, kw_only=True, frozen=True):
    org_id: str | None = None


class NewUser(Body, frozen=True, kw_only=True):
    """`org_id` null: your own organisation."""

    org_id: str | None = None
    email: Email
    name: Name | None = None
    role: Role = "member"
    admin: bool = False
    limits: ScopeLimits | None = None


class UserRoutes:
    """`/admin/v1/users`."""

    def __init__(self, directory: Directory | None) -> None:
        self._maybe = directory

    @property
    def _directory(self) -> Directory:
        return kept(self._maybe)

    @property
    def _users(self) -> Users:
        return Users(self._directory)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", ALL, "users.read", self.list, "The people you see", query=UserQuery, answer=list[UserShown]),
            Route(
                "POST",
                ALL,
                "users.write",
                self.create,
                "Make a user",
                body=NewUser,
                answer=UserShown,
                status=201,
                action="user.create",
            ),
            Route("GET", ONE, "users.read", self.get, "One person", answer=UserShown, about=self.whose),
            Route(
                "PATCH",
                ONE,
                "users.write",
                self.change,
                "Change or disable a person",
                body=UserChange,
                answer=UserShown,
                about=self.whose,
                action="user.change",
                description="`admin` and `email` are for administrators of the gateway.",
            ),
        )

    async def whose(self, call: Call[Any, Any]) -> Resource | None:
        user = await find(self._directory.database, "users", User, id=call.path["id"])
        return None if user is None else user.resource

    async def list(self, call: Call[UserQuery, None]) -> Page[UserShown]:
        query = call.query
        users, more = await self._users.list(call.principal, query.limit, query.after, org_id=query.org_id)
        return Page([shown(UserShown, user) for user in users], users[-1].id if more else None)

    async def create(self, call: Call[None, NewUser]) -> UserShown:
        body = call.body
        user = await self._users.create(
            call.principal,
            body.org_id or call.principal.org_id,
            body.email,
            name=body.name,
            role=body.role,
            admin=body.admin,
            limits=body.limits,
        )
        call.note(user.id, email=user.email, role=user.role, admin=user.admin)
        return shown(UserShown, user)

    async def get(self, call: Call[None, None]) -> UserShown:
        return shown(UserShown, await self._users.get(call.principal, call.path["id"]))

    async def change(self, call: Call[None, UserChange]) -> UserShown:
        user = await self._users.change(call.principal, call.path["id"], call.body, call.version)
        call.note(user.id, **changes(call.body))
        return shown(UserShown, user)
