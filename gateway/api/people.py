"""People over HTTP: signing up, logging in and out, their profile, their password and their log-ins.

Whoever logs in gets a cookie and is from then on a caller like any other, with the rights of the user. What changes an
account takes such a log-in; an API key cannot do it, so that one that is lost does not lose the account.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from gateway import errors
from gateway.api.admin.routes import Body, Moment, decoder, encode, kept, shown
from gateway.api.cookies import Cookies
from gateway.api.http import Answer, Doc, Endpoint, Response, event_of, json_response, read_json_body
from gateway.api.log_ins import LogIns, login_of, person_of
from gateway.audit import Audit
from gateway.auth.accounts import Accounts, Entered, Rejected
from gateway.auth.attempts import Attempts
from gateway.auth.browser import BrowserSession, BrowserSessions
from gateway.auth.identities import Identities
from gateway.auth.invitations import Invitations
from gateway.auth.orgs import Orgs
from gateway.auth.records import User
from gateway.auth.roles import PUBLIC
from gateway.auth.users import UserChange, Users

if TYPE_CHECKING:
    from gateway.auth.oidc import Flows, Provider

BODY_BYTES_MAX = 16 << 10

Email = Annotated[str, Meta(min_length=1, max_length=254)]
Password = Annotated[str, Meta(min_length=1, max_length=1000)]

T = TypeVar("T")


class SignUp(Body, kw_only=True, frozen=True):
    """Somebody new. `invitation` is the token of one."""

    email: Email
    password: Password
    name: Annotated[str, Meta(max_length=100)] = ""
    invitation: Annotated[str, Meta(max_length=200)] | None = None


class LogInBody(Body, kw_only=True, frozen=True):
    """Who somebody says to be."""

    email: Email
    password: Password


class PasswordBody(Body, kw_only=True, frozen=True):
    """A new password. `current_password` is the old one, where there is one."""

    password: Password
    current_password: Password | None = None


class ProfileBody(Body, kw_only=True, frozen=True):
    """What may be changed of oneself."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]


class TeamPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A team that somebody is in."""

    id: str
    role: str


class LoginShown(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that is logged in; `provider` is the one that vouched, null for a password."""

    object: str = "login"
    id: str
    provider: str | None
    address: str
    agent: str
    created_at: Moment
    last_used_at: Moment
    expires_at: Moment
    current: bool


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Oneself. `login` is null where an API key asks."""

    object: str = "user"
    id: str
    email: str
    name: str
    role: str
    admin: bool
    org: str | None
    org_name: str | None
    teams: list[TeamPlace]
    has_password: bool
    created_at: Moment
    login: LoginShown | None


class LoggedOut(msgspec.Struct, frozen=True, kw_only=True):
    """`logout_url` is where the browser has to go to log out at its provider too, null where there is nothing to do."""

    object: str = "logout"
    logout_url: str | None


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How many log-ins were ended."""

    object: str = "logins.ended"
    ended: int


class PeopleParts(NamedTuple):
    """What people need; there is none of it without a database, and no flows without a provider."""

    accounts: Accounts
    identities: Identities
    invitations: Invitations
    sessions: BrowserSessions
    orgs: Orgs
    users: Users
    attempts: Attempts
    providers: Mapping[str, Provider] = {}
    flows: Flows | None = None


class People:
    """The routes of people about themselves."""

    def __init__(self, parts: PeopleParts | None, cookies: Cookies, audit: Audit) -> None:
        self.parts = parts
        self.cookies = cookies
        self.audit = audit
        self.log_ins = None if parts is None else LogIns(parts.sessions, cookies)

    def endpoints(self) -> tuple[Endpoint, ...]:
        me = Doc("account", answer=Me)
        logins = "/auth/v1/logins"
        return (
            Endpoint(
                "/auth/v1/signup",
                "POST",
                self.sign_up,
                PUBLIC,
                "Become a user",
                Doc("account", body=SignUp, answer=Me, status=201),
            ),
            Endpoint(
                "/auth/v1/login", "POST", self.log_in, PUBLIC, "Log in", Doc("account", body=LogInBody, answer=Me)
            ),
            Endpoint("/auth/v1/me", "GET", self.me, "account.read", "Who you are", me),
            Endpoint(
                "/auth/v1/me",
                "PATCH",
                self.rename,
                "account.write",
                "Change your name",
                Doc("account", body=ProfileBody, answer=Me),
            ),
            Endpoint(
                "/auth/v1/password",
                "POST",
                self.change_password,
                "account.write",
                "Change your password, which ends your other log-ins",
                Doc("account", body=PasswordBody, answer=Me),
            ),
            Endpoint(
                logins,
                "GET",
                self.logins,
                "account.read",
                "Where you are logged in",
                Doc("account", answer=list[LoginShown]),
            ),
            Endpoint(
                logins,
                "DELETE",
                self.end_others,
                "account.write",
                "Log out everywhere else",
                Doc("account", answer=Ended),
            ),
            Endpoint(
                f"{logins}/{{id}}",
                "DELETE",
                self.end_one,
                "account.write",
                "Log out one browser",
                Doc("account", status=204),
            ),
        )

    async def sign_up(self, request: Request) -> Response:
        parts, log_ins = kept(self.parts), kept(self.log_ins)
        body = await self._body(request, SignUp)
        visit = await log_ins.visit(request)
        work = parts.accounts.sign_up(body.email, body.password, body.name, body.invitation, visit)
        entered = await self.audited(request, "user.signup", work)
        return log_ins.enter(request, await self._me(entered.user.id, entered.session, 201), entered)

    async def log_in(self, request: Request) -> Response:
        parts, log_ins = kept(self.parts), kept(self.log_ins)
        body = await self._body(request, LogInBody)
        work = parts.accounts.log_in(body.email, body.password, await log_ins.visit(request))
        entered = await self.audited(request, "user.login", work)
        return log_ins.enter(request, await self._me(entered.user.id, entered.session), entered)

    async def audited(self, request: Request, action: str, work: Awaitable[Entered]) -> Entered:
        """Let somebody in, and record it, or that and why it failed."""
        try:
            entered = await work
        except errors.GatewayError as error:
            user = error.user if isinstance(error, Rejected) else None
            failed = event_of(request.scope, action, "" if user is None else user.id, error.code)
            tenant = failed.tenant if user is None else user.org_id or user.id
            self.audit.add_repeatable(msgspec.structs.replace(failed, tenant=tenant))
            raise
        session = entered.session
        self.note(request, entered.user, action, login=session.id, provider=session.provider)
        return entered

    def note(self, request: Request, user: User, action: str, **details: str | int | bool) -> None:
        """Record what somebody did who was not known yet when the request came."""
        done = event_of(request.scope, action, user.id)
        who = {"actor": user.id, "tenant": user.org_id or user.id}
        self.audit.add(msgspec.structs.replace(done, details=details, **who))

    async def me(self, request: Request) -> Response:
        return await self._me(person_of(request), getattr(request.state, "login", None))

    async def _me(self, user_id: str, session: BrowserSession | None, status: int = 200) -> Answer:
        parts = kept(self.parts)
        standing, has_password = await parts.accounts.profile(user_id)
        user, org = standing.user, standing.org
        assert user is not None
        me = shown(
            Me,
            user,
            org=None if org is None else org.id,
            org_name=None if org is None else org.name,
            teams=[TeamPlace(id=one.team_id, role=one.role) for one in standing.members],
            has_password=has_password,
            login=None if session is None else shown_login(session, session),
        )
        return json_response(encode(me), status, {"cache-control": "no-store"})

    async def rename(self, request: Request) -> Response:
        session, body = login_of(request), await self._body(request, ProfileBody)
        users, principal = kept(self.parts).users, request.state.principal
        user = await users.change(principal, session.user_id, UserChange(name=body.name))
        self.audit.add(event_of(request.scope, "user.change", user.id, name=user.name))
        return await self._me(user.id, session)

    async def change_password(self, request: Request) -> Response:
        session, body = login_of(request), await self._body(request, PasswordBody)
        log_ins = kept(self.log_ins)
        visit = await log_ins.visit(request)
        work = kept(self.parts).accounts.change_password(session, body.current_password, body.password, visit)
        entered = await self.audited(request, "user.password", work)
        return log_ins.enter(request, await self._me(entered.user.id, entered.session), entered)

    async def logins(self, request: Request) -> Response:
        found = await kept(self.parts).sessions.list(person_of(request))
        current = getattr(request.state, "login", None)
        data = [shown_login(one, current) for one in found]
        return listed(data)

    async def end_one(self, request: Request) -> Response:
        session, identity = login_of(request), request.path_params["id"]
        if not await kept(self.parts).sessions.end(session.user_id, identity):
            raise errors.error("not_found", "You have no such log-in.")
        self.audit.add(event_of(request.scope, "user.logout", session.user_id, login=identity))
        return Answer(204, [], b"")

    async def end_others(self, request: Request) -> Response:
        session = login_of(request)
        ended = await kept(self.parts).accounts.end_others(session)
        self.audit.add(event_of(request.scope, "user.logout", session.user_id, ended=ended))
        return json_response(encode(Ended(ended=ended)))

    async def _body(self, request: Request, kind: type[T]) -> T:
        self.cookies.check_origin(request.scope, strict=False)
        return decoder(kind)(await read_json_body(request, BODY_BYTES_MAX))


def listed(data: Sequence[msgspec.Struct]) -> Answer:
    """A whole list, for its owner's eyes."""
    body = {"object": "list", "data": data, "has_more": False, "next_cursor": None}
    return json_response(encode(body), headers={"cache-control": "no-store"})


def shown_login(session: BrowserSession, current: BrowserSession | None) -> LoginShown:
    """A log-in as its user sees it."""
    return shown(
        LoginShown,
        session,
        provider=session.provider or None,
        last_used_at=Moment(session.seen_us),
        current=current is not None and current.id == session.id,
    )
