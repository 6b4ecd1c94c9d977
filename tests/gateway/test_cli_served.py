"""The verbs about providers and routes, beside a gateway that may be running."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.test_cli import Run

CONFIG = """
models: []
providers: [{name: house, kind: vllm, base_url: "http://house/v1"}]
routes: [{name: chat, groups: [[{provider: house, model: m}]]}]
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "state"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


def test_a_route_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "route.yaml").write_text("name: gpt\ngroups:\n  - - {provider: far, model: gpt-4o}\n")
    assert run("routes", "create", "route.yaml").err.startswith("gateway: There is no provider 'far'")
    assert run("providers", "create", '{"name": "far", "kind": "openai"}').code == 0
    assert run("routes", "create", "route.yaml").code == 0
    listed = run("routes", "list").out.splitlines()
    assert listed[0].split() == ["NAME", "POLICY", "TARGETS", "SOURCE", "PROBLEM"]
    assert listed[2].split() == ["gpt", "weighted", "gpt-4o", "of", "far", "api"]
    changed = run("routes", "set", "gpt", "{policy: priority}", "--json")
    assert json.loads(changed.out)["version"] == 2
    assert "priority" in run("routes", "show", "gpt").out
    assert run("routes", "delete", "gpt").out == "The route gpt is no longer served.\n"
    audit = run("audit", "list").out
    assert all(action in audit for action in ("provider.create", "route.create", "route.change", "route.delete"))


def test_prices_may_be_numbers_as_in_the_configuration(run: Run) -> None:
    target = "groups: [[{{provider: house, model: m, price: {{input: {}, output: 1}}}}]]"
    run("routes", "create", f"{{name: made, {target.format('0.150')}}}")
    assert '"price":{"input":"0.15","output":"1"' in run("routes", "show", "made").out
    assert run("routes", "set", "made", f"{{{target.format('0.001')}}}").code == 0
    assert '"price":{"input":"0.001","output":"1"' in run("routes", "show", "made").out
    assert run("prices", "set", "house/other", "{input: 0.1, output: yes}").code == 1
    assert run("prices", "set", "house/other", "{input: 0.1}").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("routes", "create", "{name: chat, groups: [[{provider: house, model: m}]]}"),
            '"chat" is already taken (name)',
        ),
        (("routes", "create", "{name: new, groups: []}"), "these settings cannot be"),
        (("routes", "create", "{name: new, unknown: 1, groups: []}"), "these settings cannot be"),
        (("routes", "create", "{name: [}"), "line 1 of the settings"),
        (("routes", "create", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("routes", "set", "chat", "{policy: random}"), "is part of the configuration"),
        (("routes", "set", "chat", "{}"), "say what to change"),
        (("routes", "delete", "none"), "there is no route none"),
        (("routes", "show", "none"), "there is no route none"),
        (("routes", "set", "made", "{policy: quick}"), "expected one of cheapest, fastest, least_busy"),
        (("providers", "create", "{name: x, kind: vllm}"), "'base_url' is missing: a provider of kind vllm"),
        (("providers", "create", "{name: x, kind: openai, api_key: sk-1}"), "by `gateway providers secret NAME`"),
        (("providers", "delete", "house"), "is part of the configuration"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.code == 1 and message in result.err and result.err.count("\n") == 1, result.err


def test_a_secret_from_a_pipe(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("providers", "create", "{name: far, kind: openai}")
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-from-a-pipe\n"))
    result = run("providers", "secret", "far", "--json")
    secret = json.loads(result.out)["secret"]
    assert secret["set_by"] == "cli" and secret["usable"] and "sk-from" not in result.out
    assert run("rotate-secrets").out == "1 secrets are encrypted with a new key.\n"
    assert json.loads(run("providers", "show", "far", "--json").out)["secret"]["usable"]
    assert "ok    made at run time: 1 providers" in run("doctor").out
    (tmp_path / "state" / "secrets.key").unlink()
    assert "fail  provider far: its secret cannot be read" in run("doctor").out
    lost = run("rotate-secrets")
    assert lost.code == 1 and "The secret of far could not be read" in lost.err
    assert json.loads(run("providers", "secret", "far", "--remove", "--json").out)["secret"] is None


def test_prices_and_where_they_come_from(run: Run) -> None:
    run("providers", "create", "{name: far, kind: openai}")
    run("routes", "create", "{name: gpt, groups: [[{provider: far, model: gpt-4o-2024-11-20}]]}")
    (_, line) = run("prices", "list").out.splitlines()
    assert line.split() == ["gpt", "far/gpt-4o-2024-11-20", "2.5", "1.25", "10.0", "table", "2025-07-04"]
    told = run("prices", "set", "far/gpt-4o-2024-11-20", "{input: '3', output: '4'}").out
    assert told == "far/gpt-4o-2024-11-20 costs 3 per million tokens of input and 4 of output.\n"
    assert run("prices", "list").out.splitlines()[1].split()[2:] == ["3.0", "3.0", "4.0", "api"]
    assert run("prices", "delete", "far/gpt-4o-2024-11-20").code == 0
    assert run("prices", "set", "gpt-4o", "{input: '3'}").err.startswith("gateway: a price is for PROVIDER/MODEL")
    known = run("prices", "known").out
    assert "claude-haiku-4-5" in known and "https://" in known
    assert json.loads(run("prices", "known", "--json").out)["version"].startswith("known-")
