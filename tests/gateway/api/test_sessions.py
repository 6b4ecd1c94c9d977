"""Sessions over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx

from gateway.api.sessions import KeptSessions
from gateway.audit import Audit
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.sessions import Sessions
from tests.fakes import Scripted, session
from tests.gateway.api.wire import run, serve

KEYS = {
    "Bearer alice": Principal(tenant="alice", key_id="k", name="n"),
    "Bearer admin": Principal(tenant="root", key_id="a", name="a", admin=True),
}
TALK = {
    "id": "s1",
    "object": "session",
    "key": "talk",
    "model": "m",
    "owner": "alice",
    "tokens": 300,
    "tier": "ram",
    "size_bytes": 4096,
    "created_at": 1,
    "last_used_at": 6,
    "pinned": False,
    "checkpoints": 0,
}


class ByKey:
    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        return KEYS[authorization or ""]


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Scripted, httpx.AsyncClient, httpx.AsyncClient]]:
    """The engine, and clients of a tenant and of an administrator."""
    adapter = Scripted()
    kept = [session("s1", "talk", tenant="alice"), session("s2", "talk", tenant="bob")]
    adapter.sessions = {one.id: one for one in kept}
    endpoints = KeptSessions(Sessions(Catalog([Target("m", adapter)])), Audit(None), 1000).endpoints()
    async with serve(endpoints, authenticator=ByKey()) as served:
        url = f"http://127.0.0.1:{served.port}/v1"
        async with (
            httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer alice"}) as alice,
            httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer admin"}) as admin,
        ):
            yield adapter, alice, admin


def test_listed_and_shown() -> None:
    async def scenario() -> None:
        async with opened() as (_, alice, admin):
            listed = (await alice.get("/sessions")).json()
            assert listed == {
                "object": "list",
                "data": [TALK],
                "first_id": "s1",
                "last_id": "s1",
                "has_more": False,
                "unavailable_models": [],
            }
            for name in ("talk", "s1", "talk?model=m"):
                assert (await alice.get(f"/sessions/{name}")).json() == TALK
            assert (await admin.get("/sessions")).json()["data"] == []
            everybody = (await admin.get("/sessions?tenant=*")).json()["data"]
            assert {one["owner"] for one in everybody} == {"alice", "bob"}
            assert (await admin.get("/sessions/talk?tenant=bob")).json()["id"] == "s2"

    run(scenario())


def test_changed() -> None:
    async def scenario() -> None:
        async with opened() as (adapter, alice, _):
            assert (await alice.post("/sessions/talk/pin")).json() == TALK | {"pinned": True}
            assert (await alice.post("/sessions/talk/unpin", json={})).json() == TALK
            assert (await alice.post("/sessions/talk/reset")).json() == TALK | {"tokens": 0}
            fork = (await alice.post("/sessions/talk/fork", json={"new_id": "a/b?"})).json()
            assert (fork["id"], fork["key"]) == ("s1_fork", "a/b?")
            assert (await alice.get("/sessions/a%2Fb%3F")).json() == fork
            deleted = (await alice.delete("/sessions/a%2Fb%3F")).json()
            assert deleted == fork | {"object": "session.deleted", "deleted": True}
            assert set(adapter.sessions) == {"s1", "s2"}
            made_up = [(await alice.post("/sessions/talk/fork")).json()["key"] for _ in range(2)]
            assert len(set(made_up)) == 2 and all(key.startswith("fork_") for key in made_up)

    run(scenario())


def test_another_tenants_session_is_not_there() -> None:
    async def scenario() -> None:
        async with opened() as (adapter, alice, _):
            answers = [
                await alice.get("/sessions/s2"),
                await alice.delete("/sessions/s2"),
                *[await alice.post(f"/sessions/s2/{verb}") for verb in ("pin", "unpin", "reset", "fork")],
                await alice.get("/sessions/unknown"),
            ]
            assert {answer.status_code for answer in answers} == {404}
            assert len({answer.text for answer in answers}) == 1
            assert answers[0].json()["error"]["code"] == "not_found"
            assert adapter.sessions["s2"] == session("s2", "talk", tenant="bob")
            refused = await alice.get("/sessions?tenant=bob")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")

    run(scenario())


def test_pages() -> None:
    async def scenario() -> None:
        async with opened() as (adapter, alice, _):
            ids = [f"p{number}" for number in range(5)]
            made = [session(one, tenant="alice", created_us=(9 - at) * 10**6) for at, one in enumerate(ids)]
            adapter.sessions = {one.id: one for one in made}
            seen, query = [], "limit=2"
            while query:
                page = (await alice.get(f"/sessions?{query}")).json()
                seen += [one["id"] for one in page["data"]]
                query = f"limit=2&after={page['last_id']}" if page["has_more"] else ""
            assert seen == ids
            for wrong in ("limit=0", "limit=101", "limit=x", "limit=-1", "limit=1e1", "limit=", "after=nothing"):
                answer = await alice.get(f"/sessions?{wrong}")
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, wrong.split("=")[0])

    run(scenario())


def test_a_fork_checks_its_body() -> None:
    async def scenario() -> None:
        async with opened() as (_, alice, _admin):
            for body in ({"new_id": ""}, {"new_id": 3}, {"new_id": "x" * 513}):
                answer = await alice.post("/sessions/talk/fork", json=body)
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, "new_id")
            assert (await alice.post("/sessions/talk/fork", content=b"{")).status_code == 415
            bad = await alice.post("/sessions/talk/fork", content=b"{", headers={"Content-Type": "application/json"})
            assert bad.json()["error"]["code"] == "invalid_json"

    run(scenario())
