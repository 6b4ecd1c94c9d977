"""The documentation is complete: every route, metric, command and environment variable is in it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from adapters.llama_cpp import tools
from gateway import cli
from gateway.api import mount
from gateway.auth.roles import TABLE
from gateway.telemetry import METRICS
from tests.gateway.parts import parts

ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "gateway/docs").glob("*.md")))}
TEXT = "".join(PAGES.values())


def endpoints() -> list[str]:
    routes = mount.routes(parts())
    return [f"{route.method} {re.sub(':path|:text', '', route.path)}" for route in routes]


def missing(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if text not in TEXT]


def test_every_route_is_documented_and_none_that_is_gone() -> None:
    documented = re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /\S*)`", TEXT)
    assert sorted(documented) == sorted(endpoints())


def test_every_metric_is_documented() -> None:
    assert not missing(f"`{metric.name}`" for metric in METRICS)


def test_every_command_is_documented() -> None:
    (commands,) = [one.choices for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction)]
    assert not missing(f"`gateway {command}" for command in commands)


def anchors(page: Path) -> set[str]:
    """What headings of a page are linked by."""
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGES[page], re.M)
    }


def test_links_lead_somewhere() -> None:
    wrong = []
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
            there = (page.parent / target).resolve() if target else page
            if not there.exists() or (anchor and anchor not in anchors(there)):
                wrong.append(f"{page.name}: {target}#{anchor}")
    assert not wrong


def test_every_tool_format_is_documented() -> None:
    assert not missing(f"`{name}`" for name in tools.NAMES)


def test_every_permission_is_documented_with_who_has_it() -> None:
    assert not missing(f"| `{name}` | {rule.about} | {who(rule.who)} |" for name, rule in TABLE.items())


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
