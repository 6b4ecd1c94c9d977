"""Wallets over HTTP, with a real database and real limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.api.admin.wallets import WalletRoutes
from gateway.config_limits import LimitsConfig
from gateway.limits.limiter import Limiter, LocalCounters, steady_us, wall_us
from gateway.limits.wallets import Wallets
from gateway.state.database import Database
from tests.gateway.api.admin.desk import Desk, at_desk


def desk(folder: Path, script: Any) -> None:
    def make(database: Database) -> tuple[WalletRoutes, Limiter]:
        wallets = Wallets(database)
        limiter = Limiter(LimitsConfig(), LocalCounters(), wallets.balances, now_us=wall_us, steady_us=steady_us)
        return WalletRoutes(wallets, limiter, lambda: 1_000_000), limiter

    async def run(desk: Desk, database: Database) -> None:
        routes, limiter = make(database)
        desk.serve(routes.routes())
        await script(desk, limiter)

    at_desk(folder, run)


def test_a_wallet_from_its_opening_to_its_statement(tmp_path: Path) -> None:
    async def script(desk: Desk, limiter: Limiter) -> None:
        opened = await desk.ask("admin", "POST", "/wallets", {"id": "lab/1", "tenant": "org_a", "usd": "10"})
        assert (opened.status_code, opened.json()["usd"], opened.json()["paused"]) == (201, "10.0", False)
        assert opened.json()["created_at"] == "1970-01-01T00:00:01.000+00:00"
        again = await desk.ask("admin", "POST", "/wallets", {"id": "lab/1", "tenant": "org_b"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
        for new in (True, False):
            headers = {"Idempotency-Key": "t1"}
            answer = await desk.ask(
                "admin", "POST", "/wallets/lab%2F1/top-up", {"usd": "5.5", "note": "May"}, **headers
            )
            assert answer.json()["new"] is new and answer.json()["wallet"]["usd"] == "15.5"
        other = await desk.ask("admin", "POST", "/wallets/lab%2F1/top-up", {"usd": "6"}, **headers)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        refunded = await desk.ask("admin", "POST", "/wallets/lab%2F1/refund", {"usd": "0.5"})
        assert refunded.json()["wallet"]["usd"] == "16.0"
        first = (await desk.ask("org_viewer", "GET", "/wallets/lab%2F1/statement?limit=2")).json()
        rest = (await desk.ask("org_viewer", "GET", f"/wallets/lab%2F1/statement?after={first['next_cursor']}")).json()
        lines = [(one["kind"], one["usd"], one["other"]) for one in first["data"] + rest["data"]]
        assert sorted(lines) == [
            ("bonus", "10.0", "world:bonus"),
            ("refund", "0.5", "world:revenue"),
            ("top-up", "5.5", "world:funding"),
        ]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert [event.action for event in desk.audit.events] == [
            "wallet.open",
            "wallet.top-up",
            "wallet.top-up",
            "wallet.refund",
        ]

    desk(tmp_path, script)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"id": "x y"}, "id"),
        ({"id": "x", "tenant": "-"}, "tenant"),
        ({"id": "x", "usd": "1e3"}, "usd"),
        ({"id": "x", "usd": "-1"}, "usd"),
        ({"id": "x", "usd": 1}, "usd"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, body: dict[str, Any], param: str) -> None:
    async def script(desk: Desk, limiter: Limiter) -> None:
        answer = await desk.ask("admin", "POST", "/wallets", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert (await desk.ask("admin", "GET", "/wallets")).json()["data"] == []

    desk(tmp_path, script)


def test_credit_moves_within_an_organisation_and_never_what_is_held(tmp_path: Path) -> None:
    async def script(desk: Desk, limiter: Limiter) -> None:
        for name, tenant, usd in (("a", "org_a", "10"), ("b", "org_a", "0"), ("c", "org_b", "0")):
            await desk.ask("admin", "POST", "/wallets", {"id": name, "tenant": tenant, "usd": usd})
        desk.audit.events.clear()

        async def move(who: str, to: str, usd: str, key: str) -> tuple[int, str]:
            answer = await desk.ask(
                who, "POST", "/wallets/a/transfer", {"to": to, "usd": usd}, **{"Idempotency-Key": key}
            )
            body = answer.json()
            return answer.status_code, str(body["new"] if answer.status_code == 200 else body["error"]["code"])

        assert await move("org_admin", "c", "1", "k0") == (404, "not_found")
        (event,) = desk.audit.events
        assert (event.action, event.outcome, event.details) == ("wallet.transfer", "not_found", {"owner": "org_b"})
        assert await move("org_viewer", "b", "1", "k0") == (403, "permission_denied")
        assert await move("other", "c", "1", "k0") == (404, "not_found")
        assert await move("org_admin", "a", "1", "k0") == (400, "invalid_value")
        assert await move("org_admin", "b", "4", "k1") == (200, "True")

        async def held() -> bool:
            # A request holds five of the six dollars that are left while others want to move some.
            assert await move("org_admin", "b", "2", "k2") == (429, "rate_limit_exceeded")
            assert await move("org_admin", "b", "4", "k1") == (200, "False")
            assert await move("org_admin", "b", "1", "k3") == (200, "True")
            return False

        assert await limiter.take("a", 5 * 10**9, held) is False
        assert await move("org_admin", "b", "5", "k4") == (200, "True")
        assert await move("org_admin", "b", "0.000000001", "k5") == (429, "insufficient_quota")
        balances = {one["id"]: one["usd"] for one in (await desk.ask("org_admin", "GET", "/wallets")).json()["data"]}
        assert balances == {"a": "0.0", "b": "10.0"}
        assert [one["id"] for one in (await desk.ask("other", "GET", "/wallets")).json()["data"]] == ["c"]
        assert (await desk.ask("other", "GET", "/wallets?tenant=org_a")).status_code == 403

    desk(tmp_path, script)
