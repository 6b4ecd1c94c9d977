"""`gateway users`: passwords, invitations and the end of log-ins."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.gateway.test_cli import Run, clean_place, run

__all__ = ["clean_place", "run"]
PASSWORD = "correct horse battery"


@pytest.fixture
def org(run: Run) -> str:
    return str(json.loads(run("orgs", "create", "Acme", "--json").out)["id"])


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_password_is_set_and_taken(run: Run, org: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("users", "create", "bob@example.test", "--org", org).code == 0
    typed(monkeypatch, f"{PASSWORD}\n")
    done = run("users", "password", "bob@example.test")
    assert done.code == 0 and "has a new password" in done.out and PASSWORD not in done.out
    typed(monkeypatch, "short\n")
    refused = run("users", "password", "bob@example.test")
    told = "gateway: Invalid value for 'password': expected 12 to 256 characters\n"
    assert (refused.code, refused.err) == (1, told)
    gone = json.loads(run("users", "password", "bob@example.test", "--remove", "--json").out)
    assert gone["has_password"] is False
    assert json.loads(run("users", "logout", "bob@example.test", "--json").out)["ended"] == 0
    log = run("audit", "list").out
    assert log.count("user.password") == 2 and PASSWORD not in log


def test_somebody_is_invited_and_uninvited(run: Run, org: str) -> None:
    invited = run("users", "invite", "Carol@example.test", "--org", org, "--role", "admin")
    assert invited.code == 0 and invited.out.startswith("invite_")
    assert "carol@example.test" in invited.err and "auth.people.signup is off" in invited.err
    (shown,) = json.loads(run("users", "invitations", org, "--json").out)
    assert (shown["email"], shown["role"], shown["inviter"]) == ("carol@example.test", "admin", "cli")
    assert shown["id"] in run("users", "invitations", org).out
    assert run("users", "withdraw", shown["id"]).code == 0
    assert json.loads(run("users", "invitations", org, "--json").out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["password", "nobody@example.test", "--remove"], "there is no user nobody@example.test"),
        (["logout", "user_none"], "there is no user user_none"),
        (["invite", "nothing", "--org", "{org}"], "no e-mail address"),
        (["invite", "a@example.test", "--org", "org_none"], "there is no org org_none"),
        (["withdraw", "none"], "there is no open invitation none"),
    ],
)
def test_what_is_refused(run: Run, org: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("users", *(argument.format(org=org) for argument in arguments))
    assert result.code == 1 and message in result.err and len(result.err.splitlines()) == 1
