"""What an administrator sees of the server itself."""

from __future__ import annotations

from pathlib import Path

from adapters.types import ModelCard
from gateway import config
from gateway.api.admin.server import ServerRoutes
from gateway.catalog import Catalog, Price, Target
from gateway.schema import leaves
from gateway.secret import Secret
from gateway.state.database import Database
from tests.fakes import Scripted
from tests.gateway.api.admin.desk import Desk, at_desk

TEXT = "an-extremely-secret-text"


class Loading:
    state = "loading"
    progress = 0.25


def test_settings_are_shown_without_any_secret(tmp_path: Path) -> None:
    secrets = [name for name, kind in leaves(config._CONFIG, "") if isinstance(kind_of(kind), type) and _secret(kind)]
    assert {"auth.admin_key", "auth.pepper", "state.database", "state.redis"} <= set(secrets)
    schemes = {"state.database": "postgresql://u:", "state.redis": "redis://:", "cache.redis": "redis://:"}
    values = {name: schemes.get(name, "") + TEXT + ("@h/d" if name in schemes else "") for name in secrets}
    plain = {
        "alerts.smtp.username": "mailer",
        "alerts.webhook.url": f"https://hooks.example/{TEXT}?t={TEXT}",
        "data_dir": str(tmp_path),
        "providers": [
            {
                "name": "p",
                "kind": "openai-compatible",
                "base_url": "https://p.example/v1",
                "api_key": TEXT,
                "headers": {"x-key": TEXT},
            }
        ],
    }
    loaded = config.load(None, {}, values | plain)

    async def script(desk: Desk, database: Database) -> None:
        desk.serve(ServerRoutes(loaded, Catalog(()), dict).routes())
        answer = await desk.ask("admin", "GET", "/settings")
        shown = answer.json()["settings"]
        assert shown["data_dir"] == str(tmp_path)
        assert TEXT not in answer.text and answer.text.count('"***"') == len(secrets) + 2
        assert shown["alerts"]["webhook"]["url"] == "https://hooks.example/***"
        assert shown["providers"][0]["headers"] == {"x-key": "***"}

    at_desk(tmp_path, script)


def _secret(kind: object) -> bool:
    return issubclass(kind_of(kind), Secret)


def kind_of(kind: object) -> type:
    return getattr(kind, "cls", object)


def test_models_have_their_prices_and_states(tmp_path: Path) -> None:
    card = ModelCard(context_tokens=99, kinds=("chat",), description="a model")
    priced = Target("m", Scripted(card=card), aliases=("n",), price=Price(10**9, 5 * 10**8, 2 * 10**9, "t"))
    catalog = Catalog([priced, Target("m:lora", Scripted(card=card), parent="m")])

    async def script(desk: Desk, database: Database) -> None:
        desk.serve(ServerRoutes(config.Config(), catalog, lambda: {"m": Loading()}).routes())
        first, second = (await desk.ask("admin", "GET", "/models")).json()["data"]
        assert (first["id"], first["aliases"], first["state"], first["context_tokens"]) == ("m", ["n"], "loading", 99)
        assert first["price"] == {"input": "1.0", "cached_input": "0.5", "output": "2.0", "table": "t"}
        assert (second["parent"], second["state"], second["price"]) == ("m", "loading", None)

    at_desk(tmp_path, script)
