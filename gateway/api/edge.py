"""The outermost layer: finds the route, lets in who may use it, and turns whatever happens into an answer.

Authorisation belongs to the matched route and happens here, before its handler is called; there is no other way to a
handler. Paths match byte for byte as they came, so no encoding of a path reaches another route than the plain one.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gateway import errors
from gateway.api.http import (
    Answer,
    ClientDisconnected,
    Endpoint,
    HeaderList,
    Response,
    error_response,
    event_of,
    speaks_anthropic,
)
from gateway.api.log_ins import LogIns
from gateway.audit import Audit
from gateway.auth import Authenticator, Principal
from gateway.auth.key_text import key_id
from gateway.auth.roles import PUBLIC, in_scope, may
from gateway.config import is_loopback
from gateway.logs import AccessLog, Fields
from gateway.networks import Networks, client_address
from gateway.telemetry import Telemetry

REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
RANDOM_BYTES = 7
PARAMETER = re.compile(r"\{(\w+)(:path|:text)?\}")
# What the audit log keeps of requests that are refused, by the code of the error.
AUDITED: Mapping[str, str] = {
    "invalid_api_key": "authenticate",
    "invalid_token": "authenticate",
    "key_revoked": "authenticate",
    "key_expired": "authenticate",
    "ip_denied": "authenticate",
    "permission_denied": "access",
    "insufficient_quota": "spend",
}
# Where clients of Anthropic and Google have their keys.
KEY_HEADERS = (b"x-api-key", b"x-goog-api-key")
LEFT = 499  # Stands in logs and metrics for a client that went away; it is never sent.

Methods = dict[str, Endpoint]


class Router:
    """Endpoints by path. Exact paths win over patterns, earlier patterns over later ones."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._exact: dict[bytes, Methods] = {}
        self._patterns: dict[re.Pattern[bytes], Methods] = {}
        for endpoint in endpoints:
            if "{" in endpoint.path:
                methods = self._patterns.setdefault(_compile(endpoint.path), {})
            else:
                methods = self._exact.setdefault(endpoint.path.encode(), {})
            if endpoint.method in methods:
                raise ValueError(f"two endpoints for {endpoint.method} {endpoint.path}")
            methods[endpoint.method] = endpoint

    def match(self, raw_path: bytes) -> tuple[Methods, dict[str, str]]:
        """The endpoints of a path by method, and its parameters; raises `not_found`."""
        if (methods := self._exact.get(raw_path)) is not None:
            return methods, {}
        for pattern, methods in self._patterns.items():
            if (match := pattern.fullmatch(raw_path)) is not None:
                path = next(iter(methods.values())).path
                return methods, {
                    name: _decode(value, any_text=f"{{{name}:text}}" in path)
                    for name, value in match.groupdict().items()
                }
        raise _unknown_path(self._meant(raw_path), _elsewhere(raw_path))

    def _meant(self, raw_path: bytes) -> str | None:
        """What there is where a base URL lacks /v1, or has it twice."""
        other = raw_path.removeprefix(b"/v1") if raw_path.startswith(b"/v1/v1/") else b"/v1" + raw_path
        return other.decode() if other in self._exact else None


_OF_PROVIDERS = re.compile(
    rb"/v1/(images|audio|moderations|files|uploads|batches|fine_tuning|vector_stores|assistants|threads|videos|evals)"
    rb"(?![^/])"
)


def _compile(path: str) -> re.Pattern[bytes]:
    """A pattern over the raw path; compiling the same path twice gives the same object."""
    parts = PARAMETER.split(path)
    pattern = re.escape(parts[0])
    for name, kind, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pattern += f"(?P<{name}>{'.+' if kind == ':path' else '[^/]+'}){re.escape(literal)}"
    return re.compile(pattern.encode())


def _decode(raw: bytes, any_text: bool) -> str:
    """A path parameter; one that hides control characters or climbs out of its place is an unknown path, unless it is
    said to be no more than a text."""
    try:
        value = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise _unknown_path() from None
    if any_text:
        return value
    if not value.isprintable() or any(segment in ("", ".", "..") for segment in value.split("/")):
        raise _unknown_path()
    return value


def _elsewhere(raw_path: bytes) -> str | None:
    """Where a provider may have what an SDK of OpenAI's asks for and the gateway has not got."""
    found = _OF_PROVIDERS.match(raw_path)
    return None if found is None else f"/v1/providers/<name>/{found[1].decode()}"


def _unknown_path(meant: str | None = None, elsewhere: str | None = None) -> errors.GatewayError:
    hint = "." if meant is None else f"; did you mean {meant}? Look at the client's base URL."
    if elsewhere is not None:
        hint = (
            f": the gateway has no such API. Of providers that are open for their own (passthrough) it is {elsewhere}."
        )
    return errors.error("not_found", f"There is nothing at this path{hint}")


def choose(methods: Mapping[str, Endpoint], method: str) -> Endpoint:
    """The endpoint for a method; raises `method_not_allowed` with the ones that are."""
    endpoint = methods.get("GET" if method == "HEAD" else method)
    if endpoint is None:
        allow = allowed(methods)
        raise errors.error("method_not_allowed", f"Use {allow} here.", headers={"allow": allow})
    return endpoint


def allowed(methods: Mapping[str, Endpoint]) -> str:
    return ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])


class Visitor(msgspec.Struct):
    """What a request says of who asks: what it was sent with, as an Authorization header has it, and from where.
    `admitted` is who that was before, if he might do the one thing that is asked for."""

    credential: str | None
    address: str
    admitted: Principal | None = None


class Edge:
    """The ASGI application around all endpoints. While `draining`, only public endpoints are served.

    `loopback_only` refuses requests whose Host is not this machine. Where no key is asked for, it is what keeps a web
    page from reaching the gateway through the visitor's browser under a name that was made to mean 127.0.0.1. Requests
    of `proxies` come from where these say. `log_ins` knows browsers that send no key. `recognises` tells quickly that
    a visitor who was admitted would be authenticated as the same once more.
    """

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        authenticator: Authenticator,
        telemetry: Telemetry,
        access_log: AccessLog,
        *,
        audit: Audit | None = None,
        loopback_only: bool = False,
        proxies: Networks | None = None,
        log_ins: LogIns | None = None,
        recognises: Callable[[Principal], bool] = lambda principal: False,
    ) -> None:
        self.draining = False
        self._audit = audit or Audit(None)
        self._loopback_only = loopback_only
        self._proxies = proxies
        self._log_ins = log_ins
        self._router = Router(endpoints)
        self._authenticator = authenticator
        self._recognises = recognises
        self._telemetry = telemetry
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        if self._proxies:
            scope["client"] = self.client(scope.get("client"), scope["headers"])
        fields: Fields = {}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "log": fields}
        status, failure = await self._serve(scope, receive, send, request_id)
        self.note(scope, status, failure, time.perf_counter() - started)

    def note(self, scope: Scope, status: int, failure: str | None, duration_s: float) -> None:
        """Count and log a request that has ended, and audit it if need be."""
        route = scope.get("route_path", "other")
        method = scope["method"]
        fields, request_id = scope["state"]["log"], scope["state"]["request_id"]
        path = scope["raw_path"].decode("ascii", "backslashreplace")
        if (principal := scope["state"].get("principal")) is not None:
            fields = {"key": principal.key_id} | fields
        if failure is not None:
            fields = {"error": failure} | fields
            if (action := AUDITED.get(failure)) is not None:
                self._audit.add_repeatable(event_of(scope, action, f"{method} {route}", failure, **_claimed(scope)))
        self.count(route, method, path, status, duration_s, fields, request_id)

    def count(
        self, route: str, method: str, path: str, status: int, duration_s: float, fields: Fields, request_id: str
    ) -> None:
        """The part of `note` that every request has."""
        self._telemetry.request(route, method, status, duration_s)
        if self._access_log.enabled:
            ms = int(duration_s * 10_000 + 0.5) / 10
            line: Fields = {"method": method, "path": path, "status": status, "ms": ms, **fields}
            line["request_id"] = request_id
            self._access_log.add(line)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> tuple[int, str | None]:
        """Answer the request; the status for the log, and the code of what failed."""
        try:
            response = await self._handle(Request(scope, receive, send))
            response.headers.append((b"x-request-id", request_id.encode()))
            if speaks_anthropic(scope):
                response.headers.append((b"request-id", request_id.encode()))
            await response(scope, receive, send)
            failure = getattr(response, "failure", None)
            return response.status, failure.code if failure is not None else None
        except ClientDisconnected:
            return LEFT, "client_disconnected"
        except asyncio.CancelledError:
            # Only the end of a drain cancels a request, so the cancellation ends here, with an answer.
            error = shutting_down()
        except Exception as exc:
            error = errors.from_exception(exc, request_id)
        answer = error_response(error, request_id, anthropic=speaks_anthropic(scope))
        await answer(scope, receive, send)
        return answer.status, error.code

    async def _handle(self, request: Request) -> Response:
        """The handler's answer, once the route is known and its access granted."""
        scope = request.scope
        methods, scope["path_params"] = self._router.match(scope["raw_path"])
        scope["route_path"] = next(iter(methods.values())).shown
        if scope["method"] == "OPTIONS":
            return Answer(200, [(b"allow", allowed(methods).encode())], b"")
        endpoint = choose(methods, scope["method"])
        if endpoint.permission != PUBLIC:
            address = (scope.get("client") or ("",))[0]
            visitor = self.visitor(scope["headers"], address, request.url.hostname or "")
            await self.admit(endpoint.permission, visitor, scope["state"], scope)
        return await endpoint.handler(request)

    def visitor(self, headers: HeaderList, address: str, hostname: str) -> Visitor:
        """Who asks, going by a head that came from `address`; `hostname` is the one of its Host header. Raises what
        nobody may send."""
        if self.draining:
            raise shutting_down()
        if self._loopback_only and not is_loopback(hostname):
            raise errors.error("permission_denied", "Without keys, only requests to a loopback address are served.")
        return Visitor(_credential(headers), address)

    def known(self, visitor: Visitor) -> Principal | None:
        """Who was admitted before and still may."""
        admitted = visitor.admitted
        return admitted if admitted is not None and self._recognises(admitted) and not self.draining else None

    async def admit(
        self, permission: str, visitor: Visitor, state: dict[str, Any], scope: Scope | None = None
    ) -> Principal:
        """Who is asking, if he may. Who was refused is in `state` all the same. Without a `scope` there is no cookie to
        look at."""
        if self.draining:
            raise shutting_down()
        principal = None
        if visitor.credential is None and scope is not None and self._log_ins is not None:
            principal = await self._log_ins.authenticate(scope)
        if principal is None:
            principal = await self._authenticator.authenticate(visitor.credential, visitor.address)
        state["principal"] = principal
        if principal is not visitor.admitted:
            if may(principal, permission) != "allowed":
                why = "." if in_scope(principal, permission) else ", which the scopes of this key leave out."
                raise errors.error("permission_denied", f"This needs the permission {permission}{why}")
            visitor.admitted = principal
        return principal

    def permission(self, method: str, path: str) -> str:
        """What the endpoint of a literal path asks for."""
        return choose(self._router.match(path.encode())[0], method).permission

    def client(self, peer: tuple[str, int] | None, headers: HeaderList) -> tuple[str, int]:
        """Where a request came from."""
        return _client(peer, headers, self._proxies) if self._proxies else peer or ("", 0)


def _client(peer: tuple[str, int] | None, headers: HeaderList, proxies: Networks) -> tuple[str, int]:
    """Where the request came from; its port is not known behind a proxy."""
    host, port = peer or ("", 0)
    forwarded = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    address = client_address(host, forwarded, proxies)
    return address, port if address == host else 0


def _credential(headers: HeaderList) -> str | None:
    """What the request was sent with, as an Authorization header has it; clients of Anthropic and Google say it in
    headers of their own, which only count without that."""
    for wanted, prefix in ((b"authorization", ""), *((name, "Bearer ") for name in KEY_HEADERS)):
        given = [value for name, value in headers if name == wanted]
        if len(given) > 1:
            raise errors.error("bad_request", "Send one Authorization header.")
        if given:
            return prefix + str(given[0].decode("latin-1")).strip()
    return None


def _claimed(scope: Scope) -> dict[str, str]:
    """The id of the key that a request came with, if it looks like one. Whoever sent it need not own it."""
    given = [value for name, value in scope["headers"] if name in (b"authorization", *KEY_HEADERS)]
    identity = key_id(given[0].decode("latin-1").rpartition(" ")[2]) if given else None
    return {} if identity is None else {"key": identity}


def shutting_down() -> errors.GatewayError:
    """What requests are told that come or still run when the server ends."""
    return errors.error("shutting_down", "The server is shutting down.", headers={"connection": "close"})


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own request id, else a new one."""
    return given_request_id(headers) or new_request_id()


def given_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The client's own request id when it is safe to repeat."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return None


def new_request_id() -> str:
    return f"{_moment()}{os.urandom(RANDOM_BYTES).hex()}"


def new_request_ids() -> Iterator[str]:
    """Many of them, drawn from the system by the hundred, because each draw is a call of it."""
    while True:
        drawn, moment = os.urandom(256 * RANDOM_BYTES).hex(), _moment()
        for at in range(0, len(drawn), 2 * RANDOM_BYTES):
            yield moment + drawn[at : at + 2 * RANDOM_BYTES]


def _moment() -> str:
    """What ids begin with, so that those of a moment are neighbours in an index: Unix time in units of 1/256 s."""
    return f"{time.time_ns() * 256 // 10**9:010x}"
