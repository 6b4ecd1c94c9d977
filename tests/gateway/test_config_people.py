"""What an operator can get wrong about people and their providers, and how it is said."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError, load
from gateway.config_people import LoginConfig, PeopleConfig

ROOT = Path(__file__).parents[2]
GOOD = {"name": "corp", "issuer": "https://id.example.com", "client_id": "gateway"}


def configured(*logins: dict[str, Any], **people: Any) -> Config:
    return load(None, {"XDG_DATA_HOME": ""}, {"auth.people": {"logins": list(logins)} | people})


def test_nobody_signs_up_unless_the_operator_says_so() -> None:
    assert configured().auth.people == PeopleConfig()
    assert configured().auth.people.signup == "off"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "A"}, "logins[0].name: a name has 1 to 32 small letters"),
        ({"name": "a/b"}, "logins[0].name: a name has 1 to 32"),
        ({"issuer": "http://id.example.com"}, "logins[0].issuer: expected https://"),
        ({"issuer": "corp"}, "logins[0].issuer: expected a URL"),
        ({"algorithms": ["HS256"]}, "logins[0].algorithms[0]: expected one of"),
        ({"algorithms": []}, "logins[0].algorithms: at least one"),
        ({"scopes": ["email"]}, "logins[0].scopes: without openid"),
        ({"client_secret": "short"}, "logins[0].client_secret: a secret has at least"),
        ({"organisation": "a", "organisation_claim": "b"}, "logins[0].organisation_claim: organisation is set"),
        ({"organisation": "a", "groups": [{"group": "a"}]}, "logins[0].groups[0]: say what the group means"),
        ({"groups": [{"group": "a", "role": "admin"}]}, "logins[0].groups: they need organisation"),
        ({"email_domains": ["EXAMPLE.com"]}, "logins[0].email_domains[0]: expected a domain"),
        ({"secret": "x"}, "logins[0].secret: no such setting"),
    ],
)
def test_what_is_wrong_with_a_provider(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(GOOD | changes)
    assert f"auth.people.{problem}" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"public_url": "http://gw.example.com"}, "public_url: expected https://"),
        ({"public_url": "https://gw.example.com/ui"}, "public_url: expected no more than"),
        ({"public_url": "https://GW.example.com"}, "public_url: expected no more than"),
        ({"signup": "open", "organisation": "a", "role": "admin"}, "role: whoever comes along"),
        ({"lifetime_s": 300}, "lifetime_s: it is shorter"),
        ({"bonus_usd": -1.5}, "bonus_usd: expected US dollars"),
        ({"signup": "yes"}, "signup: expected one of"),
    ],
)
def test_what_is_wrong_with_people(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(**changes)
    assert f"auth.people.{problem}" in str(refused.value)


def test_providers_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="already taken"):
        configured(GOOD, GOOD | {"issuer": "https://b.example"})
    with pytest.raises(ConfigError, match="this issuer is there already"):
        configured(GOOD, GOOD | {"name": "b"})


def test_the_example_of_a_provider_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "config.example.yaml").read_text()
    start = text.index("    #   - name: google\n")
    block = text[start : text.index("    logins: []", start)].replace("    #   ", "")
    path = tmp_path / "config.yaml"
    path.write_text("auth:\n  people:\n    logins:\n" + textwrap.indent(block, "      "))
    environ = {"GOOGLE_CLIENT_SECRET": "0123456789abcdef"}
    (login,) = load(path, environ, {}).auth.people.logins
    google = {"title": "Google", "issuer": "https://accounts.google.com", "name": "google"}
    google |= {"client_id": login.client_id, "client_secret": environ["GOOGLE_CLIENT_SECRET"]}
    assert login == configured(google).auth.people.logins[0]
    assert all(f"{name}: " in block for name in LoginConfig.__struct_fields__)
