"""Server processes for benches: started on chosen cores, waited for, and stopped with all their children."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05


class ServerError(Exception):
    """A server ended or stayed silent instead of becoming ready; the message ends with its last output."""


def free_port() -> int:
    """A loopback TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def split_cores(server_cores: int) -> tuple[frozenset[int], frozenset[int]]:
    """The first `server_cores` usable cores for servers, the others for the load generator (all, if none are left)."""
    usable = sorted(os.sched_getaffinity(0))
    return frozenset(usable[:server_cores]), frozenset(usable[server_cores:] or usable)


@contextlib.contextmanager
def machine_to_itself(lock_file: Path) -> Iterator[None]:
    """Wait until no other bench runs: two at once on the same cores measure nothing but each other."""
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another bench is running; waiting for its end", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def server_process(
    command: Sequence[str], health_url: str, log: Path, cpus: Collection[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` on `cpus` until the block ends, which begins when `health_url` answers 200; output goes to `log`.

    The command leads its own process group, and the whole group is stopped.
    """
    own = os.sched_getaffinity(0)
    with log.open("wb") as output:
        os.sched_setaffinity(0, cpus or own)  # Children inherit the cores of the thread that starts them.
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        finally:
            os.sched_setaffinity(0, own)
    try:
        _wait_until_ready(process, health_url, log)
        yield process
    finally:
        _stop_group(process)


def _wait_until_ready(process: subprocess.Popen[bytes], health_url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"{process.args!r} ended with {process.returncode}:\n{last_lines(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(health_url, timeout=5):
            return
        time.sleep(_POLL_S)
    raise ServerError(f"{process.args!r} was not ready after {START_TIMEOUT_S:.0f} s:\n{last_lines(log)}")


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: Path, count: int = 20) -> str:
    """The end of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
