"""What all administration routes have in common, over a small thing that is administrated."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Admin, Body, Call, Moment, Page, Paging, Route
from gateway.api.edge import Edge
from gateway.api.http import Endpoint, json_response
from gateway.audit import Audit, Event
from gateway.auth import Principal
from gateway.auth.roles import Resource
from gateway.config import LogConfig
from gateway.logs import AccessLog
from gateway.telemetry import Telemetry

PEOPLE = {
    "Bearer admin": Principal(tenant="admin", key_id="admin", name="a", admin=True),
    "Bearer owner": Principal(tenant="org_a", key_id="k1", name="o", org_id="org_a", role="owner", user_id="user_o"),
    "Bearer viewer": Principal(tenant="org_a", key_id="k2", name="v", org_id="org_a", role="viewer", user_id="user_v"),
    "Bearer other": Principal(tenant="org_b", key_id="k3", name="x", org_id="org_b", role="owner", user_id="user_x"),
}


class FakeAuthenticator:
    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        return PEOPLE[authorization or ""]


class Heard(Audit):
    """Keeps events in a list."""

    def __init__(self) -> None:
        super().__init__(None)
        self.events: list[Event] = []

    def add(self, event: Event) -> None:
        self.events.append(event)


class Thing(msgspec.Struct, frozen=True):
    id: str
    size: int
    version: int = 1
    at: Moment | None = None


class NewThing(Body, frozen=True, kw_only=True):
    size: Annotated[int, Meta(ge=1)]
    note: str = ""
    at: Moment | None = None


class ThingQuery(Paging, frozen=True, kw_only=True):
    big: bool = False


class Things:
    """Teams, in a way: of one organisation."""

    def __init__(self) -> None:
        self.things = {"t1": Thing("t1", 1)}
        self.calls = 0

    def routes(self) -> tuple[Route, ...]:
        one = "/admin/v1/things/{id}"
        return (
            Route("GET", "/admin/v1/things", "teams.read", self.list, "", query=ThingQuery, answer=list[Thing]),
            Route(
                "POST",
                "/admin/v1/things",
                "teams.create",
                self.create,
                "",
                body=NewThing,
                answer=Thing,
                status=201,
                action="thing.create",
            ),
            Route("GET", one, "teams.read", self.get, "", answer=Thing, about=self.whose),
            Route(
                "PATCH",
                one,
                "teams.write",
                self.change,
                "",
                body=NewThing,
                answer=Thing,
                about=self.whose,
                action="thing.change",
            ),
            Route("DELETE", one, "teams.write", self.delete, "", about=self.whose, action="thing.delete"),
        )

    async def whose(self, call: Call[Any, Any]) -> Resource | None:
        return Resource(tenant="org_a", org_id="org_a", team_id="t1") if call.path["id"] in self.things else None

    async def list(self, call: Call[ThingQuery, None]) -> Page[Thing]:
        return Page([Thing(f"t{i}", call.query.big + 0) for i in range(call.query.limit)], "next")

    async def create(self, call: Call[None, NewThing]) -> Thing:
        self.calls += 1
        call.note("t2", size=call.body.size)
        return Thing("t2", call.body.size, at=call.body.at)

    async def get(self, call: Call[None, None]) -> Thing:
        return self.things[call.path["id"]]

    async def change(self, call: Call[None, NewThing]) -> Thing:
        old = self.things[call.path["id"]]
        if call.version not in (None, old.version):
            raise errors.error("precondition_failed", "It has changed meanwhile.")
        self.things["t1"] = Thing("t1", call.body.size, old.version + 1)
        return self.things["t1"]

    async def delete(self, call: Call[None, None]) -> None:
        self.calls += 1
        del self.things[call.path["id"]]


class Desk:
    """Asks and remembers."""

    def __init__(self) -> None:
        self.things = Things()
        self.audit = Heard()
        endpoints = Admin(self.audit, 10_000).endpoints(self.things.routes())
        log = AccessLog(LogConfig(level="error"), io.StringIO())
        self.edge = Edge(endpoints, FakeAuthenticator(), Telemetry("1"), log, audit=self.audit)

    def ask(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            transport = httpx.ASGITransport(self.edge)
            async with httpx.AsyncClient(transport=transport, base_url="http://t/admin/v1") as client:
                headers = {"Authorization": f"Bearer {who}"} | options.pop("headers", {})
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(main())


def test_a_thing_is_made_with_its_place_and_a_line_in_the_audit_log() -> None:
    desk = Desk()
    answer = desk.ask("owner", "POST", "/things", json={"size": 3, "at": "2030-12-31"})
    assert answer.status_code == 201
    assert answer.json() == {"id": "t2", "size": 3, "version": 1, "at": "2030-12-31T00:00:00.000+00:00"}
    assert (answer.headers["location"], answer.headers["etag"]) == ("/admin/v1/things/t2", '"1"')
    (event,) = desk.audit.events
    assert (event.action, event.actor, event.tenant, event.subject) == ("thing.create", "k1", "org_a", "t2")
    assert event.details == {"size": 3}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"size": 0}, "invalid_value", "size"),
        ({"size": "3"}, "invalid_value", "size"),
        ({}, "invalid_value", "size"),
        ({"size": 1, "role": "owner"}, "unknown_parameter", "role"),
        ({"size": 1, "at": "tomorrow"}, "invalid_value", "at"),
        ({"size": 1, "at": 5}, "invalid_value", "at"),
        ([], "invalid_value", None),
    ],
)
def test_a_wrong_body_is_refused_with_its_place(body: Any, code: str, param: str | None) -> None:
    desk = Desk()
    answer = desk.ask("owner", "POST", "/things", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert answer.json()["error"]["param"] == param
    assert desk.things.calls == 0 and not desk.audit.events


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=101", "limit"),
        ("nice=1", "nice"),
        ("limit=1&limit=2", "limit"),
        ("after=a%00b", "after"),
    ],
)
def test_a_wrong_query_is_refused_with_its_place(query: str, param: str) -> None:
    answer = Desk().ask("owner", "GET", f"/things?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_no_text_holds_what_no_database_can_keep() -> None:
    desk = Desk()
    assert desk.ask("owner", "PATCH", "/things/%00", json={"size": 1}).status_code == 404
    assert desk.ask("owner", "GET", "/things?after=%00").json()["error"]["param"] == "after"
    for text, status in (("\0", 400), ("\\\0", 400), ("\\u0000", 201)):
        assert desk.ask("owner", "POST", "/things", json={"size": 1, "note": text}).status_code == status


def test_lists_have_a_cursor() -> None:
    answer = Desk().ask("viewer", "GET", "/things?limit=2&big=true").json()
    assert [one["id"] for one in answer["data"]] == ["t0", "t1"]
    assert (answer["object"], answer["has_more"], answer["next_cursor"]) == ("list", True, "next")


def test_a_change_can_insist_on_what_it_has_seen() -> None:
    desk = Desk()
    etag = desk.ask("owner", "GET", "/things/t1").headers["etag"]
    for headers, status in (({"If-Match": etag}, 200), ({"If-Match": etag}, 412), ({"If-Match": "x"}, 412), ({}, 200)):
        answer = desk.ask("owner", "PATCH", "/things/t1", json={"size": 5}, headers=headers)
        assert answer.status_code == status
    assert desk.things.things["t1"].version == 3
    assert [event.action for event in desk.audit.events] == ["thing.change"] * 2


def test_who_may_not_sees_or_does_nothing() -> None:
    desk = Desk()
    assert desk.ask("viewer", "DELETE", "/things/t1").status_code == 403
    assert desk.ask("viewer", "POST", "/things", json={"size": 1}).status_code == 403
    hidden, absent = desk.ask("other", "DELETE", "/things/t1"), desk.ask("owner", "DELETE", "/things/t9")
    assert hidden.status_code == absent.status_code == 404
    assert hidden.json() == absent.json()
    assert desk.things.calls == 0
    told = [(event.action, event.outcome, event.actor, event.details.get("owner")) for event in desk.audit.events]
    assert told == [("access", "permission_denied", "k2", None), ("thing.delete", "not_found", "k3", "org_a")]
    answer = desk.ask("admin", "DELETE", "/things/t1")
    assert (answer.status_code, answer.content) == (204, b"")


def test_a_route_says_what_it_needs() -> None:
    things = Things()
    with pytest.raises(ValueError, match="called in the audit log"):
        Route("POST", "/admin/v1/x", "teams.write", things.delete, "")
    with pytest.raises(ValueError, match="no administration route"):
        Route("GET", "/v1/x", "teams.write", things.delete, "")

    async def handler(request: Any) -> Any:
        return json_response(b"{}")

    with pytest.raises(ValueError, match="there is no permission 'root'"):
        Endpoint("/x", "GET", handler, "root")
