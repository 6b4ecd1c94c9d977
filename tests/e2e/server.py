"""A real gateway in a process of its own, for tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).parents[2]
START_S_MAX = 60
STOP_S_MAX = 40
ADMIN_KEY = "test-admin-key-0123456789"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`with Server(data_dir, ...) as server:` starts `gateway serve`, waits until it is ready, and stops it by SIGTERM.

    Ready means that every model was tried and one of them serves.

    `config` is YAML text; `arguments` go to `serve`; `ready` False returns as soon as the socket answers.
    """

    def __init__(self, data_dir: Path, *arguments: str, config: str = "", ready: bool = True, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = data_dir
        self.log = data_dir / "server.log"
        data_dir.mkdir(parents=True, exist_ok=True)
        (data_dir / "config.yaml").write_text(config or "{}\n")
        self._command = [sys.executable, "-m", "gateway", "serve", *arguments, "--port", str(self.port)]
        self._command += ["--data-dir", str(data_dir / "state"), "--config", str(data_dir / "config.yaml")]
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(data_dir), "GATEWAY_ADMIN_KEY": ADMIN_KEY} | environ
        self._ready = ready

    def __enter__(self) -> Server:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environ, stdout=log, stderr=log)
        path = "/health/ready" if self._ready else "/health/live"
        deadline = time.monotonic() + START_S_MAX
        while True:
            try:
                answer = httpx.get(self.url + path)
                states = {model["state"] for model in answer.json().get("models", {}).values()}
                if answer.status_code == 200 and not (self._ready and states & {"stopped", "loading"}):
                    return self
            except httpx.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the gateway did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.stop() == 0, self.log.read_text()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def client(self, key: str = ADMIN_KEY, timeout_s: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples whose labels include `labels`."""
        text = httpx.get(self.url + "/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).text
        total = 0.0
        for line in text.splitlines():
            found = re.match(rf"{name}(?:\{{(.*)\}})? (\S+)$", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def workers(self) -> list[int]:
        """Process ids of the engine workers; one may end while they are looked at."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        workers = []
        for pid in children:
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"llama_cpp.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    workers.append(int(pid))
        return workers
