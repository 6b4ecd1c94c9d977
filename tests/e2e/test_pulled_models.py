"""Models that are configured by their name on a hub: pulled, watched and served by the real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.hub import Hub

DEMO = (ROOT / "adapters/llama_cpp/demo/demo.gguf").read_bytes()
ENGINE = "{threads: 1, context_tokens: 512, cache_tokens: 512}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({"demo-Q8_0.gguf": DEMO, "demo-F16.gguf": DEMO + b"\0" * 5_000_000}) as running:
        yield running


def serve(hub: Hub, folder: Path, *models: str, **library: str) -> Server:
    settings = {"endpoint": f'"{hub.endpoint}"', "dir": f'"{folder / "hub"}"', **library}
    lines = "\n".join(f"  {name}: {value}" for name, value in settings.items())
    listed = "\n".join(f"  - {model}" for model in models)
    return Server(folder, config=f"models:\n{listed}\nlibrary:\n{lines}\n", ready=False)


def states(server: Server) -> dict[str, Any]:
    with server.client() as client:
        return {name: model["state"] for name, model in client.get("/health").json()["models"].items()}


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def ask(server: Server, model: str) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 3})


def test_a_model_is_pulled_at_the_start_and_served_when_it_is_here(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_piece = 500_000
    hub.paced.clear()
    model = f"{{name: m, pull: 'hf:org/model:Q8_0', engine: {ENGINE}}}"
    with serve(hub, tmp_path, model) as server:
        until(lambda: states(server) == {"m": "pulling"})
        until(lambda: bool(hub.served_bytes))
        refused = ask(server, "m")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        assert int(refused.headers["retry-after"]) > 1
        with server.client() as client:
            (pull,) = client.get("/admin/v1/pulls").json()["data"]
            assert (pull["status"], pull["total_bytes"], pull["reference"]) == ("running", len(DEMO), "org/model:Q8_0")
            with client.stream("GET", f"/admin/v1/pulls/{pull['id']}/events") as events:
                hub.paced.set()
                told = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
        assert told[0]["status"] == "running" and told[-1]["status"] == "succeeded"
        assert told[-1]["done_bytes"] == len(DEMO)
        until(lambda: ask(server, "m").status_code == 200)
    served = hub.served_bytes
    with serve(hub, tmp_path, model, offline="true") as server:
        until(lambda: ask(server, "m").status_code == 200)
    assert hub.served_bytes == served, "what is here is not fetched again"


def test_a_pull_is_watched_over_a_websocket(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_piece = 500_000
    hub.paced.clear()
    with serve(hub, tmp_path, f"{{name: m, pull: 'org/model:Q8_0', lazy: true, engine: {ENGINE}}}") as server:
        with server.client() as client:
            pull = client.post("/admin/v1/pulls", json={"name": "org/model:Q8_0"}).json()
        until(lambda: bool(hub.served_bytes))
        url = f"{server.url.replace('http', 'ws', 1)}/admin/v1/pulls/{pull['id']}/events"
        with pytest.raises(InvalidStatus, match="401"), connect(url):
            raise AssertionError
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        with (
            pytest.raises(InvalidStatus, match="403"),
            connect(url, additional_headers=headers, origin=Origin("http://evil")),
        ):
            raise AssertionError
        with connect(url, additional_headers=headers) as left:
            assert json.loads(left.recv())["status"] == "running"
        with connect(url, additional_headers=headers) as socket:
            assert json.loads(socket.recv())["status"] == "running"
            assert socket.ping().wait(10)
            hub.paced.set()
            told = [json.loads(text) for text in socket]
        assert told[-1]["status"] == "succeeded" and told[-1]["done_bytes"] == len(DEMO)
        until(lambda: ask(server, "m").status_code == 200)


def test_a_lazy_model_is_pulled_by_the_first_request(hub: Hub, tmp_path: Path) -> None:
    with serve(hub, tmp_path, f"{{name: m, pull: org/model, lazy: true, engine: {ENGINE}}}") as server:
        assert (states(server), hub.requests) == ({"m": "sleeping"}, [])
        answers: list[int] = []
        crowd = [threading.Thread(target=lambda: answers.append(ask(server, "m").status_code)) for _ in range(5)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
        assert set(answers) <= {200, 503}
        until(lambda: ask(server, "m").status_code == 200)
        assert hub.served_bytes == len(DEMO), "once, and the quantisation that has eight bits"


def test_a_pull_that_fails_is_shown_and_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    with serve(hub, tmp_path, f"{{name: m, pull: org/model, engine: {ENGINE}}}") as server, server.client() as client:
        until(lambda: states(server) == {"m": "failed"})
        (engine,) = client.get("/admin/v1/pool").json()["data"]
        assert "not open to this token" in engine["reason"]
        refused = ask(server, "m")
        assert refused.json()["error"]["code"] == "model_unavailable" and "retry-after" in refused.headers
        assert "org/model" not in refused.text
        hub.gated = False
        until(lambda: ask(server, "m").status_code == 200)


def test_pulls_over_http(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_piece = 200_000
    hub.paced.clear()
    quiet = f"{{name: m, pull: org/model, lazy: true, engine: {ENGINE}}}"
    with serve(hub, tmp_path, quiet, allow='["org/*"]') as server, server.client() as client:

        def post(path: str, **body: Any) -> httpx.Response:
            return client.post(f"/admin/v1/pulls{path}", json=body or None)

        assert (refused := post("", name="other/model")).status_code == 403 and "library.allow" in refused.text
        assert post("", name="nothing").json()["error"]["param"] == "name"
        begun = post("", name="org/model:Q8_0")
        assert begun.status_code == 201
        identity = begun.json()["id"]
        assert begun.headers["location"] == f"/admin/v1/pulls/{identity}"
        assert post("", name="org/model:Q8_0").json()["id"] == identity, "it is under way already"
        until(lambda: bool(list(tmp_path.rglob("*.incomplete"))))
        assert post(f"/{identity}/pause").json()["status"] == "paused"
        assert post(f"/{identity}/pause").status_code == 409
        hub.paced.set()
        until(lambda: post(f"/{identity}/resume").status_code == 200)
        until(lambda: client.get(f"/admin/v1/pulls/{identity}").json()["status"] == "succeeded")
        assert post("", name="org/model:F16", wait=True).json()["status"] == "succeeded"
        hub.files["more-Q4_0.gguf"] = DEMO[::-1]
        hub.paced.clear()
        third = post("", name="org/model:Q4_0", update=True).json()["id"]
        until(lambda: bool(list(tmp_path.rglob("*.incomplete"))))
        assert post(f"/{third}/cancel").json()["status"] == "cancelled"
        until(lambda: not list(tmp_path.rglob("*.incomplete")))
        assert client.get("/admin/v1/pulls/unknown").status_code == 404
        assert [one["status"] for one in client.get("/admin/v1/pulls").json()["data"]].count("succeeded") == 2
        done = {"library.pull", "library.pull.pause", "library.pull.resume", "library.pull.cancel"}
        until(lambda: done <= {one["action"] for one in client.get("/admin/v1/audit").json()["data"]})
        hub.paced.set()
