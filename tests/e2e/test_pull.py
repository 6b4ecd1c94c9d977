"""`gateway pull` from a hub on loopback: killed in the middle, gone on with, served."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.hub import TOKEN, Hub

DEMO = (ROOT / "adapters/llama_cpp/demo/demo.gguf").read_bytes()
NAME = "org/model:Q8_0"
COLUMNS = 100


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

    def pull(self, *arguments: str, terminal: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", "pull", *arguments, "--config", str(self.home / "config.yaml")],
            cwd=ROOT,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if terminal is None else terminal,
            text=True,
        )


class Screen:
    """A command on a terminal of its own, and what it has drawn there."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, COLUMNS))
        self.process = shell.pull(*arguments, terminal=theirs)
        os.close(theirs)
        self._drawn = ""

    def until(self, text: str) -> str:
        """What was drawn up to now, when this is a part of it."""
        while text not in self._drawn:
            assert self._read(), self._drawn
        return self._drawn

    def end(self) -> str:
        """All that was drawn, when the command has ended."""
        while self._read():
            pass
        os.close(self._ours)
        self.process.communicate(timeout=60)
        return self._drawn

    def _read(self) -> bool:
        assert select.select([self._ours], [], [], 60)[0], self._drawn
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # Nobody has the other end any more.
            return False
        self._drawn += data.decode()
        return bool(data)


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


def test_a_server_beside_it_sees_it_come(hub: Hub, tmp_path: Path) -> None:
    shell = Shell(hub, tmp_path)
    hub.bytes_per_piece = 1_000_000
    with Server(tmp_path / "server", config=(tmp_path / "config.yaml").read_text(), ready=False) as server:

        def known() -> list[tuple[str, str, int | None]]:
            with server.client() as client:
                files = client.get("/admin/v1/library/files?q=demo").json()["data"]
            return [(file["name"], file["status"], file["done_bytes"]) for file in files]

        hub.paced.clear()
        process = shell.pull(NAME, "--data-dir", str(server.data_dir / "state"))
        deadline = time.monotonic() + 30
        while known() != [("demo-Q8_0.gguf", "downloading", 1_000_000)]:
            assert time.monotonic() < deadline, known()
            time.sleep(0.05)
        hub.paced.set()
        out, err = process.communicate(timeout=60)
        assert Path(out.strip()).read_bytes() == DEMO, err
        assert known() == [("demo-Q8_0.gguf", "ready", None)]


def test_the_bar_of_a_terminal_goes_on_where_it_was_killed(hub: Hub, tmp_path: Path) -> None:
    shell, half = Shell(hub, tmp_path), -(-len(DEMO) // 2)
    hub.bytes_per_piece = half
    hub.paced.clear()
    first = Screen(shell, NAME)
    before = first.until("]  50%")
    assert f"{half / 1e6:.1f} of {len(DEMO) / 1e6:.1f} MB" in before
    first.process.kill()
    first.end()
    hub.bytes_per_piece = half // 2
    second = Screen(shell, NAME)
    second.until("]  75%")
    hub.paced.set()
    drawn = second.end().split("\r")
    shares = [int(found[1]) for line in drawn if (found := re.search(r"\] +(\d+)%", line))]
    assert shares[0] >= 50 and shares == sorted(shares) and shares[-1] == 100
    lines = [line.partition("\x1b[K")[0] for line in drawn]
    assert max(map(len, lines)) < COLUMNS and drawn[-1].endswith("\n"), drawn


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
