from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway import banner
from gateway.banner import Banner
from gateway.config import AuthConfig, Config, ModelConfig, ServerConfig

MODELS = (ModelConfig(name="demo", path="/x/demo.gguf"), ModelConfig(name="other", path="/x/other.gguf"))


class Status(msgspec.Struct):
    state: str
    progress: float = 0.0
    reason: str | None = None


def test_the_first_start_shows_the_key_and_a_request_that_uses_it() -> None:
    out = io.StringIO()
    Banner(Config(models=MODELS), "1.0", "gw_live_secret", out).show()
    text = out.getvalue()
    assert "listens on http://127.0.0.1:8000\n" in text
    assert "Admin key (shown only now): gw_live_secret\n" in text
    assert '"Authorization: Bearer gw_live_secret"' in text
    assert '"model":"demo"' in text


@pytest.mark.parametrize(
    ("config", "key"),
    [(Config(models=MODELS), True), (Config(models=MODELS, auth=AuthConfig(enabled=False)), False)],
)
def test_a_later_start_shows_no_key(config: Config, key: bool) -> None:
    out = io.StringIO()
    Banner(config, "1.0", None, out).show()
    assert "Admin key" not in out.getvalue()
    assert ("Bearer $GATEWAY_API_KEY" in out.getvalue()) is key


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9"),
        ("0.0.0.0", "http://127.0.0.1:9"),
        ("::", "http://[::1]:9"),
        ("gateway.example", "http://gateway.example:9"),
    ],
)
def test_the_address_is_one_that_can_be_used(host: str, url: str) -> None:
    assert banner.url(Config(server=ServerConfig(host=host, port=9))) == url


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banner, "POLL_S", 0)
    states = (Status("stopped"), Status("loading", 0.5), Status("loading", 1), Status("ready", 1))
    steps = iter([{"demo": state} for state in states])
    out = Terminal()
    asyncio.run(Banner(Config(models=MODELS), "1.0", None, out).show_loading(lambda: next(steps)))
    shown = out.getvalue().split("\r\x1b[K")
    assert shown[1:] == ["Model demo loading  50%", "Model demo loaded, being measured", "Model demo ready\n"]


def test_loading_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banner, "POLL_S", 0)
    steps: Iterator[dict[str, Any]] = iter(
        [
            {"demo": Status("loading"), "other": Status("stopped")},
            {"demo": Status("loading", 0.5), "other": Status("stopped")},
            {"demo": Status("ready", 1), "other": Status("loading")},
            {"demo": Status("ready", 1), "other": Status("failed", 0, "not a GGUF file")},
        ]
    )
    out = io.StringIO()
    asyncio.run(Banner(Config(models=MODELS), "1.0", None, out).show_loading(lambda: next(steps)))
    assert out.getvalue() == "Model demo ready\nModel other failed: not a GGUF file\n"
