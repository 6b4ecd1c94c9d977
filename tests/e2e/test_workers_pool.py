"""What operators do to local models and pulls, asked of whichever of several processes answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.e2e.test_workers import answering, children, engine, until
from tests.hub import Hub
from tests.stores import Postgres, Valkey

DEMO = (ROOT / "adapters/llama_cpp/demo/demo.gguf").read_bytes()
WORKERS = 3
# More connections than it takes for each process to have answered one.
CONNECTIONS = 12


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({"demo-Q8_0.gguf": DEMO}) as running:
        running.bytes_per_piece = 200_000
        running.paced.clear()
        yield running


@pytest.fixture(scope="module")
def server(hub: Hub, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("workers")
    short = "{threads: 1, context_tokens: 512, cache_tokens: 512}"
    config = f"models:\n  - {{name: m, path: {tiny_model}, engine: {short}}}\n"
    config += f"  - {{name: pulled, pull: 'org/model:Q8_0', engine: {short}}}\n"
    config += f'library: {{endpoint: "{hub.endpoint}", dir: "{folder / "hub"}"}}\n'
    with ExitStack() as stack:
        postgres, valkey = stack.enter_context(Postgres()), stack.enter_context(Valkey())
        environ = {"GATEWAY_DATABASE_URL": postgres.database(), "GATEWAY_REDIS_URL": valkey.url}
        server = stack.enter_context(Server(folder, "--workers", str(WORKERS), config=config, ready=False, **environ))
        until(lambda: pool(server).get("m", {}).get("state") == "ready" and len(answering(server)) == WORKERS)
        yield server


def ask(server: Server, method: str, path: str, **more: Any) -> httpx.Response:
    """Over a connection of its own, so of any of the processes."""
    with server.client() as client:
        return client.request(method, path, **more)


def pool(server: Server) -> dict[str, dict[str, Any]]:
    answer = ask(server, "GET", "/admin/v1/pool")
    return {one["id"]: one for one in answer.json()["data"]}


def do(server: Server, verb: str, model: str = "m") -> dict[str, Any]:
    answer = ask(server, "POST", f"/admin/v1/pool/{model}/{verb}")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def pulls(server: Server) -> list[dict[str, Any]]:
    answer = ask(server, "GET", "/admin/v1/pulls")
    return list(answer.json()["data"]) if answer.status_code == 200 else []


def complete(server: Server, model: str = "m") -> httpx.Response:
    return ask(server, "POST", "/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 3})


def everywhere(server: Server, field: str, model: str = "m") -> set[Any]:
    return {pool(server)[model][field] for _ in range(CONNECTIONS)}


def test_every_process_changes_and_sees_the_pool(server: Server) -> None:
    assert complete(server).status_code == 200
    doomed = answering(server)[0]
    before = pool(server)["m"]
    assert before["memory_bytes"] > 50_000_000 and before["kv_cells_max"] == 512 and before["eta_s"] == 0.0
    assert before["tokens_per_s"] is not None and before["idle_s"] < 60
    assert do(server, "pin")["pinned"] is True
    until(lambda: everywhere(server, "pinned") == {True})
    do(server, "unpin")
    slept = do(server, "sleep")
    assert slept["state"] in ("sleeping", "stopped"), slept
    until(lambda: everywhere(server, "state") == {"sleeping"})
    assert do(server, "wake")["state"] == "loading"
    until(lambda: everywhere(server, "state") == {"ready"})
    assert everywhere(server, "loads") == {2}
    until(lambda: server.metric("gateway_model_loads_total", model="m") == 2 * WORKERS)
    do(server, "unload")
    until(lambda: everywhere(server, "state") == {"stopped"})
    assert complete(server).status_code == 503
    # One that answers dies in the middle of a load: the load goes on, and the others see it.
    do(server, "load")
    os.kill(doomed, signal.SIGKILL)
    until(lambda: pool(server)["m"]["state"] == "ready" and complete(server).status_code == 200)
    until(lambda: len(answering(server)) == WORKERS)
    assert ask(server, "POST", "/admin/v1/pool/nothing/load").status_code == 404


def test_verbs_while_the_engine_process_is_away_say_when_to_come_back(server: Server) -> None:
    died = engine(server)
    do(server, "sleep")
    do(server, "wake")
    os.kill(died, signal.SIGKILL)
    answers = [ask(server, "POST", "/admin/v1/pool/m/pin") for _ in range(20)]
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
    until(lambda: any(children(pid) and pid != died for pid in children(server.process.pid)))
    until(lambda: pool(server)["m"]["state"] == "ready" and complete(server).status_code == 200)


def test_every_process_has_the_pulls_of_the_engine_process(hub: Hub, server: Server) -> None:
    until(lambda: len(pulls(server)) == 1 and pulls(server)[0]["status"] == "running" and hub.served_bytes > 0)
    (pull,) = pulls(server)
    assert (pull["reference"], pull["total_bytes"]) == ("org/model:Q8_0", len(DEMO))
    assert {pulls(server)[0]["id"] for _ in range(CONNECTIONS)} == {pull["id"]}
    path = f"/admin/v1/pulls/{pull['id']}"
    assert ask(server, "POST", f"{path}/pause").json()["status"] == "paused"
    assert {ask(server, "GET", path).json()["status"] for _ in range(CONNECTIONS)} == {"paused"}
    assert ask(server, "POST", f"{path}/pause").status_code == 409
    until(lambda: ask(server, "POST", f"{path}/resume").status_code == 200)
    # One that answers dies: the pull goes on. The engine process dies: what has come is not fetched again.
    os.kill(answering(server)[0], signal.SIGKILL)
    until(lambda: len(answering(server)) == WORKERS)
    assert ask(server, "GET", path).json()["status"] in ("queued", "running")
    with server.client() as client, client.stream("GET", f"{path}/events") as events:
        lines = events.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["id"] == pull["id"]
        os.kill(engine(server), signal.SIGKILL)
        assert [line for line in lines if "error" in line and "engine process" in line]
    until(lambda: [one["status"] for one in pulls(server)] == ["running"])
    (again,) = pulls(server)
    with server.client() as client, client.stream("GET", f"/admin/v1/pulls/{again['id']}/events") as events:
        hub.paced.set()
        told = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    assert (told[-1]["status"], told[-1]["done_bytes"]) == ("succeeded", len(DEMO))
    until(lambda: complete(server, "pulled").status_code == 200)
    until(lambda: everywhere(server, "state", "pulled") == {"ready"})


def test_the_command_line_does_the_same(server: Server) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "gateway", "pool", *arguments, "m", "--url", server.url, "--key", ADMIN_KEY]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert any(state in run("sleep") for state in ("sleeping", "stopped"))
    assert "ready" in run("load", "--wait")
