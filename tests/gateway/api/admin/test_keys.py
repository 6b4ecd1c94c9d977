"""Keys over HTTP, over the real table of keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.api.admin.keys import KeyRoutes
from gateway.auth.keyring import Keyring
from gateway.auth.keys import Keys
from gateway.auth.records import Directory, Org, User, insert
from gateway.errors import GatewayError
from gateway.state.database import Database
from tests.gateway.api.admin.desk import Desk, at_desk

NOW_US = 1_700_000_000_000_000
PEPPER = b"p" * 32


def with_keys(folder: Path, script: Callable[[Desk, Keys], Awaitable[None]]) -> None:
    """An organisation with a member, whose keys are checked as those of requests are."""

    async def run(desk: Desk, database: Database) -> None:
        directory = Directory(database, now_us=lambda: NOW_US)
        async with database.transaction() as inside:
            await insert(inside, "orgs", Org(id="org_a", name="A", created_us=1))
            user = User(
                id="user_org_member", org_id="org_a", email="a@b", name="m", role="member", admin=False, created_us=1
            )
            await insert(inside, "users", user)
        desk.serve(KeyRoutes(Keyring(directory, PEPPER), lambda: NOW_US).routes())
        keys = Keys(database, PEPPER, now_us=lambda: NOW_US)
        await keys.open()
        await script(desk, keys)
        await keys.close()

    at_desk(folder, run)


async def works(keys: Keys, text: str) -> bool:
    try:
        await keys.authenticate(f"Bearer {text}")
    except GatewayError:
        return False
    return True


def test_the_life_of_a_key(tmp_path: Path) -> None:
    async def script(desk: Desk, keys: Keys) -> None:
        body = {
            "name": "ci",
            "org_id": "org_a",
            "scopes": ["inference"],
            "expires_at": "2030-01-01",
            "limits": {"wallet": "w"},
        }
        made = await desk.ask("admin", "POST", "/keys", body)
        key = made.json()
        assert made.status_code == 201 and made.headers["location"] == f"/admin/v1/keys/{key['id']}"
        assert (key["tenant"], key["kind"], key["status"], key["version"]) == ("org_a", "service", "active", 1)
        assert key["expires_at"].startswith("2030-01-01") and key["limits"]["wallet"] == "w"
        principal = await keys.authenticate(f"Bearer {key['key']}")
        assert (principal.key_id, principal.scopes) == (key["id"], frozenset({"inference"}))

        path = f"/keys/{key['id']}"
        seen = await desk.ask("org_owner", "GET", path)
        assert seen.headers["etag"] == '"1"' and "key" not in seen.json()
        changed = await desk.ask("admin", "PATCH", path, {"name": "cd", "expires_at": None}, **{"If-Match": '"1"'})
        assert (changed.json()["name"], changed.json()["expires_at"], changed.json()["scopes"]) == (
            "cd",
            None,
            ["inference"],
        )
        stale = await desk.ask("admin", "PATCH", path, {"name": "x"}, **{"If-Match": '"1"'})
        assert (stale.status_code, stale.json()["error"]["code"]) == (412, "precondition_failed")

        rotated = (await desk.ask("admin", "POST", f"{path}/rotate", {"overlap_s": 0})).json()
        assert rotated["name"] == "cd" and await works(keys, rotated["key"])
        old = (await desk.ask("admin", "GET", path)).json()
        assert (old["successor"], old["status"]) == (rotated["id"], "expired")
        gone = await desk.ask("admin", "DELETE", f"/keys/{rotated['id']}?reason=lost")
        assert (gone.status_code, gone.content) == (204, b"")
        revoked = (await desk.ask("admin", "GET", f"/keys/{rotated['id']}")).json()
        assert (revoked["status"], revoked["revoked_reason"]) == ("revoked", "lost")

        page = (await desk.ask("org_owner", "GET", "/keys?limit=1")).json()
        rest = (await desk.ask("org_owner", "GET", f"/keys?after={page['next_cursor']}")).json()
        assert [one["id"] for one in page["data"] + rest["data"]] == sorted([key["id"], rotated["id"]])
        told = [(event.action, event.subject) for event in desk.audit.events]
        assert told == [
            ("key.create", key["id"]),
            ("key.change", key["id"]),
            ("key.rotate", key["id"]),
            ("key.revoke", rotated["id"]),
        ]
        assert key["key"][20:] not in str(desk.audit.events) and desk.audit.events[3].details == {"reason": "lost"}

    with_keys(tmp_path, script)


def test_a_person_makes_keys_of_his_own_and_no_more(tmp_path: Path) -> None:
    async def script(desk: Desk, keys: Keys) -> None:
        own = await desk.ask("org_member", "POST", "/keys", {"name": "laptop"})
        assert own.status_code == 201
        assert (own.json()["user_id"], own.json()["org_id"]) == ("user_org_member", "org_a")
        assert await works(keys, own.json()["key"])
        for more in (
            {"admin": True},
            {"tenant": "other"},
            {"user_id": "user_org_owner"},
            {"limits": {"requests_per_minute": 1_000_000}},
            {"weight": 100},
            {"priority": 100},
            {"team_id": "team_a"},
            {"org_id": "org_b"},
        ):
            refused = await desk.ask("org_member", "POST", "/keys", {"name": "more", **more})
            assert refused.status_code in (400, 403, 404), more
            path = f"/keys/{own.json()['id']}"
            if "limits" in more or "weight" in more or "priority" in more:
                assert (await desk.ask("org_member", "PATCH", path, more)).status_code == 403
        assert len((await desk.ask("admin", "GET", "/keys")).json()["data"]) == 1

    with_keys(tmp_path, script)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "addresses": ["nowhere"]}, "addresses"),
        ({"name": "x", "expires_at": "2001-01-01"}, "expires_at"),
        ({"name": "x", "limits": {"rpm": 1}}, "limits.rpm"),
        ({"name": "x", "status": "active"}, "status"),
    ],
)
def test_what_no_key_can_have(tmp_path: Path, body: dict[str, Any], param: str) -> None:
    async def script(desk: Desk, keys: Keys) -> None:
        answer = await desk.ask("admin", "POST", "/keys", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    with_keys(tmp_path, script)


def test_who_names_what_is_hidden_from_him_is_in_the_audit_log(tmp_path: Path) -> None:
    async def script(desk: Desk, keys: Keys) -> None:
        hidden = await desk.ask("other", "POST", "/keys", {"name": "x", "org_id": "org_a"})
        absent = await desk.ask("other", "POST", "/keys", {"name": "x", "org_id": "org_x"})
        assert (hidden.status_code, hidden.json()) == (404, absent.json())
        (event,) = desk.audit.events
        assert (event.action, event.outcome, event.details) == ("key.create", "not_found", {"owner": "org_a"})

    with_keys(tmp_path, script)


def test_a_refusal_names_the_field_that_was_sent(tmp_path: Path) -> None:
    async def script(desk: Desk, keys: Keys) -> None:
        past = await desk.ask("admin", "POST", "/keys", {"name": "x", "org_id": "org_a", "expires_at": "2001-01-01"})
        assert (past.status_code, past.json()["error"]["param"]) == (400, "expires_at")

    with_keys(tmp_path, script)
