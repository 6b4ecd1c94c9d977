"""The documentation is complete: every route, metric, command and environment variable is in it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from adapters.llama_cpp import tools
from gateway import cli
from gateway.api import mount
from gateway.auth.roles import TABLE
from gateway.telemetry import METRICS
from tests.gateway.parts import parts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def endpoints() -> list[str]:
    routes = mount.routes(parts())
    return [f"{route.method} {re.sub(':path|:text', '', route.path)}" for route in routes]


@pytest.mark.parametrize("endpoint", endpoints())
def test_every_route_is_documented(endpoint: str) -> None:
    assert f"`{endpoint}`" in README


def test_no_documented_route_is_gone() -> None:
    documented = re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /\S*)`", README)
    assert sorted(documented) == sorted(endpoints())


@pytest.mark.parametrize("metric", [metric.name for metric in METRICS])
def test_every_metric_is_documented(metric: str) -> None:
    assert f"`{metric}`" in README


def commands() -> list[str]:
    parser = cli.parser()
    (choices,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(choices)


@pytest.mark.parametrize("command", commands())
def test_every_command_is_documented(command: str) -> None:
    assert f"`gateway {command}" in README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("name", tools.NAMES)
def test_every_tool_format_is_documented(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("permission", TABLE)
def test_every_permission_is_documented_with_who_has_it(permission: str) -> None:
    rule = TABLE[permission]
    assert f"| `{permission}` | {rule.about} | {who(rule.who)} |" in README


def who(names: frozenset[str]) -> str:
    """Those of a row of the table in words."""
    words = ["keys outside of organisations"] if "plain" in names else []
    if "self" in names:
        words.append("everybody, of his own")
    elif "person" in names:
        words.append("a person, of his own")
    for kind, word in (("org", "organisation"), ("team", "team")):
        roles = [role for role in ("owner", "admin", "member", "viewer") if f"{kind}.{role}" in names]
        if roles:
            words.append(f"{word}: {'all' if len(roles) == 4 else ', '.join(roles)}")
    return "; ".join(words) or "nobody else"
