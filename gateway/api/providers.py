"""Logging in at an OpenID provider over HTTP: there and back, adding one to an account, and out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from starlette.requests import Request

from gateway import errors
from gateway.api.admin.routes import Moment, encode, kept, shown
from gateway.api.cookies import local_path
from gateway.api.http import Answer, Doc, Endpoint, Response, encode_headers, event_of, json_response
from gateway.api.log_ins import login_of, person_of
from gateway.api.people import LoggedOut, People, listed
from gateway.auth.accounts import Entered, Visit
from gateway.auth.attempts import PROVIDER_ADDRESS, origin_of
from gateway.auth.identities import Change
from gateway.auth.roles import PUBLIC

if TYPE_CHECKING:
    from gateway.auth.oidc import Flow, Provider

FLOW = "gateway_flow"


class ProviderShown(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that one can log in at: `name` is the one in its paths, `title` is for people."""

    name: str
    title: str


class Ways(msgspec.Struct, frozen=True, kw_only=True):
    """How one can become a user and log in."""

    object: str = "login.ways"
    signup: Literal["off", "invited", "open"]
    providers: list[ProviderShown]


class StartQuery(msgspec.Struct, kw_only=True, frozen=True):
    """Where to go on to after the log-in: a path of this server."""

    return_to: str = "/"


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Where the browser has to go."""

    object: str = "login.way"
    url: str


class IdentityShown(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that can log in a user. `provider` is null for one that is not configured any more."""

    object: str = "identity"
    provider: str | None
    issuer: str
    email: str | None
    linked_at: Moment


class Providers:
    """The routes of log-ins at providers, and of log-outs."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._parts = people.parts
        self._cookies = people.cookies
        self._audit = people.audit

    def endpoints(self) -> tuple[Endpoint, ...]:
        one = "/auth/v1/oidc/{provider}"
        there = Doc("account", query=StartQuery, status=303)
        return (
            Endpoint("/auth/v1/ways", "GET", self.ways, PUBLIC, "How to log in here", Doc("account", answer=Ways)),
            Endpoint(f"{one}/start", "GET", self.start, PUBLIC, "Log in at a provider: send the browser here", there),
            Endpoint(
                f"{one}/callback", "GET", self.callback, PUBLIC, "Back from the provider", Doc("account", status=303)
            ),
            Endpoint(
                f"{one}/link",
                "POST",
                self.link,
                "account.write",
                "Add a provider to your account",
                Doc("account", query=StartQuery, answer=Way),
            ),
            Endpoint(
                "/auth/v1/identities",
                "GET",
                self.identities,
                "account.read",
                "The providers of your account",
                Doc("account", answer=list[IdentityShown]),
            ),
            Endpoint(
                "/auth/v1/identities/{provider}",
                "DELETE",
                self.unlink,
                "account.write",
                "Take a provider off your account",
                Doc("account", status=204),
            ),
            Endpoint("/auth/v1/logout", "POST", self.log_out, PUBLIC, "Log out", Doc("account", answer=LoggedOut)),
        )

    async def ways(self, request: Request) -> Response:
        configured = {} if self._parts is None else self._parts.providers
        ways = [ProviderShown(name=name, title=one.config.title or name) for name, one in configured.items()]
        signup = "off" if self._parts is None else self._parts.accounts.signup
        return json_response(encode(Ways(signup=signup, providers=ways)))

    async def start(self, request: Request) -> Response:
        url, cookie = await self._begin(request, "")
        return _redirect(url, cookie)

    async def link(self, request: Request) -> Response:
        session = login_of(request)
        url, cookie = await self._begin(request, session.user_id)
        response = json_response(encode(Way(url=url)))
        response.headers.append(cookie)
        return response

    async def _begin(self, request: Request, link: str) -> tuple[str, tuple[bytes, bytes]]:
        """Where the browser goes, and the cookie by which it is known when it comes back."""
        provider, flows = self._provider(request), kept(kept(self._parts).flows)
        return_to = local_path(request.query_params.get("return_to", "/"))
        flow = flows.begin(provider.config.name, return_to, link)
        url = await provider.authorization_url(flow, flows, self._callback_url(request, provider))
        return url, self._cookies.put(request.scope, FLOW, flows.seal(flow), flows.lifetime_s)

    async def callback(self, request: Request) -> Response:
        provider, log_ins, flows = self._provider(request), kept(self._people.log_ins), kept(kept(self._parts).flows)
        sealed = self._cookies.read(request.scope, FLOW) or ""
        flow = flows.open(sealed, provider.config.name, request.query_params.get("state", ""))
        forget = self._cookies.put(request.scope, FLOW, "", 0)
        try:
            visit = await log_ins.visit(request)
            entered, changes = await self._arrive(request, provider, flow, visit)
        except errors.GatewayError as error:
            # A flow is for one try, whatever comes of it.
            error.headers["set-cookie"] = forget[1].decode()
            raise
        for change in changes:
            self._people.note(request, entered.user, change.action, **change.details)
        return log_ins.enter(request, _redirect(flow.return_to, forget), entered)

    async def _arrive(
        self, request: Request, provider: Provider, flow: Flow, visit: Visit
    ) -> tuple[Entered, list[Change]]:
        parts, changes = kept(self._parts), list[Change]()
        flows = kept(parts.flows)

        async def arrive() -> Entered:
            await parts.attempts.take((PROVIDER_ADDRESS, origin_of(visit.address)))
            await flows.spend(flow)
            back = self._callback_url(request, provider)
            identity = await provider.redeem(dict(request.query_params), flow, flows, back)
            entered, changed = await parts.identities.arrive(identity, provider.config, flow.link, visit)
            changes.extend(changed)
            return entered

        return await self._people.audited(request, "user.login", arrive()), changes

    async def identities(self, request: Request) -> Response:
        parts = kept(self._parts)
        names = {one.config.issuer: name for name, one in parts.providers.items()}
        data = [
            shown(IdentityShown, one, provider=names.get(one.issuer))
            for one in await parts.identities.of_user(person_of(request))
        ]
        return listed(data)

    async def unlink(self, request: Request) -> Response:
        session, provider = login_of(request), self._provider(request)
        await kept(self._parts).identities.unlink(session.user_id, provider.config.issuer)
        self._audit.add(event_of(request.scope, "user.unlink", session.user_id, provider=provider.config.name))
        return Answer(204, [], b"")

    async def log_out(self, request: Request) -> Response:
        """Ends the session, if there is one, and has the browser forget it in any case."""
        parts, log_ins = kept(self._parts), kept(self._people.log_ins)
        self._cookies.check_origin(request.scope, strict=True)
        found, url = await log_ins.find(request.scope), None
        if found is not None:
            session = found.session
            await parts.sessions.end(session.user_id, session.id)
            event = event_of(request.scope, "user.logout", session.user_id, login=session.id)
            tenant = found.principal.tenant
            self._audit.add(msgspec.structs.replace(event, actor=session.user_id, tenant=tenant))
            provider, here = parts.providers.get(session.provider), self._cookies.url(request.scope)
            if provider is not None and here is not None:
                url = await provider.logout_url(f"{here}/")
        answer = json_response(encode(LoggedOut(logout_url=url)), headers={"cache-control": "no-store"})
        return log_ins.leave(request, answer)

    def _provider(self, request: Request) -> Provider:
        found = kept(self._parts).providers.get(request.path_params["provider"])
        if found is None:
            raise errors.error("not_found", "There is no such provider.")
        return found

    def _callback_url(self, request: Request, provider: Provider) -> str:
        """The redirect URI, which the provider has to know; it never follows from what somebody says in a header."""
        here = self._cookies.url(request.scope)
        if here is None:
            message = "The gateway does not know its own address: set auth.people.public_url in its configuration."
            raise errors.error("bad_request", message)
        return f"{here}/auth/v1/oidc/{provider.config.name}/callback"


def _redirect(url: str, cookie: tuple[bytes, bytes]) -> Answer:
    return Answer(303, [*encode_headers({"location": url, "cache-control": "no-store"}), cookie], b"")
