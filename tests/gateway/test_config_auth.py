"""What an operator can get wrong about issuers, and how it is said."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError, load
from gateway.config_auth import IssuerConfig, url_problem

ROOT = Path(__file__).parents[2]
GOOD = {"name": "corp", "issuer": "https://id.example.com", "audience": "inference"}


def configured(*issuers: dict[str, Any], **auth: Any) -> Config:
    return load(
        None, {"XDG_DATA_HOME": ""}, {"auth.issuers": list(issuers)} | {f"auth.{k}": v for k, v in auth.items()}
    )


def test_an_issuer_needs_a_name_an_address_and_an_audience() -> None:
    (issuer,) = configured(GOOD).auth.issuers
    assert issuer == IssuerConfig(name="corp", issuer="https://id.example.com", audience="inference")
    assert issuer.admin_roles == ()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "a b"}, "issuers[0].name: a name has 1 to 32"),
        ({"name": "jwt"}, "issuers[0].name: a name has 1 to 32"),
        ({"issuer": "http://id.example.com"}, "issuers[0].issuer: expected https://"),
        ({"issuer": "id.example.com"}, "issuers[0].issuer: expected a URL"),
        ({"issuer": "corp", "jwks_url": "http://keys.example.com"}, "issuers[0].jwks_url: expected https://"),
        ({"algorithms": ["HS256"]}, "issuers[0].algorithms[0]: expected one of"),
        ({"algorithms": ["none"]}, "issuers[0].algorithms[0]: expected one of"),
        ({"algorithms": []}, "issuers[0].algorithms: at least one"),
        ({"tenant": "a", "tenant_claim": "org"}, "issuers[0].tenant_claim: tenant is set already"),
        ({"tenant": "*"}, "issuers[0].tenant: a tenant has"),
        ({"tenant_prefix": "a:"}, "issuers[0].tenant_prefix: it goes before a tenant_claim"),
        ({"tenant_prefix": "a b", "tenant_claim": "org"}, "issuers[0].tenant_prefix: it goes before"),
        ({"leeway_s": 301}, "issuers[0].leeway_s: expected number at least 0 and at most 300"),
        ({"secret": "x"}, "issuers[0].secret: no such setting"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(GOOD | changes)
    assert problem in str(caught.value)


def test_issuers_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="already taken"):
        configured(GOOD, GOOD | {"issuer": "https://b.example"})
    with pytest.raises(ConfigError, match="this issuer is there already"):
        configured(GOOD, GOOD | {"name": "b"})


def test_an_admin_key_must_not_look_like_a_token() -> None:
    secret = "admin.key.0123456789"
    assert configured(admin_key=secret).auth.admin_key is not None
    with pytest.raises(ConfigError, match="two dots"):
        configured(GOOD, admin_key=secret)


def test_an_issuer_that_is_no_url_has_a_jwks_url() -> None:
    assert (
        configured(GOOD | {"issuer": "accounts", "jwks_url": "http://[::1]:8/keys"}).auth.issuers[0].issuer
        == "accounts"
    )


@pytest.mark.parametrize(
    "url",
    ["", "https://", "https://a@b/", "https://[", "ftp://127.0.0.1/", "http://127.0.0.1.evil.example/", "https://a/#f"],
)
def test_an_unsafe_url(url: str) -> None:
    assert url_problem(url)


def test_the_example_of_an_issuer_holds_every_setting_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "config.example.yaml").read_text()
    start = text.index("  #   - name: corp\n")
    block = text[start : text.index("  issuers: []", start)].replace("  #   ", "")
    path = tmp_path / "config.yaml"
    path.write_text("auth:\n  issuers:\n" + textwrap.indent(block, "    "))
    (issuer,) = load(path, {}, {}).auth.issuers
    assert issuer == configured(GOOD).auth.issuers[0]
    assert all(f"{name}: " in block for name in IssuerConfig.__struct_fields__)
