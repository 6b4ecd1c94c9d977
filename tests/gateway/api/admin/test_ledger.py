"""The ledger over HTTP: each sees his part of it, as sums, as entries and as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.api.admin.ledger import LedgerRoutes
from gateway.catalog import Price
from gateway.ledger import Entry
from gateway.ledger.store import Ledger
from gateway.state.database import Database, DatabaseUnavailable
from tests.gateway.api.admin.desk import Desk, at_desk

DAY_US = 86_400_000_000
PRICE = Price(1_000_000_000, 1_000_000_000, 2_000_000_000, "old")
NEW_PRICE = Price(500_000_000, 500_000_000, 2_000_000_000, "new")


def entry(number: int, tenant: str, key_id: str, **more: Any) -> Entry:
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "request_id": f"r{number}",
        "at_us": number * DAY_US,
        "status": "posted",
        "outcome": "ok",
        "model": "m",
        "target": "m",
        "provider": "local",
        "kind": "chat",
        "prompt_tokens": 1000,
        "completion_tokens": 10,
        "price": PRICE,
        "cost_nano": 1_020_000,
        "charged_nano": 1_020_000,
    }
    return Entry(tenant=tenant, key_id=key_id, **fields | more)


ENTRIES = (
    entry(1, "org_a", "key_org_member", org_id="org_a", user_id="user_org_member"),
    entry(2, "org_a", "key_x", org_id="org_a", team_id="team_a", model="=cmd()"),
    entry(3, "org_a", "key_x", org_id="org_a", team_id="team_c"),
    entry(4, "org_b", "key_other", org_id="org_b"),
    entry(5, "plain", "key_plain"),
)
SEEN = {
    "admin": [5, 4, 3, 2, 1],
    "org_owner": [3, 2, 1],
    "org_viewer": [3, 2, 1],
    "org_member": [1],
    "team_owner": [2],
    "team_viewer": [2],
    "team_member": [],
    "other": [4],
    "plain": [5],
}


def with_ledger(folder: Path, script: Callable[[Desk, Database], Awaitable[None]]) -> None:
    async def run(desk: Desk, database: Database) -> None:
        ledger = Ledger(database)
        await ledger.commit(ENTRIES)
        desk.serve(LedgerRoutes(ledger, lambda model: NEW_PRICE if model == "m" else None, lambda: DAY_US * 9).routes())
        await script(desk, database)

    at_desk(folder, run)


@pytest.mark.parametrize("who", SEEN)
def test_everybody_sees_his_part(tmp_path: Path, who: str) -> None:
    async def script(desk: Desk, database: Database) -> None:
        page = (await desk.ask(who, "GET", "/ledger")).json()
        assert [int(one["request_id"][1:]) for one in page["data"]] == SEEN[who]
        sums = (await desk.ask(who, "GET", "/usage?by=")).json()["data"]
        assert sums[0]["requests"] == len(SEEN[who])
        for kind in ("csv", "jsonl"):
            file = (await desk.ask(who, "GET", f"/ledger?format={kind}")).text
            assert len(file.splitlines()) == len(SEEN[who]) + (kind == "csv")
        for filters in ("key_id=key_other", "org_id=org_b", "tenant=org_b"):
            found = (await desk.ask(who, "GET", f"/ledger?{filters}")).json()["data"]
            assert bool(found) == (who in ("admin", "other"))

    with_ledger(tmp_path, script)


def test_entries_come_in_pages_and_with_what_they_cost(tmp_path: Path) -> None:
    async def script(desk: Desk, database: Database) -> None:
        seen, after = [], ""
        while True:
            page = (await desk.ask("admin", "GET", f"/ledger?limit=2{after}")).json()
            seen += page["data"]
            after = f"&after={page['next_cursor']}"
            if not page["has_more"]:
                break
        assert [one["id"] for one in seen] == ["e5", "e4", "e3", "e2", "e1"]
        assert seen[0]["at"] == "1970-01-06T00:00:00.000+00:00"
        assert (seen[0]["cost_usd"], seen[0]["price_table"], seen[0]["org_id"]) == ("0.00102", "old", None)
        assert [item["usd"] for item in seen[0]["items"]] == ["0.001", "0.00002"]
        first = (await desk.ask("admin", "GET", "/ledger?since=1970-01-03&until=1970-01-05T00:00:00Z")).json()["data"]
        assert [one["id"] for one in first] == ["e3", "e2"]

    with_ledger(tmp_path, script)


def test_sums_by_anything_as_json_and_csv(tmp_path: Path) -> None:
    async def script(desk: Desk, database: Database) -> None:
        months = (await desk.ask("admin", "GET", "/usage?by=month,org_id")).json()["data"]
        told = {(one["start"], one["org_id"]): (one["requests"], one["cost_usd"]) for one in months}
        assert told["1970-01-01T00:00:00.000+00:00", "org_a"] == (3, "0.00306")
        pages = [(await desk.ask("admin", "GET", f"/usage?by=day&limit=2&after={i}")).json() for i in (0, 2, 4)]
        assert [len(one["data"]) for one in pages] == [2, 2, 1]
        assert [one["next_cursor"] for one in pages] == ["2", "4", None]
        file = await desk.ask("admin", "GET", "/usage?by=model,day", accept="text/csv")
        assert file.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(file.text)))
        assert len(rows) == 5 and {row["model"] for row in rows} == {"m", "'=cmd()"}
        assert list(rows[0])[:2] == ["start", "model"] and rows[0]["cost_usd"] == "0.00102"
        lines = (await desk.ask("admin", "GET", "/usage?by=key_id&format=jsonl")).text.splitlines()
        assert {json.loads(line)["key_id"] for line in lines} == {one.key_id for one in ENTRIES}

    with_ledger(tmp_path, script)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("/usage?by=colour", "by"),
        ("/usage?by=hour,day", "by"),
        ("/usage?after=x", "after"),
        ("/usage?format=xml", "format"),
        ("/usage?since=soon", "since"),
        ("/ledger?after=x", "after"),
        ("/ledger?by=day", "by"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, query: str, param: str) -> None:
    async def script(desk: Desk, database: Database) -> None:
        answer = await desk.ask("admin", "GET", query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    with_ledger(tmp_path, script)


def test_a_price_is_corrected_once(tmp_path: Path) -> None:
    async def script(desk: Desk, database: Database) -> None:
        assert (await desk.ask("org_owner", "POST", "/ledger/corrections", {})).status_code == 403
        answers = [(await desk.ask("admin", "POST", "/ledger/corrections", {"tenant": "org_a"})).json() for _ in "ab"]
        assert [(one["corrections"], one["usd"]) for one in answers] == [(2, "-0.001"), (0, "0.0")]
        event = desk.audit.events[1]
        assert (event.action, event.details) == ("ledger.reprice", {"corrections": 2, "usd": "-0.001"})
        page = (await desk.ask("org_owner", "GET", "/ledger?limit=1")).json()["data"][0]
        assert (page["status"], page["cost_usd"], page["charged_usd"]) == ("correction", "-0.0005", "-0.0005")
        sums = (await desk.ask("org_owner", "GET", "/usage?by=")).json()["data"][0]
        assert (sums["requests"], sums["cost_usd"]) == (3, "0.00206")

    with_ledger(tmp_path, script)


class Broken(Ledger):
    """Loses its database after the first entries."""

    async def entries(self, wanted: Any) -> Any:
        for number in range(5000):
            yield entry(number, "t", "k")
        raise DatabaseUnavailable("gone")


def test_a_file_that_fails_half_way_has_no_end(tmp_path: Path) -> None:
    async def script(desk: Desk, database: Database) -> None:
        desk.serve(LedgerRoutes(Broken(database), lambda model: None, lambda: 0).routes())
        with pytest.raises(AssertionError):
            # The transport of the test insists on complete answers, as an HTTP client does.
            await desk.ask("admin", "GET", "/ledger?format=csv")

    at_desk(tmp_path, script)
