"""Administration routes as data, and what all of them have in common.

A handler is given a decoded `Call` and returns a Struct, a `Page`, None, or a ready answer. Around it, in this order:
what the route is about is looked up and compared with the caller's rights, the query and the body are decoded strictly,
the handler runs, its change is put into the audit log, its answer encoded. `gateway/README.md` says how to add one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta
from msgspec.structs import replace
from starlette.requests import Request

from adapters.dialects import openai_wire as wire
from adapters.errors import InvalidRequest
from gateway import errors
from gateway.api.http import Answer, Doc, Endpoint, Response, event_of, json_response, read_json_body
from gateway.audit import Audit
from gateway.auth import Principal
from gateway.auth.records import not_found, require
from gateway.auth.roles import Reach, Resource, reach
from gateway.moments import iso, moment_us

Q = TypeVar("Q")
B = TypeVar("B")
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

ETAG = re.compile(r'"(\d{1,18})"')
# No database can keep this character in a text.
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,150}")
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


class Moment:
    """A point in time: ISO 8601 outside, microseconds since 1970 inside."""

    __slots__ = ("us",)

    def __init__(self, us: int) -> None:
        self.us = us

    @property
    def iso(self) -> str:
        return iso(self.us)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moment) and other.us == self.us

    def __hash__(self) -> int:
        return hash(self.us)


def moment(us: int | None) -> Moment | None:
    """A time that may be missing."""
    return None if us is None else Moment(us)


def since_us(given: Moment | None) -> int:
    """The beginning of a span of time."""
    return 0 if given is None else given.us


def until_us(given: Moment | None) -> int:
    """The end of a span of time, which no longer belongs to it."""
    return 2**62 if given is None else given.us


class Body(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a request holds in its body: fields that are not known here are refused."""


class Query(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a request holds behind its question mark."""


class Paging(Query, kw_only=True, frozen=True):
    """The part of a list that is wanted: at most `limit` items behind the one that the cursor `after` names."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    after: Annotated[str, Meta(min_length=1, max_length=300)] | None = None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list. `next_cursor` is the `after` of the next part, None at the end."""

    data: list[T]
    next_cursor: str | None = None


def part_of(items: Sequence[T], paging: Paging, key: Callable[[T], str]) -> tuple[list[T], str | None]:
    """The part of a whole list that is wanted, and the cursor of the next one."""
    begin = 0
    if paging.after is not None:
        begin = next((i for i, item in enumerate(items, 1) if key(item) == paging.after), 0)
        if not begin:
            raise errors.error("invalid_value", "There is nothing in the list with this id.", param="after")
    end = begin + paging.limit
    return [*items[begin:end]], key(items[end - 1]) if end < len(items) else None


def shown(kind: type[S], record: msgspec.Struct, **other: Any) -> S:
    """A record as it is answered: `other`, and for the rest its fields of the same names; `created_at` is its
    `created_us`."""
    for name in kind.__struct_fields__:
        us = name.removesuffix("_at") + "_us"
        if name not in other and hasattr(record, name):
            other[name] = getattr(record, name)
        elif name not in other and hasattr(record, us):
            other[name] = moment(getattr(record, us))
    return kind(**other)


class Call(Generic[Q, B]):
    """A request as a handler sees it.

    `version` is what `If-Match` names (None: any); the owner of the thing compares it in the statement that changes it
    and raises `precondition_failed`. `query` and `body` are of the route's types, where it has them. `idempotency_key`
    makes a change happen once where the route says so. `resource` is what the route's `about` found.
    """

    query: Q
    body: B

    def __init__(self, request: Request, permission: str) -> None:
        self.request = request
        self.principal: Principal = request.state.principal
        self.path: dict[str, str] = request.path_params
        self.version = _version(request.headers.get("if-match"))
        self.idempotency_key = _idempotency_key(request.headers.get("idempotency-key"))
        self.resource: Resource | None = None
        self.subject: str | None = None
        self.details: dict[str, str | int | bool] = {}
        self._permission = permission

    @property
    def reach(self) -> Reach:
        """What of a list the caller may see."""
        return reach(self.principal, self._permission)

    def note(self, subject: str, **details: str | int | bool) -> None:
        """What the audit log says about the change: what was changed (else the path's `id`), and how."""
        self.subject = subject
        self.details |= details

    def require(self, permission: str, resource: Resource | None, param: str | None = None) -> None:
        """Raise unless the caller has another permission too: `permission_denied`, or `not_found` of what is hidden."""
        require(self.principal, permission, resource, param)


class Route(msgspec.Struct, frozen=True):
    """One administration route.

    `about` finds whose the thing in the path is, None when it is not there; without it the route is about nothing in
    particular, and a list has to keep to `call.reach`. `answer` is the type of what the handler returns, `list[T]` for
    a `Page[T]`; None: 204. Everything but GET has the `action` that it is in the audit log. `elsewhere` says of fields
    that the body has not got where they belong.
    """

    method: Method
    path: str
    permission: str
    handler: Callable[[Call[Any, Any]], Awaitable[Any]]
    summary: str
    query: type[Query] | None = None
    body: type[msgspec.Struct] | None = None
    answer: Any = None
    status: int = 200
    about: Callable[[Call[Any, Any]], Awaitable[Resource | None]] | None = None
    action: str = ""
    description: str = ""
    headers: dict[str, str] = {}
    media: tuple[str, ...] = ("application/json",)
    elsewhere: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        if not self.path.startswith("/admin/v1/"):
            raise ValueError(f"{self.path} is no administration route")
        if self.method != "GET" and not self.action:
            raise ValueError(f"{self.method} {self.path}: what is this action called in the audit log?")


class Admin:
    """Turns routes into endpoints."""

    def __init__(self, audit: Audit, body_bytes_max: int) -> None:
        self._audit = audit
        self._body_bytes_max = body_bytes_max

    def endpoints(self, routes: Iterable[Route]) -> tuple[Endpoint, ...]:
        return tuple(self._endpoint(route) for route in routes)

    def _endpoint(self, route: Route) -> Endpoint:
        decode = None if route.body is None else decoder(route.body)

        async def handler(request: Request) -> Response:
            call: Call[Any, Any] = Call(request, route.permission)
            if any("\0" in value for value in call.path.values()):
                raise not_found()
            try:
                if route.about is not None:
                    await _authorise(route, call)
                if route.query is not None:
                    call.query = _query(request, route.query)
                if decode is not None:
                    body = await read_json_body(request, self._body_bytes_max)
                    if NUL.search(body):
                        raise InvalidRequest("No text of the body may hold the character NUL.")
                    call.body = _decoded(route, decode, body)
                answer = await route.handler(call)
            except errors.GatewayError as error:
                self._note_hidden(route, call, error)
                raise
            if route.action:
                subject = call.path.get("id", "") if call.subject is None else call.subject
                done = event_of(request.scope, route.action, subject)
                self._audit.add(replace(done, details=call.details))
            return _response(route, request, answer)

        doc = Doc(
            tag=route.path.split("/")[3],
            query=route.query,
            body=route.body,
            answer=route.answer,
            status=204 if route.answer is None else route.status,
            description=route.description,
            headers=route.headers,
            media=route.media,
        )
        return Endpoint(route.path, route.method, handler, route.permission, route.summary, doc)

    def _note_hidden(self, route: Route, call: Call[Any, Any], error: errors.GatewayError) -> None:
        """Record that somebody asked for what belongs to others, in the path or in the body, whoever noticed it."""
        if error.owner is not None:
            subject = next(iter(call.path.values()), "")
            event = event_of(
                call.request.scope, route.action or route.permission, subject, error.code, owner=error.owner
            )
            self._audit.add_repeatable(event)


def _decoded(route: Route, decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode(body)
    except InvalidRequest as error:
        if error.code == "unknown_parameter" and (hint := route.elsewhere.get(error.param or "")):
            error.message += f" {hint}"
        raise


async def _authorise(route: Route, call: Call[Any, Any]) -> None:
    """Compare what the route is about with the caller's rights; what is hidden looks as if it were not there."""
    assert route.about is not None
    call.resource = await route.about(call)
    if call.resource is None:
        raise not_found()
    require(call.principal, route.permission, call.resource)


def kept(part: T | None) -> T:
    """A part that needs a database; raises `not_found` where there is none."""
    if part is None:
        raise errors.error("not_found", "Without keys (auth.enabled: false) the gateway keeps nothing of this.")
    return part


def encode(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=_encode)


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Strict decoding of a body; whatever is wrong with it is an `InvalidRequest` with the path of the field."""
    decoding = msgspec.json.Decoder(kind, dec_hook=_decode)

    def decode(body: bytes) -> T:
        return wire.decode(decoding, body)

    return decode


def _query(request: Request, kind: type[Q]) -> Q:
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise errors.error("invalid_value", f"Send the parameter {name[:40]!r} once.", param=name[:40])
        if not value.isprintable():
            message = f"Invalid value for {name[:40]!r}: expected text that can be printed."
            raise errors.error("invalid_value", message, param=name[:40])
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise wire.explained(str(error), kind=kind) from None


def _decode(kind: type, value: object) -> object:
    if kind is Moment and isinstance(value, str):
        return Moment(moment_us(value))
    raise ValueError(f"expected {'a date as text' if kind is Moment else kind.__name__}")


def _encode(value: object) -> object:
    if isinstance(value, Moment):
        return value.iso
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def _response(route: Route, request: Request, answer: Any) -> Response:
    if answer is None:
        return Answer(204, [], b"")
    if isinstance(answer, Page):
        more = answer.next_cursor is not None
        body = {"object": "list", "data": answer.data, "has_more": more, "next_cursor": answer.next_cursor}
        return json_response(encode(body))
    if not isinstance(answer, msgspec.Struct):
        ready: Response = answer
        return ready
    headers = {}
    if isinstance(version := getattr(answer, "version", None), int):
        headers["etag"] = f'"{version}"'
    if route.status == 201 and isinstance(identity := getattr(answer, "id", None), str):
        headers["location"] = f"{request.scope['raw_path'].decode('ascii')}/{quote(identity, safe='')}"
    return json_response(encode(answer), route.status, headers)


def _version(given: str | None) -> int | None:
    if given is None or given.strip() == "*":
        return None
    match = ETAG.fullmatch(given.strip())
    if match is None:
        raise errors.error("precondition_failed", "If-Match takes the ETag of an earlier answer.", param="If-Match")
    return int(match[1])


def _idempotency_key(given: str | None) -> str | None:
    if given is not None and not IDEMPOTENCY_KEY.fullmatch(given):
        message = "An Idempotency-Key has 1 to 150 printable ASCII characters without spaces."
        raise InvalidRequest(message, param="Idempotency-Key")
    return given
