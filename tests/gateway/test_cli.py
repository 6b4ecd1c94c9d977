"""The command line: what each verb prints, its exit codes, and that a mistake is one line and not a traceback."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway import cli, command, config
from gateway.auth.key_text import key_id, load_pepper
from gateway.auth.keys import Keys
from gateway.state.sqlite import open_sqlite

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory to work in, an environment without settings, state of its own."""
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield


class Result:
    """How a command ended and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


class Run:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *self._capsys.readouterr())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


def test_every_verb_explains_itself(run: Run) -> None:
    overview = run("--help").out
    for verb in ("serve", "check", "doctor", "keys", "models", "sessions", "chat", "bench"):
        assert verb in overview
        assert run(verb, "--help").out.startswith(f"usage: gateway {verb}")
    for verb in ("create", "list", "revoke"):
        assert run("keys", verb, "--help").code == 0
    assert run("--version").out == "gateway 0.1.0\n"
    assert run().code == 2
    for wrong in (["check"], ["keys", "list"]):
        refused = run(*wrong, "--colour")
        assert refused.code == 2 and refused.err.startswith(f"usage: gateway {' '.join(wrong)} ")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--config", "none.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gateway: none.yaml: cannot be read: No such file or directory\n"


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, gateway.cli as c; c.parser(); print([m for m in sys.modules if m.partition('.')[0] in %r])"
    heavy = ["msgspec", "httpx", "yaml", "uvicorn", "starlette", "numpy", "aiosqlite", "llama_cpp", "adapters"]
    done = subprocess.run([sys.executable, "-c", script % heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_check(run: Run, tmp_path: Path) -> None:
    result = run("check")
    assert result.code == 0
    assert f"model       demo: {config.demo_model_path()}" in result.out
    assert f"data        {tmp_path}/xdg/gateway" in result.out
    bad = tmp_path / "bad.yaml"
    bad.write_text("server:\n  prot: 1\n")
    result = run("check", "--config", str(bad))
    assert (result.code, result.out) == (1, "")
    assert result.err == f"gateway: {bad}:2: at server.prot: no such setting; did you mean port?\n"
    bad.write_text("models: [{name: a, path: a.gguf}]")
    assert run("check", "--config", str(bad)).err == f"gateway: model a: there is no file {tmp_path}/a.gguf\n"
    (tmp_path / "a.gguf").mkdir()
    assert run("check", "--config", str(bad)).err.endswith("/a.gguf is a folder, not a file\n")
    (tmp_path / "b.gguf").write_text("<html>")
    bad.write_text("models: [{name: b, path: b.gguf}]")
    assert "b.gguf: not usable: it does not begin with GGUF" in run("check", "--config", str(bad)).err


def test_check_reads_the_secret_of_sessions(run: Run, tmp_path: Path) -> None:
    assert "sessions    not encrypted" in run("check").out
    path = tmp_path / "config.yaml"
    path.write_text("sessions: {encryption_key_file: secret}")
    assert run("check", "--config", str(path)).err.startswith("gateway: sessions.encryption_key_file: cannot be read")
    (tmp_path / "secret").write_text("0123456789abcdef")
    result = run("check", "--config", str(path))
    assert "sessions    encrypted" in result.out and "0123456789abcdef" not in result.out


def test_a_config_in_the_working_directory_is_found(run: Run) -> None:
    Path("config.yaml").write_text("server: {port: 4321}")
    assert "127.0.0.1:4321" in run("check").out
    Path("other.yaml").write_text("server: {port: 4322}")
    assert "127.0.0.1:4322" in run("check", "--config", "other.yaml").out


def test_serve_builds_the_configuration(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gateway import app

    served: list[config.Config] = []

    def serve(given: config.Config) -> int:
        served.append(given)
        return 7

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setenv("GATEWAY_PORT", "5000")
    assert run("serve").code == 7
    assert [model.name for model in served[-1].models] == ["demo"]
    assert served[-1].server.port == 5000
    Path("My-Model.Q4_0.gguf").write_bytes(b"")
    arguments = ["--host", "::1", "--port", "5001", "--data-dir", "d", "--no-auth"]
    assert run("serve", "My-Model.Q4_0.gguf", *arguments).code == 7
    (model,) = served[-1].models
    assert (model.name, model.path) == ("My-Model.Q4_0", str(tmp_path / "here" / "My-Model.Q4_0.gguf"))
    assert (served[-1].server.host, served[-1].server.port) == ("::1", 5001)
    assert (served[-1].data_dir, served[-1].auth.enabled) == (str(tmp_path / "here" / "d"), False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf"], "model none: there is no file"),
        (["--no-auth", "--host", "0.0.0.0"], "authentication can be off only on a loopback address, not on 0.0.0.0"),
        (["--port", "70000"], "command line: at server.port: expected int between 1 and 65535, got 70000"),
        (["a/m.gguf", "b/m.gguf"], 'command line: at models[1].name: "m" is already taken by models[0].name'),
    ],
)
def test_serve_refuses(run: Run, arguments: list[str], message: str) -> None:
    result = run("serve", *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("gateway: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_keys_are_created_listed_and_revoked(run: Run) -> None:
    created = run("keys", "create", "laptop")
    text = created.out.strip()
    identity = key_id(text)
    assert identity is not None
    assert f"Key {identity} of tenant {identity}." in created.err
    shared = json.loads(run("keys", "create", "ci", "--tenant", "team", "--admin", "--expires", "30d", "--json").out)
    assert key_id(shared["key"]) == shared["id"]
    assert (shared["tenant"], shared["admin"]) == ("team", True)
    assert abs(shared["expires_us"] / 1e6 - time.time() - 30 * 86_400) < 60
    lines = run("keys", "list").out.splitlines()
    assert lines[0].split()[:5] == ["ID", "NAME", "TENANT", "TEAM", "KIND"]
    assert lines[1].split()[:5] == [identity, "laptop", identity, "service", "active"]
    assert lines[2].split()[:5] == [shared["id"], "ci", "team", "admin", "active"]
    assert run("keys", "revoke", identity, "--reason", "lost").out == f"Key {identity} is revoked.\n"
    # The whole key works as well, for somebody who has nothing else.
    assert json.loads(run("keys", "revoke", shared["key"], "--json").out) == {"id": shared["id"], "revoked": True}
    listed = json.loads(run("keys", "list", "--json").out)
    assert [key["revoked_reason"] for key in listed] == ["lost", ""]
    assert not any("digest" in key or "key" in key for key in listed)
    again = run("keys", "revoke", identity)
    assert (again.code, again.err) == (1, f"gateway: key {identity} has been revoked already\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create", "a\nb"], 1),
        (["create", "a", "--tenant", "b c"], 1),
        (["create", "a", "--expires", "soon"], 2),
        (["create", "a", "--expires", "2001-01-01"], 2),
        (["create"], 2),
        (["revoke", "x'; DROP TABLE keys; --"], 1),
    ],
)
def test_keys_refuse(run: Run, arguments: list[str], code: int) -> None:
    result = run("keys", *arguments)
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err


def test_keys_work_while_a_server_runs(run: Run, tmp_path: Path) -> None:
    data_dir = tmp_path / "xdg" / "gateway"
    run("keys", "list")

    async def serve() -> None:
        database = await open_sqlite(data_dir, serve=True)
        try:
            keys = Keys(database, load_pepper(data_dir))
            created = await asyncio.to_thread(run, "keys", "create", "beside")
            assert (await keys.authenticate(f"Bearer {created.out.strip()}")).name == "beside"
        finally:
            await database.close()

    asyncio.run(serve())


def test_a_key_with_a_budget_comes_with_a_note_of_the_models_it_cannot_use(run: Run) -> None:
    note = "models without a price (price, or `gateway prices set`): "
    assert note + "demo\n" in run("keys", "create", "a", "--budget", "5/day").err
    assert "price" not in run("keys", "create", "b").err
    Path("config.yaml").write_text(f"models: [{{name: demo, path: {config.demo_model_path()}, price: {{input: 0}}}}]")
    assert "price" not in run("keys", "create", "c", "--budget", "5/day").err
    Path("config.yaml").write_text(
        "providers: [{name: house, kind: vllm, base_url: 'http://127.0.0.1:9/v1'}]\n"
        "routes:\n"
        "  - {name: free, groups: [[{provider: house, model: m, price: {input: 0}}]]}\n"
        "  - {name: half, groups: [[{provider: house, model: m, price: {input: 0}}], [{provider: house, model: n}]]}\n"
    )
    assert note + "half\n" in run("keys", "create", "d", "--budget", "5/day").err
    assert "price" not in run("keys", "create", "e", "--budget", "5/day", "--models", "free").err
    run("prices", "set", "house/n", "{input: 0.15}")
    assert "price" not in run("keys", "create", "f", "--budget", "5/day").err


def test_a_list_of_models_comes_with_a_note_of_those_that_are_not_here(run: Run) -> None:
    Path("config.yaml").write_text(
        f"models: [{{name: demo, aliases: [small], path: {config.demo_model_path()}}}]\n"
        "providers: [{name: house, kind: vllm, base_url: 'http://127.0.0.1:9/v1'}]\n"
        "routes: [{name: qwen-large, groups: [[{provider: house, model: m}]]}]"
    )
    run("routes", "create", "{name: made, groups: [[{provider: house, model: m}]]}")
    assert "Note" not in run("keys", "create", "a", "--models", "demo,small,qwen*,made").err
    note = "Note: no model here is called {} so far; "
    made_key = run("keys", "create", "b", "--models", "qwen-larg,demo,x*")
    assert made_key.out.startswith("gw_live_"), "it may come later"
    assert note.format("qwen-larg") + "did you mean qwen-large?" in made_key.err
    assert note.format("x*") + "`gateway models` and `gateway routes list` say what there is" in made_key.err
    assert made_key.err.count("Note") == 2
    assert note.format("nix") in run("keys", "set", made_key.out.strip(), "--models", "nix").err
    assert "Note" not in run("keys", "set", made_key.out.strip(), "--rpm", "5").err
    assert note.format("nix") in run("orgs", "create", "Acme", "--models", "nix").err
    assert note.format("nix") in run("teams", "create", "Acme", "lab", "--models", "nix").err
    assert note.format("nox") in run("teams", "set", "lab", "--models", "nox").err


def test_organisations_and_teams_go_by_their_names_where_these_are_theirs_alone(run: Run) -> None:
    orgs = [made(run, "orgs", "create", name) for name in ("Acme", "Twin", "Twin")]
    team = made(run, "teams", "create", "Acme", "lab")
    made(run, "teams", "create", orgs[1], "lab")
    key = json.loads(run("keys", "create", "ci", "--org", "Acme", "--team", "lab", "--json").out)
    assert (key["org_id"], key["team_id"]) == (orgs[0], team)
    assert run("orgs", "show", "Twin").err == "gateway: several orgs are called Twin; say which by its id\n"
    assert run("teams", "show", "lab").err == "gateway: several teams are called lab; say which by its id\n"
    gone = "gateway: there is no org Other; `gateway orgs list` shows which there are\n"
    assert run("orgs", "show", "Other").err == gone


def made(run: Run, *arguments: str) -> str:
    """The id of what a command makes."""
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    return str(json.loads(result.out)["id"])


def test_organisations_teams_and_people(run: Run) -> None:
    org = made(run, "orgs", "create", "Acme", "--budget", "5/month", "--models", "demo,llama*")
    team = made(run, "teams", "create", org, "lab")
    ada = made(run, "users", "create", "Ada@Example.com", "--org", org, "--role", "owner", "--rpm", "5")
    assert run("teams", "add", "lab", "ada@example.com", "--role", "admin", "--tpm", "9").code == 0
    lines = run("teams", "members", team).out.splitlines()
    assert lines[1].split()[:2] == [ada, "admin"]
    member = json.loads(run("teams", "set-member", team, ada, "--no-limits", "--role", "viewer", "--json").out)
    assert (member["role"], member["limits"], member["version"]) == ("viewer", None, 2)
    shown = run("orgs", "show", org).out
    assert "guardrails" not in shown, "what says nothing is left out"
    assert '["demo","llama*"]' in shown and '"usd":"5"' in shown and "archived" not in shown
    changed = json.loads(run("orgs", "set", org, "--name", "Acme Inc", "--models", "all", "--json").out)
    assert (changed["name"], changed["models"], changed["version"]) == ("Acme Inc", None, 2)
    assert changed["limits"]["budgets"][0]["usd"] == "5", "what is not given stays as it is"
    assert json.loads(run("teams", "archive", team, "--json").out)["archived_us"]
    assert json.loads(run("teams", "restore", team, "--json").out)["archived_us"] is None
    last = run("users", "disable", "ada@example.com")
    assert (last.code, last.err[:30]) == (1, "gateway: The last owner of an ")
    bob = made(run, "users", "create", "bob@example.com", "--org", org)
    assert json.loads(run("users", "disable", bob, "--json").out)["disabled_us"]
    assert [line.split()[2] for line in run("users", "list", "--org", org).out.splitlines()[1:]] == [
        "ada@example.com",
        "bob@example.com",
    ]
    assert run("teams", "remove", team, ada).out == f"{ada} is no longer in {team}.\n"
    assert [len(json.loads(run(group, "list", "--json").out)) for group in ("orgs", "teams", "users")] == [1, 1, 2]
    audited = run("audit", "list").out
    for action in ("org.create", "team.create", "user.create", "member.add", "member.change", "member.remove"):
        assert action in audited


def test_keys_of_organisations(run: Run) -> None:
    org = made(run, "orgs", "create", "Acme")
    team = made(run, "teams", "create", org, "lab")
    options = ["--team", team, "--scopes", "inference,models.read", "--models", "demo", "--addresses", "10.0.0.0/8"]
    options += ["--tags", "batch", "--meta", "owner=ci", "--weight", "2.5", "--priority", "3", "--expires", "30d"]
    key = json.loads(run("keys", "create", "ci", *options, "--json").out)
    assert (key["tenant"], key["team_id"], key["kind"]) == (org, team, "service")
    assert (key["scopes"], key["metadata"], key["weight"]) == (["inference", "models.read"], {"owner": "ci"}, 2.5)
    changed = run("keys", "set", key["key"], "--addresses", "none", "--scopes", "none", "--expires", "never", "--json")
    found = json.loads(changed.out)
    assert (found["addresses"], found["scopes"], found["expires_us"], found["tags"]) == ([], None, None, ["batch"])
    new = json.loads(run("keys", "rotate", key["id"], "--overlap", "1h", "--json").out)
    assert (new["counted_as"], new["tags"]) == (key["id"], ["batch"])
    assert "successor" in run("keys", "show", key["id"]).out
    listed = run("keys", "list", "--team", team).out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == [key["id"], new["id"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["orgs", "show", "org_x"], "there is no org org_x"),
        (["teams", "create", "org_x", "lab"], "there is no org org_x"),
        (["teams", "add", "team_x", "who@example.com"], "there is no user who@example.com"),
        (
            ["users", "create", "who@example.com"],
            "Only an administrator of the gateway can be in no organisation (org)",
        ),
        (["users", "create", "nobody", "--org", "org_x"], "This is no e-mail address (email)"),
        (["keys", "show", "kkkkkkkkkkkk"], "there is no key kkkkkkkkkkkk; `gateway keys list` shows which there are"),
        (["keys", "create", "a", "--team", "team_x"], "there is no team team_x"),
        (["keys", "create", "a", "--scopes", "everything"], "There is no permission 'everything'"),
        (["keys", "create", "a", "--meta", "x"], "metadata is NAME=VALUE, not 'x'"),
        (["keys", "set", "kkkkkkkkkkkk"], "say what to change"),
        (["orgs", "set", "org_x"], "say what to change"),
    ],
)
def test_mistakes_about_people_are_one_line(run: Run, arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"gateway: {says}") and result.err.count("\n") == 1


def test_expiry_dates() -> None:
    assert command.expiry_us("2100-01-01") == 4_102_444_800_000_000
    assert command.expiry_us("2100-01-01T01:00:00+01:00") == 4_102_444_800_000_000
    for text in ("", "d", "30", "-1d", "30 d", "9999999d"):
        with pytest.raises(argparse.ArgumentTypeError):
            command.expiry_us(text)


def test_models(run: Run) -> None:
    result = run("models")
    assert result.code == 0
    header, row = result.out.splitlines()
    assert header.split() == ["NAME", "ARCHITECTURE", "PARAMETERS", "QUANTISATION", "CONTEXT", "SIZE", "FILE"]
    assert row.split()[:2] == ["demo", "llama"]
    assert json.loads(run("models", "--json").out)[0]["path"] == config.demo_model_path()
    Path("bad.gguf").write_bytes(b"zip")
    Path("config.yaml").write_text("models: [{name: bad, path: bad.gguf}]")
    result = run("models")
    assert result.code == 1
    assert "bad.gguf (not usable: " in result.out


def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import doctor

    good, bad = doctor.Check("ok", "first", "well"), doctor.Check("fail", "second", "unwell")
    monkeypatch.setattr(doctor, "examine", lambda _, online: iter([good]))
    result = run("doctor")
    assert (result.code, result.out) == (0, "ok    config: valid\nok    first: well\n")
    monkeypatch.setattr(doctor, "examine", lambda _, online: iter([bad, good]))
    assert run("doctor").code == 1
    Path("config.yaml").write_text("x: 1")
    result = run("doctor")
    assert result.code == 1
    assert result.out.startswith("fail  config: config.yaml:1: at x: no such setting")


@pytest.mark.parametrize("verb", [["chat"], ["models", "--url", "http://127.0.0.1:9"], ["bench"]])
def test_without_a_server(run: Run, monkeypatch: pytest.MonkeyPatch, verb: list[str]) -> None:
    monkeypatch.setenv("GATEWAY_URL", "http://127.0.0.1:9")
    result = run(*verb)
    assert (result.code, result.out) == (1, "")
    assert result.err == "gateway: no server answers at http://127.0.0.1:9/v1/models; start one with `gateway serve`\n"


def test_bench_passes_its_options_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import bench, bench_report

    seen: list[tuple[bench.BenchOptions, bench.Endpoint | None]] = []

    def report(endpoint: bench.Endpoint) -> bench_report.BenchReport:
        return bench_report.summarise(endpoint.url, endpoint.model, [])

    async def fake_run(options: bench.BenchOptions, transport: httpx.AsyncBaseTransport | None = None) -> object:
        seen.append((options, None))
        return report(options.endpoint)

    async def fake_compare(options: bench.BenchOptions, other: bench.Endpoint) -> object:
        seen.append((options, other))
        return bench_report.BenchComparison(first=(report(options.endpoint),), second=(report(other),), ratios=())

    monkeypatch.setattr(bench, "run", fake_run)
    monkeypatch.setattr(bench, "compare", fake_compare)
    endpoint = bench.Endpoint(url="http://a", model="m", api_key="k")
    common = ["bench", "--url", "http://a", "--model", "m", "--key", "k"]
    assert run(*common).code == 1, "nothing succeeded"
    assert seen[-1][0] == bench.BenchOptions(endpoint=endpoint)
    run("bench", "http://a", "--model", "m", "--key", "k")
    assert seen[-1][0] == bench.BenchOptions(endpoint=endpoint)
    result = run(
        *common, "--json", "--rate", "2.5", "--timeout", "9", "--duration", "8", "--requests", "7", "--warmup", "0"
    )
    assert json.loads(result.out)["url"] == "http://a"
    options = seen[-1][0]
    assert (options.rate_per_s, options.timeout_s, options.duration_s, options.requests) == (2.5, 9, 8, 7)
    assert options.warmup_requests == 0
    run(*common, "--compare", "http://b", "--shared-prefix", "5", "--prompt-words", "6", "--repetitions", "2")
    options, other = seen[-1]
    assert other == bench.Endpoint(url="http://b", model="m")
    assert (options.shared_prefix_tokens, options.prompt_words, options.repetitions) == (5, 6, 2)
    assert run(*common, "--requests", "0").code == 2


def test_every_option_of_the_bench_can_be_given() -> None:
    from gateway.bench import BenchOptions

    parsed = vars(cli.parser().parse_args(["bench"]))
    assert set(BenchOptions.__struct_fields__) - {"endpoint"} <= set(parsed)


def test_interrupts_and_closed_pipes_are_no_tracebacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import doctor

    def interrupted(_: object, online: bool) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert run("doctor").code == 130
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "models"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_bug_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway import doctor

    def broken(_: object, online: bool) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(ZeroDivisionError):
        run("doctor")
