"""Two real gateways on one PostgreSQL and one Valkey, and what happens to them when a store goes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ROOT, Server
from tests.stores import Postgres, Valkey

REVOKED_S_MAX = 5.0
BACK_S_MAX = 10.0


class Replicas:
    """Two gateways and their stores, all of which may be stopped."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.postgres = stack.enter_context(Postgres())
        self.valkey = stack.enter_context(Valkey())
        self.environ = {
            "GATEWAY_DATABASE_URL": self.postgres.database(),
            "GATEWAY_REDIS_URL": self.valkey.url,
            "GATEWAY_STATE__REPLICAS": "2",
            "GATEWAY_STATE__DATABASE_TIMEOUT_S": "2",
            "GATEWAY_AUTH__PEPPER": "the-same-pepper-everywhere",
        }
        self.directory = directory
        self.servers = [
            stack.enter_context(Server(directory / name, config="models: []", ready=False, **self.environ))
            for name in ("first", "second")
        ]

    def command(self, *arguments: str) -> str:
        """What `gateway` prints."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.directory)} | self.environ
        command = [sys.executable, "-m", "gateway", *arguments, "--data-dir", str(self.directory / "command")]
        return subprocess.run(command, check=True, env=environ, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    def create(self) -> str:
        return self.command("keys", "create", "test")

    def statuses(self, key: str) -> list[int]:
        return [ask(server, key).status_code for server in self.servers]


def ask(server: Server, key: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=20)


def until(condition: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(tmp_path_factory.mktemp("replicas"), stack)


def test_a_key_holds_everywhere_until_it_is_revoked_everywhere(replicas: Replicas) -> None:
    key = replicas.create()
    assert replicas.statuses(key) == [200, 200]
    replicas.command("keys", "revoke", key)
    until(lambda: replicas.statuses(key) == [401, 401], REVOKED_S_MAX)


@pytest.mark.parametrize("redis", [True, False])
def test_an_archived_team_is_refused_everywhere(replicas: Replicas, redis: bool) -> None:
    org = json.loads(replicas.command("orgs", "create", "Acme", "--json"))["id"]
    team = json.loads(replicas.command("teams", "create", org, f"lab {redis}", "--json"))["id"]
    key = replicas.command("keys", "create", "test", "--team", team)
    assert replicas.statuses(key) == [200, 200]
    if not redis:
        replicas.valkey.kill()
    try:
        replicas.command("teams", "archive", team)
        until(lambda: replicas.statuses(key) == [401, 401], REVOKED_S_MAX)
    finally:
        if not redis:
            replicas.valkey.start()
    replicas.command("teams", "restore", team)
    until(lambda: replicas.statuses(key) == [200, 200], BACK_S_MAX)


def test_a_revocation_is_noticed_without_redis_too(replicas: Replicas) -> None:
    key = replicas.create()
    assert replicas.statuses(key) == [200, 200]
    replicas.valkey.kill()
    try:
        assert replicas.statuses(key) == [200, 200]
        until(lambda: replicas.servers[0].metric("gateway_shared_state_degraded") == 1, BACK_S_MAX)
        replicas.command("keys", "revoke", key)
        until(lambda: replicas.statuses(key) == [401, 401], REVOKED_S_MAX)
    finally:
        replicas.valkey.start()
    until(lambda: replicas.servers[0].metric("gateway_shared_state_degraded") == 0, BACK_S_MAX)


def test_without_the_database_known_keys_are_served_and_unknown_ones_are_no_401(replicas: Replicas) -> None:
    known, unknown = replicas.create(), replicas.create()
    assert replicas.statuses(known) == [200, 200]
    replicas.postgres.stop()
    try:
        # Longer than what is known stays fresh, so that the database is missed.
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            assert replicas.statuses(known) == [200, 200]
            answers = [ask(server, unknown) for server in replicas.servers]
            assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
                (503, "overloaded")
            ] * 2
            assert all(answer.headers["retry-after"] == "1" for answer in answers)
    finally:
        replicas.postgres.start()
    until(lambda: replicas.statuses(unknown) == [200, 200], BACK_S_MAX)
    assert replicas.statuses(known) == [200, 200]
    assert replicas.statuses("gw_live_nonsense") == [401, 401]


def test_a_silent_database_keeps_known_keys_served(replicas: Replicas) -> None:
    known = replicas.create()
    assert replicas.statuses(known) == [200, 200]
    replicas.postgres.stall()
    try:
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            assert replicas.statuses(known) == [200, 200]
    finally:
        replicas.postgres.go_on()
    new = replicas.create()
    until(lambda: replicas.statuses(new) == [200, 200], BACK_S_MAX)


def test_replicas_need_both_stores(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "serve", "--data-dir", str(tmp_path)]
    environ = {"PATH": os.environ["PATH"], "GATEWAY_STATE__REPLICAS": "2", "GATEWAY_REDIS_URL": "redis://x"}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "more than one gateway process needs both PostgreSQL and Redis" in done.stderr


def test_a_second_gateway_without_redis_is_kept_out(tmp_path: Path, postgres: Postgres) -> None:
    environ = {"GATEWAY_DATABASE_URL": postgres.database()}
    second = Server(tmp_path / "two", config="models: []", ready=False, **environ)
    with Server(tmp_path / "one", config="models: []", ready=False, **environ):
        with pytest.raises(AssertionError, match="another gateway uses this database"):
            second.__enter__()
        assert second.process.wait() == 1


def test_a_copy_of_the_database_brings_its_keys_back(replicas: Replicas, tmp_path: Path) -> None:
    key = replicas.create()
    out = replicas.command("backup", str(tmp_path / "copy"))
    assert "keys" in out
    assert "applied  0001_keys.sql" in replicas.command("migrate", "status")
    environ = {name: value for name, value in replicas.environ.items() if name.endswith("PEPPER")}
    command = [
        sys.executable,
        "-m",
        "gateway",
        "restore",
        str(tmp_path / "copy"),
        "--data-dir",
        str(tmp_path / "new/state"),
    ]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"], **environ}, cwd=ROOT, capture_output=True)
    with Server(tmp_path / "new", config="models: []", ready=False, **environ) as server:
        assert ask(server, key).status_code == 200
