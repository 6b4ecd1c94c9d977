"""When kept answers of a model or route stop being its answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.app.caching import caching_of
from gateway.config import Config, EngineConfig, ModelConfig, ProviderConfig, RouteConfig, TargetConfig

PROVIDER = ProviderConfig(name="p", kind="openai-compatible", base_url="http://a.example/v1")
ROUTE = RouteConfig(
    name="r",
    cache_ttl_s=60,
    groups=((TargetConfig(provider="p", model="x"), TargetConfig(provider="local", model="m")),),
)


def version(config: Config, one: ModelConfig | RouteConfig) -> str:
    caching = caching_of(config, one)
    assert caching is not None and caching.ttl_s == 60
    return caching.version


def test_only_what_asks_for_it_is_kept() -> None:
    assert caching_of(Config(), ModelConfig(name="m", path="/none")) is None
    assert caching_of(Config(), replace(ROUTE, cache_ttl_s=None)) is None


def test_a_model_is_another_when_its_file_or_its_engine_is(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    model = ModelConfig(name="m", path=str(path), cache_ttl_s=60)
    before = version(Config(), model)
    assert version(Config(), replace(model, queue_depth_max=7)) == before
    assert version(Config(), replace(model, engine=EngineConfig(kv_type="q8_0"))) != before
    path.write_bytes(b"other")
    assert version(Config(), model) != before


@pytest.mark.parametrize(
    "provider",
    [replace(PROVIDER, base_url="http://b.example/v1"), replace(PROVIDER, headers={"x-mode": "new"})],
)
def test_a_route_is_another_when_what_it_leads_to_is(tmp_path: Path, provider: ProviderConfig) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    config = Config(models=(ModelConfig(name="m", path=str(path)),), providers=(PROVIDER,))
    before = version(config, ROUTE)
    assert version(config, replace(ROUTE, policy="random", description="new")) == before
    assert version(replace(config, providers=(provider,)), ROUTE) != before
    path.write_bytes(b"other")
    assert version(config, ROUTE) != before
