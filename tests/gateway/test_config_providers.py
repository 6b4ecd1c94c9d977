from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from adapters.providers import CAPABILITIES, PROVIDERS
from gateway.config import Config, ConfigError, ProviderConfig, RouteConfig, TargetConfig, digest, load
from gateway.config_routing import HealthConfig
from gateway.remotes import remote_model, upstream_settings

ROOT = Path(__file__).parents[2]

OPENAI = "providers:\n  - {name: openai, kind: openai, api_key: '${KEY}'}\n"
ROUTE = "routes:\n  - {name: gpt, groups: [[{provider: openai, model: gpt-4o}]]}\n"


def loaded(tmp_path: Path, text: str, **environ: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(path, environ, {})


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, KEY="sk-secret-of-the-provider")
    assert "sk-secret" not in str(caught.value)
    return str(caught.value)


def test_a_provider_and_a_route(tmp_path: Path) -> None:
    config = loaded(tmp_path, OPENAI + ROUTE, KEY="sk-short")
    (provider,), (route,) = config.providers, config.routes
    assert config.models == ()  # No demo model beside what was asked for.
    assert provider.api_key is not None and provider.api_key.reveal() == "sk-short"
    assert remote_model(route, route.groups[0][0]).model == "gpt-4o"
    assert upstream_settings(provider).connections_max == 256


def test_keys_show_nowhere(tmp_path: Path) -> None:
    one, other = (loaded(tmp_path, OPENAI + ROUTE, KEY=key) for key in ("sk-one", "sk-two"))
    assert "sk-one" not in repr(one) + repr(upstream_settings(one.providers[0]))
    assert digest(one) == digest(other)


def with_provider(**fields: Any) -> str:
    return yaml.safe_dump({"providers": [{"name": "p", "kind": "openai", "api_key": "sk-secret-of-mine"} | fields]})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "opneai"}, "expected one of anthropic, azure"),
        ({"kind": "vllm"}, "base_url is missing"),
        ({"kind": "bedrock"}, "region is missing"),
        ({"kind": "vertex", "region": "global"}, "project is missing"),
        ({"kind": "anthropic", "api_key": None}, "api_key is missing"),
        ({"kind": "bedrock", "region": "us-east-1", "api_key": None}, "or else aws_access_key_id"),
        (
            {"kind": "vertex", "region": "x", "project": "y", "google_file": "/f"},
            "google_file or google_account is needed",
        ),
        ({"api_key_file": "/f"}, "api_key is set already"),
        ({"api_key": ""}, "a secret must not be empty"),
        ({"api_key": "sk- secret-of-mine"}, "visible ASCII"),
        ({"oauth": True}, "only a provider of kind anthropic"),
        ({"base_url": "ftp://x"}, "https:// or http://"),
        ({"base_url": "https://user:pw@x"}, "neither a user"),
        ({"base_url": "https://x/?a=b"}, "nor a query"),
        ({"base_url": "http://[::1"}, "not a URL"),
        ({"headers": {"Authorization": "x"}}, "'Authorization' cannot be set"),
        ({"headers": {"X-Api-Key": "x"}}, "'X-Api-Key' cannot be set"),
        ({"headers": {"x-a": "b\nc"}}, "visible ASCII"),
        ({"organization": "a b"}, "text of visible ASCII"),
        ({"proxy": "socks5://x"}, "http:// or https://"),
        ({"kind": "bedrock", "region": "eu-west-1", "health": {}}, "has nothing to ask for"),
        ({"addresses": "each", "proxy": "http://proxy:3128"}, "there can be no proxy"),
        ({"health": {"path": "https://elsewhere.test/"}}, "at providers[0].health.path"),
        ({"health": {"interval_s": 0}}, "at providers[0].health.interval_s"),
        ({"name": "local"}, "already taken"),
        ({"name": "a/b"}, "a name has 1 to 64 letters"),
    ],
)
def test_what_a_provider_may_not_say(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    message = refused(tmp_path, with_provider(**fields))
    assert problem in message
    assert "secret-of-mine" not in message


@pytest.mark.parametrize(
    ("routes", "problem"),
    [
        ([{"name": "a", "groups": [[{"provider": "x", "model": "m"}]]}], "there is no provider 'x'; known: p"),
        ([{"name": "a", "groups": []}], "at routes[0].groups"),
        ([{"name": "a", "groups": [[]]}], "at routes[0].groups[0]"),
        ([{"name": "a", "groups": [[{"provider": "p", "model": "m", "kinds": ["rerank"]}]]}], "has no rerank"),
        (
            [{"name": "a", "groups": [[{"provider": "p", "model": "m", "dialect": "gemini"}]]}],
            "holds chats in openai_chat",
        ),
        ([{"name": "a", "groups": [[{"provider": "p", "model": "m", "capabilities": ["flying"]}]]}], "expected"),
        (
            [{"name": "a", "groups": [[{"provider": "p", "model": "m"}]], "mirror": {"provider": "x", "model": "m"}}],
            "at routes[0].mirror.provider: there is no provider 'x'",
        ),
        (
            [
                {
                    "name": "a",
                    "groups": [[{"provider": "p", "model": "m"}]],
                    "mirror": {"provider": "local", "model": "m"},
                }
            ],
            "none of models is called 'm'",
        ),
        ([{"name": "a", "groups": [[{"provider": "p", "model": "m"}]], "hedge": {"share_max": 0}}], "share_max"),
        ([{"name": "a", "groups": [[{"provider": "p", "model": "m"}]], "hedge": {"percentile": 100}}], "percentile"),
        ([{"name": "a", "aliases": ["a"], "groups": [[{"provider": "p", "model": "m"}]]}], "already taken"),
    ],
)
def test_what_a_route_may_not_say(tmp_path: Path, routes: list[Any], problem: str) -> None:
    assert problem in refused(tmp_path, with_provider() + yaml.safe_dump({"routes": routes}))


def test_a_route_does_not_take_a_models_name(tmp_path: Path) -> None:
    text = "models: [{name: gpt, path: x.gguf}]\n" + OPENAI + ROUTE
    assert '"gpt" is already taken by models[0].name' in refused(tmp_path, text)


def commented(section: str) -> list[dict[str, Any]]:
    """The list in the comment above an empty one."""
    text = (ROOT / "config.example.yaml").read_text()
    paragraph = text[: text.index(f"\n{section}: []")].rpartition("\n\n")[2]
    block = [line.removeprefix("#") for line in paragraph.splitlines()]
    start = next(i for i, line in enumerate(block) if re.match(r" +- name", line))
    found: list[dict[str, Any]] = yaml.safe_load("\n".join(block[start:]))
    return found


def test_the_example_explains_every_setting_of_providers_and_routes() -> None:
    (provider,), (route,) = commented("providers"), commented("routes")
    assert list(provider) and set(provider) == set(ProviderConfig.__struct_fields__)
    assert set(route) == set(RouteConfig.__struct_fields__)
    assert set(route["groups"][0][0]) == set(TargetConfig.__struct_fields__)
    defaults = msgspec.to_builtins(ProviderConfig(name="openai", kind="openai", health=HealthConfig()))
    assert provider | {"api_key": None} == defaults
    text = (ROOT / "config.example.yaml").read_text()
    assert all(re.search(rf"\b{name}\b", text) for name in (*CAPABILITIES, *PROVIDERS))
