"""`gateway sessions` against a scripted server."""

from __future__ import annotations

import json

import httpx
import pytest

from gateway import chat, cli

FIRST = {
    "id": "s1",
    "key": "a/b",
    "model": "m",
    "owner": "alice",
    "tokens": 2000,
    "tier": "disk",
    "size_bytes": 2048,
    "created_at": 0,
    "last_used_at": 86_399,
    "pinned": True,
    "checkpoints": 0,
}
SECOND = FIRST | {"id": "s2", "key": None, "pinned": False, "owner": "\x1b[31m"}


class Terminal:
    """Runs `gateway sessions` with every request answered here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self._capsys = capsys
        real = chat.Server
        monkeypatch.setattr(chat, "Server", lambda url, key: real(url, key, httpx.MockTransport(self._answer)))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        target = request.url.raw_path.decode()
        self.asked.append((request.method, target, request.content))
        if target.startswith("/v1/sessions?"):
            last = "after" in request.url.params
            data = [SECOND] if last else [FIRST]
            return httpx.Response(200, json={"data": data, "has_more": not last, "unavailable_models": ["away"]})
        if "nothing" in target:
            return httpx.Response(404, json={"error": {"message": "There is no such session."}})
        return httpx.Response(200, json=FIRST | {"object": "session"})

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = cli.main(["sessions", *arguments, "--url", "http://test", "--key", "k"])
        return (code, *self._capsys.readouterr())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_all_pages_in_one_table(terminal: Terminal) -> None:
    code, out, err = terminal("list", "--model", "m", "--tenant", "*")
    assert code == 0
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "KEY ID MODEL OWNER TOKENS TIER SIZE CREATED LAST USED PINNED",
        "a/b s1 m alice 2000 disk 2.0 KiB 1970-01-01 00:00:00 1970-01-01 23:59:59 yes",
        r"s2 m \x1b[31m 2000 disk 2.0 KiB 1970-01-01 00:00:00 1970-01-01 23:59:59",
    ]
    assert err == "gateway: the model away cannot be asked now\n"
    assert [target for _, target, _ in terminal.asked] == [
        "/v1/sessions?limit=100&model=m&tenant=%2A",
        "/v1/sessions?limit=100&model=m&tenant=%2A&after=s1",
    ]
    assert json.loads(terminal("list", "--json")[1]) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("arguments", "request_line"),
    [
        (["show", "a/b"], ("GET", "/v1/sessions/a%2Fb", b"")),
        (["delete", ".."], ("DELETE", "/v1/sessions/%2E%2E", b"")),
        (["pin", "ä?&"], ("POST", "/v1/sessions/%C3%A4%3F%26/pin", b"")),
        (["unpin", "x", "--model", "m"], ("POST", "/v1/sessions/x/unpin?model=m", b"")),
        (["reset", "x"], ("POST", "/v1/sessions/x/reset", b"")),
        (["fork", "x"], ("POST", "/v1/sessions/x/fork", b"")),
        (["fork", "x", "--new-id", "y"], ("POST", "/v1/sessions/x/fork", b'{"new_id":"y"}')),
    ],
)
def test_one_session(terminal: Terminal, arguments: list[str], request_line: tuple[str, str, bytes]) -> None:
    code, out, _ = terminal(*arguments)
    assert (code, "a/b  s1" in out) == (0, True)
    assert terminal.asked == [request_line]
    assert json.loads(terminal(*arguments, "--json")[1]) == FIRST


def test_a_refusal_is_one_line(terminal: Terminal) -> None:
    assert terminal("pin", "nothing") == (1, "", "gateway: There is no such session.\n")
