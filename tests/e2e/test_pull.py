"""`gateway pull` from a hub on loopback: killed in the middle, gone on with, served."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.hub import TOKEN, Hub

DEMO = (ROOT / "adapters/llama_cpp/demo/demo.gguf").read_bytes()
NAME = "org/model:Q8_0"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({"README.md": b"# model", "demo-Q8_0.gguf": DEMO}) as running:
        yield running


class Shell:
    """A home with a configuration that names the hub."""

    def __init__(self, hub: Hub, home: Path, settings: str = "") -> None:
        self.home = home
        (home / "config.yaml").write_text(f'library:\n  endpoint: "{hub.endpoint}"\n{settings}')
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf")}

    def pull(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", "pull", *arguments, "--config", str(self.home / "config.yaml")],
            cwd=ROOT,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def half_way(home: Path) -> None:
    deadline = time.monotonic() + 30
    while not [path for path in home.rglob("*.incomplete") if path.stat().st_size]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_in_the_middle_and_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    shell = Shell(hub, tmp_path)
    hub.bytes_per_piece = len(DEMO) // 2
    hub.paced.clear()
    first = shell.pull(NAME)
    half_way(tmp_path)
    first.kill()
    first.communicate()
    (part,) = tmp_path.rglob("*.incomplete")
    kept = part.stat().st_size
    hub.paced.set()
    hub.served_bytes = 0
    out, err = shell.pull(NAME).communicate(timeout=60)
    path = Path(out.strip())
    assert path.read_bytes() == DEMO, err
    assert hub.served_bytes == len(DEMO) - kept
    assert "100%" in err
    assert not list(tmp_path.rglob("*.incomplete"))
    with Server(tmp_path / "server", str(path)) as server:
        answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {ADMIN_KEY}"})
        assert [model["id"] for model in answer.json()["data"]] == ["demo-Q8_0"]


def test_a_signal_stops_it_and_the_same_command_goes_on(hub: Hub, tmp_path: Path) -> None:
    shell = Shell(hub, tmp_path)
    hub.bytes_per_piece = 100_000
    hub.paced.clear()
    first = shell.pull(NAME)
    half_way(tmp_path)
    first.send_signal(signal.SIGINT)
    hub.paced.set()
    _, err = first.communicate(timeout=60)
    assert (first.returncode, "goes on from here" in err) == (130, True), err
    second = shell.pull(NAME)
    assert Path(second.communicate(timeout=60)[0].strip()).read_bytes() == DEMO


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("org/model:Q4_0", "", "no Q4_0; there is Q8_0"),
        ("org/other", "", "no org/other"),
        ("not a name", "", "expected owner/repo"),
        (NAME, "  offline: true\n", "offline"),
        (NAME, "  token_file: nothing\n", "cannot be read"),
    ],
)
def test_what_goes_wrong_is_one_line(hub: Hub, tmp_path: Path, name: str, settings: str, word: str) -> None:
    command = Shell(hub, tmp_path, settings).pull(name)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (1, "")
    assert word in err
    assert "Traceback" not in err


def test_gated_with_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    (tmp_path / "token").write_text(TOKEN + "\n")
    command = Shell(hub, tmp_path, f"  token_file: {tmp_path / 'token'}\n").pull(NAME)
    out, err = command.communicate(timeout=60)
    assert Path(out.strip()).is_file(), err
    assert TOKEN not in err
