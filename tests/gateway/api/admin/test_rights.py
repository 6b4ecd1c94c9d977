"""Every route, asked by everybody, about what is theirs and what is not: who gets to its handler follows from the
table in `gateway/auth/roles.py`, nobody else does, and what belongs to others looks as if it were not there.

A new route appears here by itself. One that is `about` something in its path needs a row in `THINGS`.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from starlette.requests import Request

from gateway.api import mount
from gateway.api.admin.routes import Admin, Call, Route
from gateway.api.edge import Edge
from gateway.api.http import Endpoint, Response, json_response
from gateway.api.mount import Parts
from gateway.auth import Principal
from gateway.auth.keyring import Keyring
from gateway.auth.records import Directory, Key, Org, Team, User, insert
from gateway.auth.roles import PUBLIC, TABLE, Resource
from gateway.config import LogConfig
from gateway.ledger.store import Ledger
from gateway.limits.wallets import Wallets
from gateway.logs import AccessLog
from gateway.state.database import Database
from gateway.telemetry import Telemetry
from tests.databases import open_migrated
from tests.gateway.api.admin.people import ORG, OTHER_ORG, OTHER_TEAM, PEOPLE, TEAM, Door, Heard
from tests.gateway.parts import parts, people

Things = Mapping[str, Resource]


async def wallets(database: Database) -> Things:
    made = {f"wallet-of-{tenant}": tenant for tenant in (ORG, OTHER_ORG, "plain")}
    for name, tenant in made.items():
        await Wallets(database).open(name, tenant, 1)
    return {name: Resource(tenant=tenant, org_id=tenant) for name, tenant in made.items()}


async def invitations(database: Database) -> Things:
    made = people(database).invitations
    found = {}
    for org_id in (ORG, OTHER_ORG):
        invitation, _ = await made.create("alice@example.test", org_id, "member", "somebody")
        found[invitation.id] = Resource(tenant=org_id, org_id=org_id)
    return found


async def keys(database: Database) -> Things:
    """One of each person, one of a team and one of an organisation, and some of others."""
    made = [
        Key(id=who.key_id, name=name, tenant=who.tenant, admin=False, created_us=1, **_place(who))
        for name, who in PEOPLE.items()
        if not who.admin
    ]
    made += [
        Key(id="key_of_team", name="t", tenant=ORG, admin=False, created_us=1, org_id=ORG, team_id=TEAM),
        Key(id="key_of_org", name="o", tenant=ORG, admin=False, created_us=1, org_id=ORG),
    ]
    async with database.transaction() as inside:
        for key in made:
            await insert(inside, "keys", key, digest="d")
    return {key.id: key.resource for key in made}


def _place(who: Principal) -> dict[str, Any]:
    return {"org_id": who.org_id, "user_id": who.user_id, "team_id": who.teams[0][0] if who.teams else None}


async def _kept(database: Database, table: str, *records: Org | Team | User) -> Things:
    for record in records:
        await insert(database, table, record)
    return {record.id: record.resource for record in records}


async def orgs(database: Database) -> Things:
    return await _kept(database, "orgs", *(Org(id=name, name=name, created_us=1) for name in (ORG, OTHER_ORG)))


async def teams(database: Database) -> Things:
    places = ((TEAM, ORG), ("team_c", ORG), (OTHER_TEAM, OTHER_ORG))
    made = (Team(id=name, org_id=org, name=name, created_us=1) for name, org in places)
    return await _kept(database, "teams", *made)


async def users(database: Database) -> Things:
    made = []
    for name, org in (("user_org_member", ORG), ("user_x", ORG), ("user_other", OTHER_ORG)):
        email = f"{name}@example.com"
        made.append(User(id=name, org_id=org, email=email, name=name, role="member", admin=False, created_us=1))
    return await _kept(database, "users", *made)


# For each beginning of a path with parameters: makes such things, and says by their ids whose they are.
THINGS: Mapping[str, Callable[[Database], Awaitable[Things]]] = {
    "/admin/v1/wallets/{": wallets,
    "/admin/v1/invitations/{": invitations,
    "/admin/v1/keys/{": keys,
    "/admin/v1/orgs/{": orgs,
    "/admin/v1/teams/{": teams,
    "/admin/v1/users/{": users,
}
# What has parameters in its path and is about nothing of anybody's.
NOBODYS = (
    "POST /admin/v1/guardrails/{id}/test",
    *(f"{method} /admin/v1/datasets/{{id}}" for method in ("GET", "DELETE")),
    "GET /admin/v1/datasets/{id}/forecast",
    *(f"{method} /admin/v1/library/files/{{id}}" for method in ("GET", "DELETE")),
    *(f"POST /admin/v1/library/files/{{id}}/{action}" for action in ("verify", "cancel", "links", "lookup")),
    "DELETE /admin/v1/library/links/{id}",
    "GET /admin/v1/library/hub/{owner}/{repo}",
    *(f"{method} /admin/v1/prices/{{name:text}}" for method in ("PUT", "DELETE")),
    *(f"{method} /admin/v1/routes/{{name:text}}" for method in ("GET", "PATCH", "DELETE")),
    *(f"{method} /admin/v1/providers/{{name:text}}" for method in ("GET", "PATCH", "DELETE")),
    *(f"{method} /admin/v1/providers/{{name:text}}/secret" for method in ("PUT", "DELETE")),
    *("GET /admin/v1/pulls/{id}", "GET /admin/v1/pulls/{id}/events"),
    *(f"POST /admin/v1/pulls/{{id}}/{verb}" for verb in ("pause", "resume", "cancel")),
    *(
        f"POST /admin/v1/pool/{{id:path}}/{verb}"
        for verb in ("load", "wake", "unload", "sleep", "pin", "unpin", "reset")
    ),
)


def everything() -> tuple[Endpoint, ...]:
    return mount.routes(parts())


ROUTES = {f"{one.method} {one.path}": one for one in everything()}
ADMIN_ROUTES = {f"{one.method} {one.path}": one for one in mount.admin_routes(parts())}


class Spied:
    """An edge whose handlers only count that they were reached."""

    def __init__(self, endpoint: Endpoint, reached: list[str]) -> None:
        self.audit = Heard()
        self.reached = reached
        log = AccessLog(LogConfig(level="error"), io.StringIO())
        self.edge = Edge([endpoint], Door(), Telemetry("1"), log, audit=self.audit)

    async def ask(self, who: str, method: str, path: str) -> httpx.Response:
        self.reached.clear()
        self.audit.events.clear()
        transport = httpx.ASGITransport(self.edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {} if who == "nobody" else {"Authorization": f"Bearer {who}"}
            return await client.request(method, path, headers=headers, json={} if method != "GET" else None)


def spied(route: Route | Endpoint) -> Spied:
    reached: list[str] = []

    async def admin_handler(call: Call[Any, Any]) -> Response:
        reached.append(route.path)
        return json_response(b"{}")

    async def handler(request: Request) -> Response:
        reached.append(route.path)
        return json_response(b"{}")

    if isinstance(route, Endpoint):
        return Spied(replace(route, handler=handler), reached)
    audit = Heard()
    (endpoint,) = Admin(audit, 1000).endpoints([replace(route, handler=admin_handler, body=None, query=None)])
    made = Spied(endpoint, reached)
    made.audit.events = audit.events
    return made


def stands(who: Principal, resource: Resource | None) -> set[str]:
    """As what somebody stands to a thing, in the words of the table."""
    if resource is None:
        roles = {f"org.{who.role}"} if who.role else set()
        roles |= {f"team.{role}" for _, role in who.teams} | ({"person"} if who.user_id else set()) | {"self"}
        return roles if who.role or who.teams else roles | {"plain"}
    found = set()
    if who.org_id and who.org_id == resource.org_id:
        found |= {f"org.{who.role}"} if who.role else set()
        found |= {f"team.{role}" for team, role in who.teams if team == resource.team_id}
    if who.user_id and who.user_id == resource.user_id:
        found.add("person")
    if who.key_id == resource.key_id or (not who.org_id and not resource.org_id and who.tenant == resource.tenant):
        found.add("self")
    return found


def expected(who: str, permission: str, resource: Resource | None, *, general: bool = False) -> int:
    """The status that somebody gets; 200 stands for having reached the handler."""
    if permission == PUBLIC:
        return 200
    if who == "nobody":
        return 401
    person, rule = PEOPLE[who], TABLE[permission]
    if person.scopes is not None and permission not in person.scopes:
        return 403
    if person.admin:
        return 200
    if not rule.who & stands(person, None):
        return 403
    if general or rule.who & stands(person, resource):
        return 200
    return 403 if TABLE[rule.read].who & stands(person, resource) and rule.read != permission else 404


@asynccontextmanager
async def filled(folder: Path) -> AsyncIterator[tuple[Database, Parts]]:
    database = await open_migrated(folder, serve=False)
    try:
        directory = Directory(database)
        yield (
            database,
            parts()._replace(
                wallets=Wallets(database),
                ledger=Ledger(database),
                directory=directory,
                keyring=Keyring(directory, b"p" * 32),
                people=people(database),
            ),
        )
    finally:
        await database.close()


@pytest.mark.parametrize("name", ROUTES)
def test_who_may_ask_at_all(name: str) -> None:
    endpoint = ROUTES[name]
    path = re.sub(r"\{\w+(:\w+)?\}", "x", endpoint.path)

    async def main() -> None:
        made = spied(endpoint)
        for who in (*PEOPLE, "nobody"):
            answer = await made.ask(who, endpoint.method, path)
            wanted = expected(who, endpoint.permission, None, general=True)
            assert answer.status_code == wanted, who
            assert bool(made.reached) == (wanted == 200), who
            refused = [event.outcome for event in made.audit.events]
            assert refused == {200: [], 401: ["invalid_api_key"], 403: ["permission_denied"]}[wanted], who

    asyncio.run(main())


@pytest.mark.parametrize("name", [name for name, route in ADMIN_ROUTES.items() if route.about])
def test_whose_things_somebody_may_touch(name: str, tmp_path: Path) -> None:
    makers = [make for prefix, make in THINGS.items() if name.partition(" ")[2].startswith(prefix)]
    assert len(makers) == 1, f"THINGS has to say how to make what {name} is about"

    async def main() -> None:
        async with filled(tmp_path) as (database, filled_parts):
            things = await makers[0](database)
            (route,) = (one for one in mount.admin_routes(filled_parts) if f"{one.method} {one.path}" == name)
            made = spied(route)
            for identity, resource in things.items():
                for who in (*PEOPLE, "nobody"):
                    path = re.sub(r"\{id(:\w+)?\}", identity, route.path)
                    answer = await made.ask(who, route.method, path)
                    wanted = expected(who, route.permission, resource)
                    assert answer.status_code == wanted, f"{who} on {identity}"
                    assert bool(made.reached) == (wanted == 200), who
                    if wanted == 404:
                        (event,) = made.audit.events
                        assert (event.outcome, event.subject) == ("not_found", identity)
                        assert (event.actor, event.details["owner"]) == (PEOPLE[who].key_id, resource.tenant)
                        absent = await made.ask("admin", route.method, path.replace(identity, "nothing"))
                        assert answer.json() == absent.json(), "what is hidden looks as if it were not there"

    asyncio.run(main())


def test_no_route_is_forgotten() -> None:
    administration = {name for name in ROUTES if "/admin/" in name}
    assert administration == set(ADMIN_ROUTES), "administration routes are told by mount.admin_routes"
    for name, route in ADMIN_ROUTES.items():
        assert "{" not in route.path or route.about or name in NOBODYS, f"{name}: whose is what is in its path?"
    assert {one.permission for one in ROUTES.values()} <= {PUBLIC, *TABLE}
