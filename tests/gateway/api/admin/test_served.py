"""Providers and routes over HTTP, over their real tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway.api.admin.prices import PriceRoutes
from gateway.api.admin.served import ProviderRoutes, RouteRoutes
from gateway.app.serving import Serving
from gateway.config import Config
from gateway.routing.decisions import Decisions
from gateway.served.live import Live
from gateway.served.stock import Stock
from gateway.state.database import Database
from tests.gateway.api.admin.desk import Desk, at_desk

CONFIG: dict[str, Any] = {
    "providers": [{"name": "house", "kind": "vllm", "base_url": "http://house/v1", "headers": {"x-hint": "of mine"}}],
    "routes": [{"name": "chat", "groups": [[{"provider": "house", "model": "m", "price": {"input": "1"}}]]}],
}
SECRET = "sk-nobody-may-read-this"
TARGETS = [[{"provider": "far", "model": "gpt-4o"}]]


def with_routes(folder: Path, script: Callable[[Desk, Live, Database], Awaitable[None]]) -> None:
    async def run(desk: Desk, database: Database) -> None:
        config = msgspec.convert(CONFIG | {"data_dir": str(folder)}, Config)
        serving = Serving((), Decisions())
        stock = Stock(database, config)
        live = Live(config, serving.swap, stock)
        await live.open()
        desk.serve(
            [
                *PriceRoutes(live).routes(),
                *ProviderRoutes(live).routes(),
                *RouteRoutes(live, serving.router, serving.catalog, lambda: 0.0).routes(),
            ]
        )
        await script(desk, live, database)
        await live.close()
        await serving.close()

    at_desk(folder, run)


def test_the_life_of_a_route(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        refused = await desk.ask("admin", "POST", "/routes", {"name": "gpt", "groups": TARGETS})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "groups[0][0].provider"
        provider = await desk.ask("admin", "POST", "/providers", {"name": "far", "kind": "openai"})
        assert provider.status_code == 201 and provider.json()["secret"] is None
        made = await desk.ask("admin", "POST", "/routes", {"name": "a/gpt", "groups": TARGETS})
        route = made.json()
        assert (made.status_code, route["source"], route["version"]) == (201, "api", 1)
        assert made.headers["location"] == "/admin/v1/routes/a%2Fgpt"
        (target,) = route["targets"]
        assert (target["group"], target["price"]["input"], target["standing"]["breaker"]) == (0, "2.5", "closed")

        path = "/routes/a%2Fgpt"
        changed = await desk.ask("admin", "PATCH", path, {"policy": "fastest"}, **{"if-match": made.headers["etag"]})
        assert (changed.headers["etag"], changed.json()["policy"]) == ('"2"', "fastest")
        stale = await desk.ask("admin", "PATCH", path, {"policy": "random"}, **{"if-match": '"1"'})
        assert (stale.status_code, stale.json()["error"]["code"]) == (412, "precondition_failed")
        assert (await desk.ask("admin", "GET", path)).json() == changed.json()
        assert (await desk.ask("admin", "DELETE", path, **{"if-match": '"1"'})).status_code == 412
        assert (await desk.ask("admin", "DELETE", path)).status_code == 204
        assert [(await desk.ask("admin", method, path)).status_code for method in ("GET", "DELETE")] == [404, 404]
        done = [(event.action, event.subject, event.details) for event in desk.audit.events]
        assert done == [
            ("provider.create", "far", {}),
            ("route.create", "a/gpt", {}),
            ("route.change", "a/gpt", {"fields": "policy"}),
            ("route.delete", "a/gpt", {}),
        ]

    with_routes(tmp_path, script)


def test_the_configuration_is_shown_and_not_changed(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        route = (await desk.ask("admin", "GET", "/routes/chat")).json()
        assert (route["source"], route["version"], route["targets"][0]["price"]["input"]) == ("config", None, "1.0")
        provider = await desk.ask("admin", "GET", "/providers/house")
        assert provider.json()["headers"] == {"x-hint": "***"} and "etag" not in provider.headers
        for method, path, body in (
            ("PATCH", "/routes/chat", {"policy": "random"}),
            ("DELETE", "/routes/chat", None),
            ("PATCH", "/providers/house", {"verify": False}),
            ("PUT", "/providers/house/secret", {"api_key": SECRET}),
            ("POST", "/routes", {"name": "chat", "groups": [[{"provider": "house", "model": "m"}]]}),
            ("POST", "/providers", {"name": "house", "kind": "openai"}),
        ):
            answer = await desk.ask("admin", method, path, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict"), path
        assert live.served.version == 0 and not desk.audit.events

    with_routes(tmp_path, script)


def test_pages(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        for name in "cab":
            body = {"name": name, "groups": [[{"provider": "house", "model": name}]]}
            await desk.ask("admin", "POST", "/routes", body)
        first = (await desk.ask("admin", "GET", "/routes?limit=2")).json()
        assert ([one["id"] for one in first["data"]], first["next_cursor"]) == (["chat", "c"], "api:c")
        rest = (await desk.ask("admin", "GET", "/routes?after=api:c")).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (["a", "b"], False)
        assert (await desk.ask("admin", "GET", "/routes?after=x")).status_code == 400

    with_routes(tmp_path, script)


def test_mistakes_are_told_with_what_is_right(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        async def told(path: str, body: dict[str, object]) -> tuple[int, str, str]:
            answer = await desk.ask("admin", "POST", path, body)
            error = answer.json()["error"]
            return answer.status_code, error["param"], error["message"]

        status, param, message = await told("/providers", {"name": "x", "kind": "openai", "api_key": SECRET})
        assert (status, param) == (400, "api_key") and SECRET not in message
        assert message.endswith("A secret is set by PUT /admin/v1/providers/<name>/secret.")
        status, param, message = await told("/providers", {"name": "x", "kind": "vllm"})
        assert (status, param) == (400, "base_url") and message.startswith("'base_url' is missing: ")
        status, param, message = await told("/routes", {"name": "x", "policy": "quick", "groups": TARGETS})
        assert (status, param) == (400, "policy")
        assert "expected one of 'cheapest', 'fastest'" in message and message.endswith("but got 'quick' instead.")

    with_routes(tmp_path, script)


def test_nothing_that_others_need_is_taken_away(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        await desk.ask("admin", "POST", "/providers", {"name": "far", "kind": "vllm", "base_url": "http://far"})
        embedding = [[TARGETS[0][0] | {"kinds": ["embedding"]}]]
        await desk.ask("admin", "POST", "/routes", {"name": "r", "groups": embedding})
        for method, body in (("DELETE", None), ("PATCH", {"kind": "deepseek"})):
            answer = await desk.ask("admin", method, "/providers/far", body)
            assert answer.status_code == 409 and "route r would no longer work" in answer.json()["error"]["message"]
        assert (await desk.ask("admin", "GET", "/providers/far")).json()["version"] == 1
        assert (await desk.ask("admin", "PATCH", "/routes/r", {"groups": TARGETS})).status_code == 200
        assert (await desk.ask("admin", "PATCH", "/providers/far", {"kind": "deepseek"})).status_code == 200
        assert (await desk.ask("admin", "DELETE", "/routes/r")).status_code == 204
        assert (await desk.ask("admin", "DELETE", "/providers/far")).status_code == 204

    with_routes(tmp_path, script)


def test_a_secret_is_never_seen_again(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        await desk.ask("admin", "POST", "/providers", {"name": "far", "kind": "openai"})
        told = await desk.ask("admin", "PUT", "/providers/far/secret", {"api_key": SECRET})
        answers = [told]
        secret = told.json()["secret"]
        assert (secret["set_by"], secret["origin"], secret["usable"]) == ("admin", "https://api.openai.com:443", True)
        assert told.json()["version"] == 2, "what is shown has changed"
        kept = live.served.find("provider", "far")
        assert kept is not None and kept.settings.api_key.reveal() == SECRET  # type: ignore[union-attr]
        answers += [await desk.ask("admin", "GET", path) for path in ("/providers", "/providers/far", "/routes")]
        wrong = {"api_key": f"{SECRET} ", "aws_session_token": SECRET}
        answers += [await desk.ask("admin", "PUT", "/providers/far/secret", {name: wrong[name]}) for name in wrong]
        answers += [await desk.ask("admin", "PUT", "/providers/none/secret", {"api_key": SECRET})]
        assert [answer.status_code for answer in answers[-3:]] == [400, 400, 404]
        answers += [await desk.ask("admin", "PATCH", "/providers/far", {"base_url": "https://elsewhere/v1"})]
        assert answers[-1].json()["secret"] is None
        assert not await database.query("SELECT provider FROM provider_secrets")
        assert SECRET not in "".join(answer.text + str(answer.headers) for answer in answers)
        assert SECRET not in repr(desk.audit.events) + repr(live.served)
        assert (await desk.ask("admin", "DELETE", "/providers/far/secret")).status_code == 204

    with_routes(tmp_path, script)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not [file for file in written if SECRET.encode() in file.read_bytes()]


def test_prices_that_are_set_come_before_those_that_are_known(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        async def prices() -> dict[str, tuple[str, str]]:
            listed = (await desk.ask("admin", "GET", "/prices")).json()["data"]
            return {one["id"]: (one["source"], one["price"]["input"]) for one in listed}

        assert await prices() == {"chat house/m": ("config", "1.0")}
        await desk.ask("admin", "POST", "/providers", {"name": "far", "kind": "openai"})
        await desk.ask("admin", "POST", "/routes", {"name": "gpt", "groups": TARGETS})
        assert (await prices())["gpt far/gpt-4o"] == ("table", "2.5")
        for name in ("far%2Fgpt-4o", "house%2Fm"):
            assert (await desk.ask("admin", "PUT", f"/prices/{name}", {"input": "7"})).status_code == 200
        assert await prices() == {
            "chat house/m": ("config", "1.0"),
            "gpt far/gpt-4o": ("api", "7.0"),
            "house/m": ("api", "7.0"),
        }
        route = (await desk.ask("admin", "GET", "/routes/gpt")).json()
        assert route["targets"][0]["price"]["input"] == "7.0", "it is in force at once"
        await desk.ask("admin", "PUT", "/prices/far%2Fgpt-4o", {"input": "8", "cache_write": "10"})
        assert (await prices())["gpt far/gpt-4o"] == ("api", "8.0")
        for body in ({"input": "-1"}, {"input": "1", "long_prompts": {}}, {}):
            assert (await desk.ask("admin", "PUT", "/prices/far%2Fgpt-4o", body)).status_code == 400
        assert (await desk.ask("admin", "PUT", "/prices/nonsense", {"input": "1"})).status_code == 400
        assert (await desk.ask("admin", "DELETE", "/prices/far%2Fgpt-4o")).status_code == 204
        assert (await prices())["gpt far/gpt-4o"] == ("table", "2.5")
        assert (await desk.ask("admin", "DELETE", "/prices/far%2Fgpt-4o")).status_code == 404

    with_routes(tmp_path, script)


def test_whoever_may_not_write_changes_nothing(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        for who in ("org_owner", "plain", "narrow"):
            for method, path in (("POST", "/routes"), ("PUT", "/providers/house/secret"), ("GET", "/providers")):
                assert (await desk.ask(who, method, path, {})).status_code == 403
        assert await live.stock.version() == 0  # type: ignore[union-attr]

    with_routes(tmp_path, script)


def test_changes_at_the_same_time_follow_one_another(tmp_path: Path) -> None:
    async def script(desk: Desk, live: Live, database: Database) -> None:
        body = {"groups": [[{"provider": "house", "model": "m"}]]}
        answers = await asyncio.gather(
            *(desk.ask("admin", "POST", "/routes", body | {"name": f"r{i % 4}"}) for i in range(8))
        )
        assert sorted(answer.status_code for answer in answers) == [201] * 4 + [409] * 4
        assert live.served.version == await live.stock.version() == 4  # type: ignore[union-attr]

    with_routes(tmp_path, script)
