"""One supervised worker process per loaded model: started, spoken to, restarted when it dies, always reaped."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
import sysconfig
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import msgspec

import adapters
from adapters.errors import AdapterError, ModelLoading, ModelUnavailable
from adapters.llama_cpp.link import LastWords, Link
from adapters.llama_cpp.messages import (
    Busyness,
    Cancelled,
    Command,
    Delta,
    Embedded,
    EngineSettings,
    GrammarCounters,
    Inspected,
    Load,
    LoadFailed,
    ModelInfo,
    Prepared,
    Progress,
    Ready,
    Refused,
    Report,
    Reranked,
    SessionChanged,
    SessionCounters,
    SessionList,
    Step,
)
from adapters.llama_cpp.totals import Totals

logger = logging.getLogger(__name__)

# A worker is never sleeping or pulling: these are what a pool says of a model without a worker.
State = Literal["loading", "ready", "failed", "restarting", "stopped", "sleeping", "pulling"]
Answer = Prepared | Refused | Cancelled | Embedded | Reranked | Inspected | SessionList | SessionChanged

STABLE_AFTER_S = 60.0
RESTART_DELAY_MAX_S = 30.0
RESTARTS_BEFORE_UNAVAILABLE = 5
LOAD_FAILURES_MAX = 3
LOAD_FAILURES_WITHIN_S = 300.0
CRASH_SIGNALS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
LOAD_GUESS_S = 5.0
EXIT_WAIT_S = 5.0
TERMINATE_WAIT_S = 2.0


class Sink(Protocol):
    """The part of a request that hears the worker. Called on the event loop, in the order of the frames."""

    def delta(self, delta: Delta) -> None: ...

    def answer(self, answer: Answer) -> None: ...

    def lost(self, reason: str) -> None:
        """The worker died; it will say nothing more about this request."""
        ...


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The clock and the waits of a worker's supervision; `silence_s` is how long a busy worker may say nothing,
    looked at four times in that."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    silence_s: float = 300.0
    exit_wait_s: float = EXIT_WAIT_S
    terminate_wait_s: float = TERMINATE_WAIT_S


def restart_delay_s(failures: int) -> float:
    """How long to wait after that many failures in a row: 0, 0.5, 1, 2 ... 30 seconds."""
    return 0.0 if failures <= 1 else min(0.5 * 2.0 ** min(failures - 2, 10), RESTART_DELAY_MAX_S)


def worker_argv() -> tuple[str, ...]:
    return sys.executable, "-P", "-m", "adapters.llama_cpp.worker"


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """All a worker sees of the environment: where its libraries are, that llama.cpp need not run a debugger, and that
    large allocations take huge pages where the kernel has them, which makes long prompts 4 % faster. All of its threads
    allocate from one arena, since newer C libraries (2.43) start one for each thread with such a page.

    One thread packs weights for AMX. A thread for each core does so in no less of a busy machine than all of it: they
    wait for each other at every tensor, and 0.5B parameters took 8 s there instead of 0.9. Steps say for themselves how
    many threads they want.
    """
    allocating = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
    env = {"GGML_NO_BACKTRACE": "1", "GLIBC_TUNABLES": allocating, "OMP_NUM_THREADS": "1"}
    if "LD_LIBRARY_PATH" in environ:
        env["LD_LIBRARY_PATH"] = environ["LD_LIBRARY_PATH"]
    root = str(Path(adapters.__file__).resolve().parent.parent)
    if root != sysconfig.get_path("purelib"):
        env["PYTHONPATH"] = root
    return env


def resident_bytes(pid: int) -> int:
    """What a process takes in memory, mapped files included; 0 when it is gone or this system does not say."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """One model's worker through all its lives.

    `state` is loading, ready, failed (for good), restarting or stopped; `reason` says why it is not ready. Requests
    register a `Sink` under an id of their own; when the process dies every sink hears `lost` at once.
    """

    def __init__(
        self,
        path: str,
        settings: EngineSettings,
        *,
        argv: Sequence[str] = (),
        timing: Timing | None = None,
        on_ready: Callable[[ModelInfo], None] = lambda info: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.state: State = "stopped"
        self.reason: str | None = None
        self.progress = 0.0
        self.info: ModelInfo | None = None
        self.busyness: Busyness | None = None
        self.sessions = Totals(SessionCounters())
        self.grammars = Totals(GrammarCounters())
        self.pid: int | None = None
        self.restarts = 0
        self.load = Load(path, settings)
        self._argv = tuple(argv) or worker_argv()
        self._timing = timing or Timing()
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._sinks: dict[int, Sink] = {}
        self._ids = itertools.count(1)
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._nap: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._final_error: tuple[str, str] | None = None
        self.load_s: float | None = None
        self._spawned_s = 0.0
        self._ready_s: float | None = None
        self._heard = False
        self._failures = 0
        self._load_failures: list[float] = []
        self._load_crashes = 0
        self._retry_s = 0.0

    # Life, seen from outside.

    def start(self) -> None:
        """Begin to load and supervise; `settled` waits for the outcome."""
        if self._task is None:
            self._set_state("loading")
            self._task = asyncio.get_running_loop().create_task(self._supervise())

    async def settled(self) -> None:
        """Wait for the outcome of the first load; after a failure that is not final it is tried again meanwhile."""
        while self.state == "loading":
            await self._changed.wait()

    async def stop(self) -> None:
        """Close the connection, wait for the exit, enforce it; the process is reaped when this returns."""
        if self._task is None:
            return
        self._set_state("stopped")
        if self._link is not None:
            self._link.abort("the model was stopped")
        if self._nap is not None:
            self._nap.cancel()
        await asyncio.shield(self._task)
        self._task = None

    async def decided(self) -> None:
        """Wait until it is ready, or will not be any more."""
        while self.state in ("loading", "restarting"):
            await self._changed.wait()

    def reset(self) -> None:
        """Forget past failures: the next start is a fresh one."""
        self._final_error = None
        self._failures = self._load_crashes = 0
        self._load_failures.clear()

    def unavailable(self) -> AdapterError | None:
        """Why a request cannot be taken now, or None when it can."""
        if self.state == "ready":
            return None
        if self.state == "failed":
            code, message = self._final_error or ("model_unavailable", "The model failed to load.")
            return ModelUnavailable(message, code=code)
        if self.state == "stopped":
            return ModelUnavailable("The model is not loaded.")
        retry_after_s = self.ready_in_s()
        if self._failures >= RESTARTS_BEFORE_UNAVAILABLE:
            return ModelUnavailable("The model's engine keeps failing.", retry_after_s=retry_after_s)
        return ModelLoading("The model is being loaded.", retry_after_s=retry_after_s)

    def ready_in_s(self) -> float:
        """Seconds until the load or restart under way is expected to be done."""
        now_s = self._timing.clock()
        if now_s < self._retry_s:
            return self._retry_s - now_s + (self.load_s or LOAD_GUESS_S)
        elapsed_s = now_s - self._spawned_s
        whole_s = self.load_s
        if whole_s is None:
            whole_s = elapsed_s / self.progress if self.progress > 0.05 else LOAD_GUESS_S
        return max(whole_s - elapsed_s, 1.0)

    # Requests.

    def register(self, sink: Sink) -> int:
        """The id under which `sink` hears answers; raises when the worker is not ready."""
        if error := self.unavailable():
            raise error
        if not self._sinks:
            self._heard = True  # The silence of a worker that has nothing to do does not count.
        number = next(self._ids)
        self._sinks[number] = sink
        return number

    def send(self, command: Command) -> None:
        """Hand a command to the worker, as `Link.send` does; a dead worker's registered sinks have heard `lost`, so
        nothing is raised for that."""
        if self._link is not None:
            self._link.send(command)

    def forget(self, number: int) -> None:
        self._sinks.pop(number, None)

    @property
    def sinks(self) -> int:
        return len(self._sinks)

    # Reports. `Step` is the hot path: one frame carries the deltas of many requests.

    def _receive(self, report: Report) -> None:
        self._heard = True
        if type(report) is Step:
            if report.load is not None:
                self.busyness = report.load
            if report.sessions is not None:
                self.sessions.report(report.sessions)
            if report.grammars is not None:
                self.grammars.report(report.grammars)
            sinks = self._sinks
            for delta in report.deltas:
                sink = sinks.get(delta.id)
                if sink is not None:
                    sink.delta(delta)
            return
        match report:
            case (
                Prepared()
                | Refused()
                | Cancelled()
                | Embedded()
                | Reranked()
                | Inspected()
                | SessionList()
                | SessionChanged()
            ):
                if sink := self._sinks.get(report.id):
                    sink.answer(report)
            case Progress(fraction):
                self.progress = min(max(fraction, 0.0), 1.0)
            case Ready(info):
                self._loaded(info)
            case LoadFailed(code, message):
                self._load_failed(code, message)

    def _loaded(self, info: ModelInfo) -> None:
        if self.state not in ("loading", "restarting"):
            return
        self.info = info
        self.progress = 1.0
        self.reason = None
        self._ready_s = self._timing.clock()
        self.load_s = self._ready_s - self._spawned_s
        self._set_state("ready")
        self._on_ready(info)

    def _load_failed(self, code: str, message: str) -> None:
        if code == "model_invalid":
            self._final_error = (code, message)
        assert self._link is not None
        self._link.abort(f"the model failed to load: {message}")

    def _lost(self, reason: str) -> None:
        """Runs when the connection ends, before anything else can look: nobody may find a dead worker ready."""
        self._link = None
        self.busyness = None
        self.sessions.worker_lost()
        self.grammars.worker_lost()
        if self.state != "stopped":
            self.reason = reason
            self._set_state("restarting")
        self._on_lost()
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.lost(reason)

    def _set_state(self, state: State) -> None:
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    # Supervision: one life after the other.

    def _stopped(self) -> bool:
        return self.state == "stopped"

    async def _supervise(self) -> None:
        while True:
            self._spawned_s = self._timing.clock()
            self._ready_s = None
            self.progress = 0.0
            self.reason = None
            try:
                code, last_words = await self._live()
                # One that has said why it could not load ends as it should.
                exited = _exit_text(code) if code or not self.reason else ""
                ending, crashed = f"{exited} {last_words}".strip(), -code in CRASH_SIGNALS
            except OSError as error:
                ending, crashed = f"the worker could not be started: {error}", False
            if self._stopped():
                return
            self.reason = "; ".join(filter(None, (self.reason, ending)))
            logger.error("worker of %r died: %s", self.load.path, self.reason)
            if self._gave_up(crashed):
                self._set_state("failed")
                return
            await self._back_off()
            if self._stopped():
                return

    def _gave_up(self, crashed: bool) -> bool:
        """Whether another start is pointless; counts the failures in a row.

        A model that fails to load three times in five minutes is left alone until it is `reset`. A file that crashed
        the engine each time, and never was loaded, is taken to be invalid.
        """
        now_s = self._timing.clock()
        stable = self._ready_s is not None and now_s - self._ready_s >= STABLE_AFTER_S
        self._failures = 1 if stable else self._failures + 1
        if self._ready_s is not None:
            return self._final_error is not None
        self._load_crashes += crashed
        self._load_failures = [at_s for at_s in self._load_failures if now_s - at_s < LOAD_FAILURES_WITHIN_S] + [now_s]
        if self._final_error is None and len(self._load_failures) >= LOAD_FAILURES_MAX:
            if self.info is None and self._load_crashes >= LOAD_FAILURES_MAX:
                self._final_error = ("model_invalid", "The engine crashed each time it tried to load the model.")
            else:
                self._final_error = ("model_unavailable", "The model failed to load again and again.")
        return self._final_error is not None

    async def _back_off(self) -> None:
        self._set_state("restarting")
        self.restarts += 1
        delay_s = restart_delay_s(self._failures)
        self._retry_s = self._timing.clock() + delay_s
        if delay_s == 0:
            return
        self._nap = asyncio.ensure_future(self._timing.sleep(delay_s))
        with suppress(asyncio.CancelledError):
            await self._nap
        cancelled = self._nap.cancelled() and not self._stopped()
        self._nap = None
        if cancelled:
            raise asyncio.CancelledError

    async def _live(self) -> tuple[int, str]:
        """One life of the process, from its start until it is reaped; its exit code and last words."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    str(theirs.fileno()),
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    stderr=PIPE,
                    env=worker_environment(os.environ),
                    pass_fds=(theirs.fileno(),),
                    # A Ctrl-C in the terminal is for the gateway, which then drains; the worker must outlive that.
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        stderr = LastWords()
        drain = asyncio.ensure_future(stderr.drain(_piped(process)))
        try:
            await self._converse(ours, process)
            await self._reap(process)
            await asyncio.wait({drain}, timeout=self._timing.terminate_wait_s)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            drain.cancel()
            self.pid = None
        assert process.returncode is not None
        return process.returncode, " | ".join(list(stderr.lines)[-3:])

    async def _converse(self, ours: socket.socket, process: Process) -> None:
        """Send the load command and stay until the connection ends or a busy worker falls silent."""
        loop = asyncio.get_running_loop()
        link = Link(self._receive, self._lost)
        await loop.create_unix_connection(lambda: link, sock=ours)
        self.pid = process.pid
        self._link = link
        if self._stopped():
            link.abort("the model was stopped")
        link.send(self.load)
        heard_s = self._timing.clock()
        try:
            while not link.closed.done():
                await asyncio.wait({link.closed}, timeout=self._timing.silence_s / 4)
                now_s = self._timing.clock()
                busy = self._sinks or self.state != "ready"
                if self._heard or not busy:
                    self._heard, heard_s = False, now_s
                elif now_s - heard_s >= self._timing.silence_s:
                    link.abort(f"the worker was silent for {self._timing.silence_s:.0f} s")
        finally:
            link.abort("the supervision was cancelled")

    async def _reap(self, process: Process) -> None:
        """Wait for the exit; a worker that was asked to stop gets time, one that broke is killed sooner."""
        patience_s = self._timing.exit_wait_s if self._stopped() else self._timing.exit_wait_s / 10
        for wait_s, enforce in ((patience_s, process.terminate), (self._timing.terminate_wait_s, process.kill)):
            try:
                await asyncio.wait_for(process.wait(), wait_s)
                return
            except TimeoutError:
                with suppress(ProcessLookupError):
                    enforce()
        await process.wait()


def _piped(process: Process) -> asyncio.StreamReader:
    assert process.stderr is not None
    return process.stderr


def _exit_text(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
