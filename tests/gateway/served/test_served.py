"""What all providers and routes are together, whatever the configuration has become since some of them were made."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from adapters.errors import ModelUnavailable
from gateway.config import Config, ProviderConfig, RouteConfig
from gateway.config_providers import ProviderSettings
from gateway.served import (
    ProviderSecret,
    RouteChange,
    Row,
    Sealed,
    Stored,
    combine,
    described,
    encoded,
    given,
    origin_of,
)

CONFIG = msgspec.convert(
    {
        "models": [{"name": "here", "path": "/m.gguf", "aliases": ["mine"]}],
        "providers": [{"name": "house", "kind": "vllm", "base_url": "http://house/v1"}],
        "routes": [{"name": "chat", "aliases": ["talk"], "groups": [[{"provider": "house", "model": "m"}]]}],
    },
    Config,
)


def row(of: Any, at_us: int = 1, /, **settings: Any) -> Row:
    return Row(
        kind=of, name=settings["name"], settings=msgspec.json.encode(settings).decode(), created_us=at_us, changed_us=1
    )


def route(name: str, provider: str = "house", model: str = "m", at_us: int = 1, **more: Any) -> Row:
    return row("route", at_us, name=name, groups=[[{"provider": provider, "model": model}]], **more)


def problems(*rows: Row, config: Config = CONFIG) -> dict[str, tuple[str, str]]:
    served, _ = combine(config, Stored(1, rows), lambda sealed: None)
    left_out = [item.settings for item in served.items if item.problem]
    assert not [one for one in (*served.config.routes, *served.config.providers) if one in left_out]
    return {item.name: (item.problem.param, item.problem.message) for item in served.items if item.problem}


def test_what_was_made_is_served_beside_the_configuration_in_the_order_of_its_making() -> None:
    rows = (
        route("late", "far", at_us=3),
        route("early", at_us=2),
        row("provider", name="far", kind="openai", region="eu"),
    )
    served, unread = combine(CONFIG, Stored(7, rows), lambda sealed: None)
    assert (served.version, unread, problems(*rows)) == (7, [], {})
    assert [one.name for one in served.config.routes] == ["chat", "early", "late"]
    assert [item.name for item in served.of("provider")] == ["house", "far"]
    assert served.config.models == CONFIG.models
    found = served.find("route", "early")
    assert found is not None and found.row == rows[1]
    assert served.since_s == {"early": 0, "late": 0}


@pytest.mark.parametrize(
    ("made", "param", "message"),
    [
        (route("mine"), "name", "is already taken"),
        (route("new", aliases=["talk"]), "aliases[0]", "is already taken"),
        (route("new", "gone"), "groups[0][0].provider", "there is no provider 'gone'"),
        (route("new", "local", "gone"), "groups[0][0].model", "none of models is called 'gone'"),
        (row("provider", name="house", kind="openai"), "name", "is already taken"),
        (row("provider", name="local", kind="openai"), "name", "is already taken"),
        (row("provider", name="a b", kind="openai"), "name", "a name has 1 to 64 letters"),
        (row("provider", name="new", kind="vllm"), "", "base_url is missing"),
        (row("provider", name="new", kind="vllm", base_url="http://a/{b}"), "base_url", "not a URL"),
        (row("provider", name="new", kind="vllm", base_url="http://a{b}/"), "base_url", "not a URL"),
        (row("provider", name="new", kind="vllm", base_url="http://ä/"), "base_url", None),
        (row("provider", name="new", kind="openai", oauth=True), "oauth", "only a provider of kind anthropic"),
        (row("provider", name="new", kind="openai", headers={"authorization": "x"}), "headers", "cannot be set"),
    ],
)
def test_what_does_not_fit_is_left_out_and_says_why(made: Row, param: str, message: str | None) -> None:
    if message is None:
        assert combine(CONFIG, Stored(1, (made,)), lambda sealed: None)[1] == ["new"]
        return
    ((found, told),) = problems(made).values()
    assert found == param and message in told
    assert "routes[" not in told and "models[" not in told, "places of a list that nobody has seen say nothing"


def test_what_depends_on_something_that_does_not_fit_is_left_out_too() -> None:
    provider = row("provider", name="house", kind="openai")
    assert set(problems(provider)) == {"house"}
    elsewhere = msgspec.structs.replace(CONFIG, providers=(), routes=())
    rows = (row("provider", name="far", kind="vllm"), route("a", "far"), route("b", aliases=("a",), at_us=9))
    assert set(problems(*rows, config=elsewhere)) == {"far", "a", "b"}


def test_a_later_route_does_not_take_a_name_from_an_earlier_one() -> None:
    assert set(problems(route("a", at_us=5), route("b", aliases=["a"], at_us=4))) == {"a"}


def test_what_another_release_wrote_is_named_and_left_alone() -> None:
    unknown = (row("route", name="r", groups=[[{"provider": "house", "model": "m"}]], brand_new=1),)
    served, unread = combine(CONFIG, Stored(1, (*unknown, row("thing", name="t"))), lambda sealed: None)
    assert unread == ["r", "t"] and [one.name for one in served.config.routes] == ["chat"]


def test_only_what_is_not_so_anyway_is_written() -> None:
    settings = msgspec.convert(
        {"name": "r", "groups": [[{"provider": "house", "model": "m", "weight": 2}]], "policy": "weighted"}, RouteConfig
    )
    text = encoded(settings)
    assert msgspec.json.decode(text) == {"name": "r", "groups": [[{"provider": "house", "model": "m", "weight": 2}]]}
    assert msgspec.json.decode(text, type=RouteConfig) == settings
    provider = ProviderSettings(name="p", kind="openai", headers={"x-a": "b"})
    assert msgspec.json.decode(encoded(provider), type=ProviderSettings) == provider


def test_a_change_is_what_was_given() -> None:
    change = msgspec.json.decode(b'{"policy": "fastest", "description": ""}', type=RouteChange)
    assert given(change) == {"policy": "fastest", "description": ""}
    for wrong in (b'{"name": "other"}', b'{"policy": null}', b'{"groups": []}', b'{"attempts_max": 11}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=RouteChange)


def secret_of(settings: dict[str, Any], origin: str) -> ProviderConfig:
    sealed = Sealed(provider="p", sealed="", key_id="k", origin=origin, set_us=1, set_by="me")
    made = (row("provider", name="p", **settings),)
    secret = ProviderSecret(api_key="sk-one")
    served, _ = combine(CONFIG, Stored(1, made, (sealed,)), lambda sealed: secret)
    found = served.find("provider", "p")
    assert found is not None and isinstance(found.settings, ProviderConfig) and not found.problem
    assert found.open == (found.settings.api_key is not None and type(found.settings.api_key).__name__ == "ProviderKey")
    return found.settings


def test_a_secret_is_used_at_its_own_host_only() -> None:
    there = secret_of({"kind": "openai"}, "https://api.openai.com:443").api_key
    assert there is not None and there.reveal() == "sk-one"
    for settings in ({"kind": "openai", "base_url": "https://elsewhere/v1"}, {"kind": "mistral"}):
        elsewhere = secret_of(settings, "https://api.openai.com:443").api_key
        assert elsewhere is not None
        with pytest.raises(ModelUnavailable):
            elsewhere.reveal()
    assert secret_of({"kind": "vllm", "base_url": "http://a"}, "http://b:80").api_key is None


def test_where_a_provider_is() -> None:
    urls = {
        "http://a/v1": "http://a:80",
        "https://a:8443": "https://a:8443",
        "https://{region}.a/x": "https://eu.a:443",
        "http://a/{b}": None,
    }
    for url, origin in urls.items():
        assert origin_of(ProviderConfig(name="p", kind="vllm", base_url=url, region="eu")) == origin


def test_each_part_of_a_secret_has_its_place() -> None:
    vertex = ProviderSettings(name="v", kind="vertex", region="eu", project="p")
    account = described(vertex, ProviderSecret(google_account='{"private_key": "..."}')).google_account
    assert account is not None and account.reveal() == '{"private_key": "..."}'
    aws = ProviderSettings(name="b", kind="bedrock", region="eu-west-1", aws_access_key_id="AKIA")
    found = described(aws, ProviderSecret(aws_secret_access_key="s", aws_session_token="t"))
    assert found.aws_secret_access_key is not None and found.aws_session_token is not None
    with pytest.raises(ModelUnavailable):
        described(aws, None).aws_secret_access_key.reveal()  # type: ignore[union-attr]
    assert described(ProviderSettings(name="o", kind="ollama"), None).api_key is None
