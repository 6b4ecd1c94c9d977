"""Several processes that serve one port: a parent that watches, one process with the engines, and those that answer.

The parent forks before it has a loop or a thread, so a child begins with everything imported and a clean slate. A child
that dies is started again, later each time; when the parent dies, its children see the end of a pipe and stop.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.ledger.refused import refused_in
from gateway.state.journal import Journal
from gateway.state.outbox import holds_records

RESTART_S = 0.1
RESTART_S_MAX = 10.0
# A child that lived so long has earned to be started again at once.
STEADY_S = 60.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
SOCKET_NAME = "engine.sock"
OUTBOX_NAME = "outbox"
JOURNAL_NAME = "running.journal"


class Station(msgspec.Struct, frozen=True):
    """A process's place among others: its `number`, where the engines are, and the descriptor that ends with the
    parent. `first` is the one that speaks to whoever started the gateway."""

    number: int
    socket: Path
    lifeline: int
    first: bool


class Child(msgspec.Struct):
    """A process that is to be there; `pid` 0 while it is not."""

    name: str
    run: Callable[[bool], int]
    pid: int = 0
    started_s: float = 0.0
    wait_s: float = RESTART_S
    due_s: float = 0.0
    starts: int = 0


class Roles(msgspec.Struct, frozen=True):
    """What the processes do; `engine` and `answer` return exit codes.

    `answer` calls what it is given once it serves: the first one makes what the others find, so they wait for it.
    `stop` is called in the parent when all are to end.
    """

    engine: Callable[[Path, int], int]
    answer: Callable[[Station, Callable[[], None]], int]
    stop: Callable[[], None]


def supervise(count: int, roles: Roles) -> int:
    """Run one process with the engines and `count` that answer, until a signal ends them all; the exit code.

    It returns in each of these processes too, with the exit code of what that did.
    """
    parent, folder = os.getpid(), tempfile.mkdtemp(prefix="gateway-")  # Its permissions are 0700.
    try:
        return _Parent(count, roles, Path(folder) / SOCKET_NAME).run()
    finally:
        if os.getpid() == parent:
            shutil.rmtree(folder, ignore_errors=True)


class _Parent:
    """The process that watches. It does nothing between two events, and everything at an event without waiting."""

    def __init__(self, count: int, roles: Roles, socket: Path) -> None:
        lifeline, self._held = os.pipe()
        self._ready, self._serving = os.pipe()
        self._stop = roles.stop

        def worker(number: int) -> Callable[[bool], int]:
            def run(first: bool) -> int:
                station = Station(number, socket, lifeline, first and number == 0)
                return roles.answer(station, self._say_ready)

            return run

        self._engine = Child("engine", lambda _: roles.engine(socket, lifeline))
        self._workers = [Child(f"worker {number}", worker(number)) for number in range(count)]
        self._stopping = False
        self._open = False

    def _say_ready(self) -> None:
        os.write(self._serving, b"1")

    def run(self) -> int:
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        failed = False
        while True:
            if (child := self._start_due()) is not None:
                return child.run(child.starts == 0)
            if self._stopping and not any(child.pid for child in (self._engine, *self._workers)):
                return int(failed)
            for reader in select.select([wake, self._ready], [], [], self._wait_s())[0]:
                if reader == self._ready:
                    os.read(self._ready, 4096)
                    self._open = True
                else:
                    self._signalled(os.read(wake, 4096))
            failed = self._reap() or failed

    def _wait_s(self) -> float | None:
        due = [child.due_s for child in self._wanted() if not child.pid]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _wanted(self) -> list[Child]:
        """Who is to be there now: nobody new once it is to end, and at first one that answers."""
        if self._stopping:
            return []
        return [self._engine, *(self._workers if self._open else self._workers[:1])]

    def _start_due(self) -> Child | None:
        """Start who is missing. In the new process, which one it is."""
        now_s = time.monotonic()
        for child in self._wanted():
            if not child.pid and child.due_s <= now_s and self._fork(child):
                return child
        return None

    def _fork(self, child: Child) -> bool:
        """Whether this is the new process."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(self._held)
            # What a terminal tells all processes in its foreground is for the parent to pass on, once.
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            return True
        child.pid, child.started_s = pid, time.monotonic()
        child.starts += 1
        return False

    def _signalled(self, numbers: bytes) -> None:
        """Pass a wish to end on to those that answer; the engines go when nobody needs them any more."""
        if set(numbers) <= {signal.SIGCHLD}:
            return
        self._end(self._workers)
        if not any(child.pid for child in self._workers):
            self._kill([self._engine])

    def _end(self, children: list[Child]) -> None:
        self._stopping = True
        self._stop()
        self._kill(children)

    def _kill(self, children: list[Child]) -> None:
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)

    def _reap(self) -> bool:
        """Take note of children that ended; whether one failed that was to end well, or that never can begin."""
        failed = False
        for child in (self._engine, *self._workers):
            if not child.pid or os.waitpid(child.pid, os.WNOHANG)[0] == 0:
                continue
            child.pid, lived_s = 0, time.monotonic() - child.started_s
            if self._stopping:
                if not any(one.pid for one in self._workers):
                    self._kill([self._engine])
                continue
            if child is self._workers[0] and not self._open:
                # What keeps the first one from starting keeps all of them.
                failed = True
                self._end([self._engine])
                continue
            child.wait_s = RESTART_S if lived_s >= STEADY_S else min(2 * child.wait_s, RESTART_S_MAX)
            child.due_s = time.monotonic() + child.wait_s
            print(f"gateway: {child.name} ended and is started again in {child.wait_s:g} s", file=sys.stderr)
        return failed


def outbox_of(data_dir: Path, number: int) -> Path:
    """Where the process of this number keeps what the database cannot take: each has a folder of its own."""
    return data_dir / (f"{OUTBOX_NAME}-{number}" if number else OUTBOX_NAME)


def left_behind(data_dir: Path, count: int) -> int | None:
    """How many processes it takes until what earlier ones left on the disk is written; None when `count` will do."""
    numbers = [int(path.name.rpartition("-")[2]) for path in data_dir.glob(f"{OUTBOX_NAME}-[0-9]*")]
    needed = [number + 1 for number in numbers if number >= count and _holds_something(outbox_of(data_dir, number))]
    return max(needed, default=None)


def _holds_something(folder: Path) -> bool:
    entries = holds_records(folder) or holds_records(refused_in(folder))
    return entries or bool(Journal(folder / JOURNAL_NAME).left)
