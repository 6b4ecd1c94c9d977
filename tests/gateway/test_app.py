from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway.api import mount
from gateway.api.edge import Edge
from gateway.api.health import Health
from gateway.auth import Open
from gateway.config import LogConfig
from gateway.logs import AccessLog
from gateway.telemetry import Telemetry
from tests.gateway.parts import parts

KEY = re.compile(r"gw_live_\w+")


class Status(msgspec.Struct):
    state: str
    progress: float = 0.5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Serving:
    """A `gateway serve` process and the way to talk to it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        assert process.stdout is not None
        self.banner = ""
        while not self.banner.endswith("\n\n") or "Try it" not in self.banner:
            line = process.stdout.readline()
            assert line, "it ended early"
            self.banner += line

    def wait_for_state(self, state: str) -> httpx.Response:
        for _ in range(600):
            response = httpx.get(f"{self.url}/health")
            if response.json()["models"]["broken"]["state"] == state:
                return response
            time.sleep(0.05)
        raise AssertionError(response.text)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@contextmanager
def serving(directory: Path, port: int) -> Iterator[Serving]:
    """A gateway whose only model is no GGUF file."""
    model = directory / "broken.gguf"
    model.write_bytes(b"GGUF but not really" * 100)
    with command(directory, port, str(model)) as process:
        try:
            yield Serving(process, f"http://127.0.0.1:{port}")
        finally:
            process.kill()


def command(directory: Path, port: int, model: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", model, "--port", str(port), "--data-dir", str(directory / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_it_starts_with_a_broken_model_shows_the_key_once_and_ends_with_0(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, port) as first:
        keys = set(KEY.findall(first.banner))
        assert len(keys) == 1
        headers = {"Authorization": f"Bearer {keys.pop()}"}
        assert httpx.get(f"{first.url}/health/live").status_code == 200
        health = first.wait_for_state("failed")
        assert (health.status_code, health.json()["error"]["code"]) == (503, "model_unavailable")
        body = {"model": "broken", "messages": [{"role": "user", "content": "Hello"}]}
        chat = httpx.post(f"{first.url}/v1/chat/completions", json=body, headers=headers)
        assert (chat.status_code, chat.json()["error"]["code"]) == (503, "model_invalid")
        assert str(tmp_path) not in chat.text
        assert httpx.post(f"{first.url}/v1/chat/completions", json=body).status_code == 401
        assert httpx.get(f"{first.url}/v1/models", headers=headers).json()["data"][0]["id"] == "broken"
        metrics = httpx.get(f"{first.url}/metrics").text
        assert 'gateway_model_state{model="broken",state="failed"} 1' in metrics

        other = command(tmp_path, port, str(tmp_path / "broken.gguf"))
        out, err = other.communicate(timeout=20)
        assert (other.returncode, out) == (1, "")
        assert err == f"gateway: cannot listen on 127.0.0.1:{port}: address already in use\n"

        assert first.terminate() == 0
    with serving(tmp_path, port) as second:
        assert not KEY.search(second.banner)
        assert "Bearer $GATEWAY_API_KEY" in second.banner
        assert httpx.get(f"{second.url}/v1/models", headers=headers).status_code == 200
        assert second.terminate() == 0


def health_of(models: dict[str, Status], draining: bool = False, stuck: bool = False) -> Health:
    return Health(Telemetry("1"), lambda: models, lambda: draining, lambda: stuck)


@pytest.mark.parametrize(
    ("models", "draining", "code"),
    [
        ({"a": Status("ready")}, False, None),
        ({"a": Status("ready"), "b": Status("failed")}, False, None),
        ({"a": Status("loading"), "b": Status("failed")}, False, "model_loading"),
        ({"a": Status("failed"), "b": Status("stopped")}, False, "model_loading"),
        ({"a": Status("restarting")}, False, "model_loading"),
        ({"a": Status("failed")}, False, "model_unavailable"),
        ({"a": Status("ready")}, True, "shutting_down"),
    ],
)
def test_health_says_whether_anything_can_be_served(
    models: dict[str, Status], draining: bool, code: str | None
) -> None:
    response = ask(health_of(models, draining), "/health/ready")
    assert response.status_code == (200 if code is None else 503)
    shown = response.json()
    assert set(shown["models"]) == set(models)
    assert (shown["error"]["code"] if code else shown["status"]) == (code or "ok")
    assert ("retry-after" in response.headers) is (code is not None)
    assert ask(health_of(models, draining), "/health/live").status_code == 200


def test_health_says_that_nothing_can_be_recorded() -> None:
    response = ask(health_of({"a": Status("ready")}, stuck=True), "/health/ready")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")


def ask(health: Health, path: str) -> httpx.Response:
    """The answer of an edge with nothing but the health endpoints."""

    async def main() -> httpx.Response:
        log = AccessLog(LogConfig(level="error"), io.StringIO())
        edge = Edge(health.endpoints(), Open(), Telemetry("1"), log)
        transport = httpx.ASGITransport(edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(main())


DOCUMENTED = ("GET /openapi.json", "GET /docs", "GET /docs/{name}")
# Where somebody proves who they are, or says goodbye.
DOOR = ("GET /auth/v1/ways", "POST /auth/v1/signup", "POST /auth/v1/login", "POST /auth/v1/logout")
OIDC = ("GET /auth/v1/oidc/{provider}/start", "GET /auth/v1/oidc/{provider}/callback")


def test_every_route_is_listed_with_its_permission() -> None:
    routes = mount.routes(parts())
    public = {f"{route.method} {route.path}" for route in routes if route.permission == "public"}
    assert public == {
        "GET /",
        "GET /health",
        "GET /health/live",
        "GET /health/ready",
        "GET /metrics",
        *DOCUMENTED,
        *DOOR,
        *OIDC,
    }
    users = {route.path for route in routes if route.permission in ("inference", "models.read")}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"} <= users
    assert all(route.summary for route in routes)
