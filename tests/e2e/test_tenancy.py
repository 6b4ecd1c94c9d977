"""Organisations, teams and keys at a real gateway: made beside it, limited, archived, rotated, bound to addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ROOT, Server

CHANGED_S_MAX = 5.0
EACH = 10
SCRIPT = "answers: [{text: Hello}]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tenancy")
    (folder / "canned.yaml").write_text(SCRIPT)
    canned = [{"name": name, "script": str(folder / "canned.yaml")} for name in ("small", "small-2", "large")]
    demo = {"name": "demo", "path": f"{ROOT}/adapters/llama_cpp/demo/demo.gguf"}
    demo["engine"] = {"threads": 1, "parallel": 1}  # type: ignore[assignment]
    # The loopback address stands for a reverse proxy, so that a request can come from anywhere.
    config = {"server": {"trusted_proxies": ["127.0.0.0/8"]}, "models": [*canned, demo]}
    with Server(folder, config=json.dumps(config)) as server:
        yield server


def command(server: Server, *arguments: str) -> Any:
    """What a command says in JSON that runs beside the server."""
    options = ["--data-dir", str(server.data_dir / "state"), "--config", str(server.data_dir / "config.yaml")]
    environ = {"PATH": os.environ["PATH"], "HOME": str(server.data_dir)}
    line = [sys.executable, "-m", "gateway", *arguments, "--json", *options]
    return json.loads(subprocess.run(line, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout)


def new(server: Server, *arguments: str) -> str:
    """The id of what a command makes."""
    return str(command(server, *arguments)["id"])


def key(server: Server, *arguments: str) -> str:
    return str(command(server, "keys", "create", "test", *arguments)["key"])


def ask(server: Server, text: str, model: str = "small", address: str = "192.0.2.1", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1} | more
    headers = {"Authorization": f"Bearer {text}", "X-Forwarded-For": address}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120)


def outcome(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("error", {}).get("code")


def until(condition: Callable[[], bool], within_s: float = CHANGED_S_MAX) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("level", ["org", "team", "member", "user"])
def test_limits_of_every_level_are_shared_by_the_keys_below_it(server: Server, level: str) -> None:
    limit = {name: ("--rpm", "2") if name == level else () for name in ("org", "team", "member", "user")}
    org = new(server, "orgs", "create", "Acme", *limit["org"])
    team = new(server, "teams", "create", org, "lab", *limit["team"])
    person = new(server, "users", "create", f"{level}@example.com", "--org", org, *limit["user"])
    command(server, "teams", "add", team, person, *limit["member"])
    first, second = (key(server, "--user", person, "--team", team) for _ in range(2))
    statuses = [ask(server, text).status_code for text in (first, second, first, second)]
    assert statuses == [200, 200, 429, 429]
    # A service account of the team shares the limits of the team and the organisation, and not those of a person.
    service = key(server, "--team", team)
    assert ask(server, service).status_code == (429 if level in ("org", "team") else 200)


def test_a_limit_that_is_set_later_holds_within_five_seconds(server: Server) -> None:
    org = new(server, "orgs", "create", "Acme")
    text = key(server, "--org", org)
    assert [ask(server, text).status_code for _ in range(3)] == [200] * 3
    command(server, "orgs", "set", org, "--rpm", "1")
    until(lambda: ask(server, text).status_code == 429)
    command(server, "orgs", "set", org, "--no-limits")
    until(lambda: ask(server, text).status_code == 200)


def test_models_have_to_be_in_every_list_and_the_others_look_as_if_they_were_not_there(server: Server) -> None:
    org = new(server, "orgs", "create", "Acme", "--models", "small*,demo")
    team = new(server, "teams", "create", org, "lab", "--models", "small,small-2,large")
    text = key(server, "--team", team, "--models", "small-2,demo,large")
    headers = {"Authorization": f"Bearer {text}"}
    listed = httpx.get(f"{server.url}/v1/models", headers=headers).json()["data"]
    assert [model["id"] for model in listed] == ["small-2"]
    assert ask(server, text, "small-2").status_code == 200
    hidden, absent = ask(server, text, "large"), ask(server, text, "absent")
    assert outcome(hidden) == outcome(absent) == (404, "model_not_found")
    assert hidden.text.replace("large", "absent") == absent.text


def test_keys_of_what_is_archived_or_disabled_are_refused_within_five_seconds(server: Server) -> None:
    org = new(server, "orgs", "create", "Acme")
    team = new(server, "teams", "create", org, "lab")
    person = new(server, "users", "create", "gone@example.com", "--org", org)
    command(server, "teams", "add", team, "gone@example.com")
    text = key(server, "--user", "gone@example.com", "--team", team)
    for group, thing, end, back in (
        ("teams", team, "archive", "restore"),
        ("users", person, "disable", "enable"),
        ("orgs", org, "archive", "restore"),
    ):
        until(lambda: ask(server, text).status_code == 200)
        command(server, group, end, thing)
        until(lambda: outcome(ask(server, text)) == (401, "key_revoked"))
        command(server, group, back, thing)
    until(lambda: ask(server, text).status_code == 200)
    command(server, "teams", "remove", team, person)
    until(lambda: outcome(ask(server, text)) == (401, "key_revoked"))


def test_a_rotated_key_works_on_for_the_overlap_and_brings_no_fresh_budget(server: Server) -> None:
    old = key(server, "--rpm", "3")
    assert ask(server, old).status_code == 200
    made = command(server, "keys", "rotate", old, "--overlap", "6s")
    assert [ask(server, text).status_code for text in (old, made["key"])] == [200, 200]
    assert ask(server, made["key"]).status_code == 429, "both count as one"
    time.sleep(6)
    assert outcome(ask(server, old)) == (401, "key_expired")
    assert command(server, "keys", "show", old)["successor"] == made["id"]
    fresh = command(server, "keys", "rotate", made["key"])["key"]
    until(lambda: outcome(ask(server, made["key"])) == (401, "key_expired"))
    assert ask(server, fresh).status_code == 429


def test_a_key_may_be_bound_to_addresses(server: Server) -> None:
    text = key(server, "--addresses", "10.0.0.0/8,2001:db8::/32")
    for inside in ("10.9.8.7", "2001:db8::1", "192.0.2.1, 10.0.0.1"):
        assert ask(server, text, address=inside).status_code == 200
    for outside in ("192.0.2.1", "10.0.0.1, 192.0.2.1", "nonsense"):
        assert outcome(ask(server, text, address=outside)) == (403, "ip_denied")
    command(server, "keys", "set", text, "--addresses", "none")
    until(lambda: ask(server, text, address="192.0.2.1").status_code == 200)


def test_a_key_with_scopes_does_what_they_name(server: Server) -> None:
    text = key(server, "--scopes", "models.read")
    headers = {"Authorization": f"Bearer {text}"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    assert outcome(ask(server, text)) == (403, "permission_denied")


def test_tags_are_limits_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / "canned.yaml").write_text(SCRIPT)
    config = {
        "models": [{"name": "small", "script": str(tmp_path / "canned.yaml")}],
        "limits": {"rules": [{"scope": "tag", "id": "batch", "requests_per_minute": 2}]},
    }
    with Server(tmp_path / "server", config=json.dumps(config)) as tagged:
        texts = [key(tagged, "--tags", "batch,night") for _ in range(3)]
        assert [ask(tagged, text).status_code for text in texts] == [200, 200, 429]
        assert ask(tagged, key(tagged, "--tags", "night")).status_code == 200


def test_the_queue_serves_by_weight_and_inside_a_tenant_by_priority(server: Server) -> None:
    heavy, light, other = key(server, "--weight", "4"), key(server), key(server)
    org = new(server, "orgs", "create", "Acme")
    urgent, idle = key(server, "--org", org, "--priority", "5"), key(server, "--org", org, "--priority", "-5")

    def served(*texts: str) -> list[str]:
        """Who was answered, in this order, when each sends as many requests at once."""
        order: list[str] = []

        def one(text: str) -> None:
            assert ask(server, text, "demo", max_tokens=64, ignore_eos=True).status_code == 200
            order.append(text)

        with ThreadPoolExecutor(2 * EACH + 1) as pool:
            # Somebody else has the only place until all of them wait.
            pool.submit(ask, server, other, "demo", max_tokens=3000, ignore_eos=True)
            until(lambda: server.metric("gateway_running_requests", model="demo") == 1)
            waiting = [pool.submit(one, text) for _ in range(EACH) for text in texts]
            until(lambda: server.metric("gateway_queue_depth", model="demo") == 2 * EACH, 30)
            for future in waiting:
                future.result()
        return order

    order = served(light, heavy)
    assert order[:6].count(heavy) >= 4, "four times the share"
    order = served(idle, urgent)
    assert order[:6].count(urgent) >= 5


def test_administrators_of_an_organisation_see_it_over_http_and_nothing_else(server: Server) -> None:
    org, other = new(server, "orgs", "create", "Acme"), new(server, "orgs", "create", "Other")
    team = new(server, "teams", "create", org, "lab")
    person = new(server, "users", "create", "owner@example.com", "--org", org, "--role", "owner")
    with server.client(key(server, "--user", person)) as client:
        assert [one["id"] for one in client.get("/admin/v1/orgs").json()["data"]] == [org]
        assert client.get(f"/admin/v1/orgs/{other}").status_code == 404
        made = client.post("/admin/v1/users", json={"email": "new@example.com", "role": "admin"})
        assert (made.status_code, made.json()["org_id"]) == (201, org)
        member = {"user_id": made.json()["id"], "role": "owner"}
        place = client.post(f"/admin/v1/teams/{team}/members", json=member)
        assert place.status_code == 201, place.text
        last = client.delete(f"/admin/v1/teams/{team}/members/{member['user_id']}")
        assert outcome(last) == (409, "conflict")
        found = client.get(f"/admin/v1/teams/{team}")
        assert found.headers["etag"] == '"1"'
        stale = client.patch(f"/admin/v1/teams/{team}", json={"name": "x"}, headers={"If-Match": '"7"'})
        assert outcome(stale) == (412, "precondition_failed")
        renamed = client.patch(f"/admin/v1/teams/{team}", json={"name": "works"}, headers={"If-Match": '"1"'})
        assert (renamed.status_code, renamed.headers["etag"]) == (200, '"2"')
        more = client.patch(f"/admin/v1/orgs/{org}", json={"limits": None})
        assert outcome(more) == (403, "permission_denied")
    with server.client() as client:
        entries = client.get("/admin/v1/audit", params={"tenant": org}).json()["data"]
        assert {"user.create", "member.add", "team.change"} <= {entry["action"] for entry in entries}
