"""`gateway pool` against a scripted server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway import chat, cli, cli_pool

ENGINE = {
    "id": "org/m",
    "state": "loading",
    "progress": 0.5,
    "reason": None,
    "queue_depth": 1,
    "running": 2,
    "waiting": 3,
    "eta_s": 4.25,
    "tokens_per_s": None,
    "kv_cells_used": 256,
    "kv_cells_max": 1024,
    "memory_bytes": 3 << 20,
    "pinned": True,
    "lazy": False,
    "held": False,
    "sessions": 7,
}
ELSEWHERE = dict.fromkeys(ENGINE) | {"id": "route", "state": "ready", "running": 0, "queue_depth": 0, "waiting": 0}


class Terminal:
    """Runs `gateway pool` with every request answered here: each look finds the model in the next state."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.asked: list[str] = []
        self.states = ["loading"]
        self._capsys = capsys
        real = chat.Server
        monkeypatch.setattr(chat, "Server", lambda url, key: real(url, key, httpx.MockTransport(self._answer)))
        monkeypatch.setattr(cli_pool, "POLL_S", 0.0)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.raw_path.decode()}")
        engine: dict[str, Any] = ENGINE | {"state": self.states[0]}
        self.states = self.states[1:] or self.states
        if request.method == "POST":
            return httpx.Response(200, json=engine)
        return httpx.Response(
            200, json={"data": [engine, ELSEWHERE], "memory_bytes": 3 << 20, "memory_bytes_max": 8 << 30}
        )

    def __call__(self, *arguments: str) -> tuple[int, str]:
        code = cli.main(["pool", *arguments, "--url", "http://test/v1", "--key", "k"])
        return code, self._capsys.readouterr().out


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_a_table_of_what_is_in_memory(terminal: Terminal) -> None:
    code, out = terminal("status")
    first, second = [line.split() for line in out.splitlines()[1:3]]
    assert code == 0
    assert first == ["org/m", "loading", "50%", "3.0", "MiB", "2", "1", "3", "4.2", "s", "25%", "7", "pinned"]
    assert second == ["route", "ready", "0", "0", "0"]
    assert out.splitlines()[-1] == "3.0 MiB of 8.0 GiB of memory are taken"
    assert terminal.asked == ["GET /admin/v1/pool"]


def test_verbs_are_sent_to_the_server(terminal: Terminal) -> None:
    assert terminal("unload", "org/m", "--force")[0] == 0
    assert json.loads(terminal("pin", "org/m", "--json")[1])["id"] == "org/m"
    assert terminal.asked == ["POST /admin/v1/pool/org%2Fm/unload?force=true", "POST /admin/v1/pool/org%2Fm/pin"]


@pytest.mark.parametrize(("end", "code"), [("ready", 0), ("failed", 1)])
def test_waiting_for_a_load(terminal: Terminal, end: str, code: int) -> None:
    terminal.states = ["loading", "loading", end]
    assert terminal("load", "org/m", "--wait")[0] == code
    assert len(terminal.asked) == 3
