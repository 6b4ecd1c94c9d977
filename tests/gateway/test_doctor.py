"""The checks of the doctor on directories that are well and unwell."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from gateway import doctor
from gateway.auth.key_text import load_pepper
from gateway.auth.keys import Keys
from gateway.config import (
    Config,
    ModelConfig,
    ProviderConfig,
    ProviderKey,
    RouteConfig,
    SecretUrl,
    StateConfig,
    TargetConfig,
    demo_model_path,
)
from gateway.config_limits import PriceConfig
from gateway.state.migrate import known, migrate
from gateway.state.sqlite import FILE_NAME
from gateway.stores import with_database
from tests.databases import open_migrated
from tests.stores import Postgres, Valkey, free_port


def config(tmp_path: Path, *models: ModelConfig) -> Config:
    return Config(data_dir=str(tmp_path / "data"), models=models)


def found(checks: object) -> list[tuple[str, str]]:
    return [(check.status, check.name) for check in checks]  # type: ignore[attr-defined]


def start_once(tmp_path: Path) -> Path:
    """What the first start leaves behind."""
    data_dir = tmp_path / "data"

    async def run() -> None:
        database = await open_migrated(data_dir, serve=True)
        keys = Keys(database, load_pepper(data_dir))
        await keys.open()
        await keys.ensure_admin()
        await database.close()

    asyncio.run(run())
    return data_dir


def test_before_the_first_start_all_is_well(tmp_path: Path) -> None:
    demo = ModelConfig(name="demo", path=demo_model_path())
    checks = list(doctor.examine(config(tmp_path, demo)))
    assert not [check for check in checks if check.status == "fail"]
    names = [check.name for check in checks]
    assert names[:4] == ["python", "sqlite", "llama.cpp", "processors"]
    assert names[-1] == "model demo"
    assert not (tmp_path / "data").exists(), "looking changes nothing"


def test_a_used_data_directory(tmp_path: Path) -> None:
    start_once(tmp_path)
    assert found(doctor._data_dir(config(tmp_path))) == [("ok", "data directory")]
    checks = list(doctor._database(config(tmp_path)))
    assert found(checks) == [
        ("ok", "database"),
        ("ok", "migrations"),
        ("ok", "keys"),
        ("ok", "money"),
        ("ok", "canary"),
        ("ok", "audit log"),
    ]
    assert checks[-4].detail == "1 not revoked"


def test_stores_of_several_replicas(tmp_path: Path, postgres: Postgres, valkey: Valkey) -> None:
    state = StateConfig(database=SecretUrl(postgres.database()), redis=SecretUrl(valkey.url))
    several = Config(data_dir=str(tmp_path / "data"), state=state)
    names = [name for status, name in found([*doctor._database(several), *doctor._shared(several)]) if status == "ok"]
    assert names == ["database", "database clock", "migrations", "redis", "redis clock"]
    with_database(several, lambda database: migrate(database, known()))
    names = [name for status, name in found(doctor._database(several)) if status == "ok"]
    assert names == ["database", "database clock", "migrations", "keys", "money", "canary", "audit log"]
    assert doctor._clock("clock", -3.0).status == "warn"


def test_stores_that_are_away_or_wrong(tmp_path: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    state = StateConfig(database=SecretUrl(f"postgresql://u:hidden@{url}/d"), redis=SecretUrl(f"redis://:hidden@{url}"))
    several = Config(data_dir=str(tmp_path / "data"), state=state)
    checks = [*doctor._database(several), *doctor._shared(several)]
    assert found(checks) == [("fail", "database"), ("fail", "redis")]
    with Valkey("--maxmemory-policy", "volatile-ttl") as evicting:
        state = StateConfig(redis=SecretUrl(evicting.url))
        checks += (check := list(doctor._shared(Config(state=state))))
        assert (check[0].status, "volatile-ttl" in check[0].detail) == ("fail", True)
    assert not any("hidden" in check.detail for check in checks)


def test_a_data_directory_open_to_others(tmp_path: Path) -> None:
    start_once(tmp_path).chmod(0o755)
    (check,) = doctor._data_dir(config(tmp_path))
    assert check.status == "warn"
    assert "chmod 700" in check.detail


def test_a_damaged_database(tmp_path: Path) -> None:
    path = start_once(tmp_path) / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    (check,) = doctor._database(config(tmp_path))
    assert (check.status, check.name) == ("fail", "database")
    path.write_bytes(b"nothing like it" * 400)
    assert found(doctor._database(config(tmp_path))) == [("fail", "database")]


def test_a_lost_pepper(tmp_path: Path) -> None:
    (start_once(tmp_path) / "pepper").write_text("ab" * 32)
    (check,) = doctor._database(config(tmp_path))
    assert check.status == "fail"
    assert "made with another pepper" in check.detail


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert found(doctor._data_dir(config(tmp_path))) == [("fail", "data directory")]


def test_models_that_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"zip")
    models = (ModelConfig(name="a", path="/none"), ModelConfig(name="b", path=str(tmp_path / "bad")))
    assert found(doctor._models(config(tmp_path, *models))) == [("fail", "model a"), ("fail", "model b")]
    (pulled,) = doctor._models(config(tmp_path, ModelConfig(name="c", pull="owner/repo")))
    assert (pulled.status, pulled.detail) == ("ok", "owner/repo, pulled when it is needed")


def test_a_library_that_kills_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = "import os; print('0.3', flush=True); os.abort()"
    for code, detail in {
        killed: "the library dies when it computes (Aborted): compile it anew for this CPU (make rebuild)",
        "import os; os.abort()": "the library does not load: it died with code -6",
        "import no_such_library": "the library does not load: ModuleNotFoundError: No module named 'no_such_library'",
    }.items():
        monkeypatch.setattr(doctor, "TRIAL", ("-c", code))
        (check,) = doctor._library(config(tmp_path))
        assert (check.status, check.detail) == ("fail", detail)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_processor_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor.cpu_quota(tmp_path) == quota


def test_a_balance_that_is_not_the_sum_of_its_entries_is_found(tmp_path: Path) -> None:
    start_once(tmp_path)
    with sqlite3.connect(tmp_path / "data" / FILE_NAME) as database:
        database.execute("INSERT INTO balances VALUES ('key:k:total', 5, 0)")
        database.execute("INSERT INTO audit_head VALUES ('newest', 1, 'ab')")
    database.close()
    check, _, chain = list(doctor._database(config(tmp_path)))[-3:]
    assert (chain.status, chain.name) == ("fail", "audit log") and "newest entry" in chain.detail
    assert (check.status, check.name) == ("fail", "money") and "key:k:total" in check.detail


def test_providers_and_routes_are_examined_without_asking_them(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-x")
    key.chmod(0o644)
    providers = (
        ProviderConfig(name="fine", kind="openai", api_key=ProviderKey("sk-x")),
        ProviderConfig(
            name="open", kind="vllm", base_url="http://vllm:8000/v1", api_key=ProviderKey("k"), verify=False
        ),
        ProviderConfig(name="shown", kind="openai", api_key_file=str(key)),
        ProviderConfig(name="twice", kind="anthropic", api_key=ProviderKey("k"), base_url="https://proxy/claude/v1/"),
        ProviderConfig(name="once", kind="anthropic", api_key=ProviderKey("k"), base_url="https://proxy/claude"),
        ProviderConfig(name="lost", kind="vertex", google_file=str(tmp_path / "gone"), region="a", project="b"),
    )
    routes = (
        RouteConfig(name="free", groups=((TargetConfig(provider="fine", model="m", price=PriceConfig(input="0")),),)),
        RouteConfig(name="unknown", groups=((TargetConfig(provider="fine", model="m"),),)),
        RouteConfig(
            name="both",
            policy="sticky",
            groups=(
                (TargetConfig(provider="fine", model="gpt-4o"), TargetConfig(provider="open", model="a")),
                (TargetConfig(provider="open", model="b", price=PriceConfig(input="1")),),
            ),
        ),
    )
    checks = list(doctor.examine(Config(data_dir=str(tmp_path / "data"), providers=providers, routes=routes)))
    told = [(check.status, check.name, check.detail) for check in checks if check.name.startswith(("prov", "rou"))]
    assert told == [
        ("ok", "provider fine", "openai at its own address"),
        ("warn", "provider open", "its key goes unencrypted to vllm"),
        ("warn", "provider open", told[2][2]),
        ("warn", "provider shown", f"other users can read {key}; run: chmod 600 {key}"),
        (
            "warn",
            "provider twice",
            "its base_url should end before /v1, which is added for a provider of kind anthropic",
        ),
        ("ok", "provider once", "anthropic at https://proxy/claude"),
        ("fail", "provider lost", f"{tmp_path / 'gone'} cannot be read"),
        ("ok", "route free", "m of fine"),
        ("warn", "route unknown", "m of fine; without a price for m of fine no key with a budget may use it"),
        (
            "warn",
            "route both",
            "gpt-4o of fine, a of open; then b of open (sticky); "
            "without a price for a of open no key with a budget may use it",
        ),
    ]
