"""The worker process of one model: `python -m adapters.llama_cpp.worker FD`.

The main thread decodes, a reader takes commands from the socket, a few tokenisers prepare prompts, and beside a vision
model an encoder makes embeddings of images. Only the main thread touches the scheduler and the context; the others hand
it calls through an inbox.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial

import msgspec

from adapters.llama_cpp.confine import confine
from adapters.llama_cpp.embedder import Job
from adapters.llama_cpp.keeping import public
from adapters.llama_cpp.lease import StepLease
from adapters.llama_cpp.loading import Loaded, LoadError, load, now_us
from adapters.llama_cpp.messages import (
    Busyness,
    Cancel,
    Cancelled,
    ChangeSession,
    Command,
    Detokenize,
    Embed,
    Embedded,
    FrameError,
    FrameReader,
    GrammarCounters,
    Inspect,
    Inspected,
    ListSessions,
    Load,
    LoadFailed,
    Prepare,
    Progress,
    Ready,
    Refused,
    Report,
    Rerank,
    SessionChanged,
    SessionList,
    Start,
    Step,
    frame,
)
from adapters.llama_cpp.native import NativeError
from adapters.llama_cpp.preparation import Preparation
from adapters.llama_cpp.prompts import Refusal
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Changed

TOKENISER_THREADS = 2
IDLE_WAIT_S = 5.0
QUIET_S = 0.1
LOAD_EVERY_S = 0.05
# How long the gateway hears nothing at most while prompts are computed: whoever says nothing at all for minutes hangs.
ALIVE_EVERY_S = 1.0
COMPILER_THREADS = 2
CLOSE_WAIT_S = 4.0
# The tables that constraints need are made when the worker has had nothing to do for so long, if not needed before.
PREPARE_AFTER_S = 1.0


class Link:
    """Frames over the socket to the gateway. `send` may be called from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Command)
        self._lock = threading.Lock()

    def send(self, report: Report) -> None:
        with self._lock:
            try:
                data = frame(report, self._encoder)
            except FrameError:
                if not isinstance(report, Inspected | Embedded | SessionList):
                    raise
                data = frame(Refused(report.id, "request_too_large", "The answer would be too large."), self._encoder)
            self._socket.sendall(data)

    def commands(self) -> Iterator[Command]:
        """Blocks for commands; ends when the gateway is gone."""
        reader = FrameReader()
        # A gateway that left some of our reports unread resets the connection.
        with suppress(ConnectionResetError):
            while data := self._socket.recv(1 << 18):
                for payload in reader.feed(data):
                    yield self._decoder.decode(payload)


class Worker:
    """Serves one loaded model until the gateway closes the socket."""

    def __init__(self, link: Link, loaded: Loaded, wake: threading.Event) -> None:
        self._link = link
        self._loaded = loaded
        self._preparation = Preparation(loaded)
        self._inbox: deque[Callable[[], object]] = deque()
        self._closed = threading.Event()
        self._wake = wake
        self._tokenisers = ThreadPoolExecutor(TOKENISER_THREADS, thread_name_prefix="tokeniser")
        # Requests with a grammar have threads of their own: compiling one can take half a second.
        self._compilers = ThreadPoolExecutor(COMPILER_THREADS, thread_name_prefix="compiler")
        # So have texts that are only looked at, which may be as long as a body, and stand in no fair line.
        self._inspectors = ThreadPoolExecutor(1, thread_name_prefix="inspector")
        self._prepared: dict[int, list[Sequence]] = {}
        # Requests that a tokeniser works on, and those of them that were cancelled meanwhile.
        self._preparing: set[int] = set()
        self._forgotten: set[int] = set()
        self._worked_s = 0.0
        self._told = GrammarCounters()
        self._told_size = -1, -1
        self._told_s = 0.0
        if loaded.store is not None:
            loaded.store.wake = self._wake.set

    def read(self, commands: Iterator[Command]) -> None:
        """The reader thread; it ends, and the process with it, when the gateway is gone or cannot be understood."""
        code = 1
        try:
            for command in commands:
                self._sort(command)
            code = 0
        except Exception as error:
            print(f"the worker cannot go on: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            self._post(self._close)
            # The main thread may be deep in a native call; what it has not saved by then is computed again.
            self._closed.wait(CLOSE_WAIT_S)
            os._exit(code)

    def _sort(self, command: Command) -> None:
        """Hands a command to the tokenisers or to the main thread."""
        match command:
            case Prepare() | Embed() | Rerank() | Inspect() | Detokenize():
                self._preparing.add(command.id)
                self._threads(command).submit(self._answer, command)
            case Start():
                # It may lie in the inbox as long as a step takes.
                self._post(partial(self._start, command.id, now_us()))
            case Cancel():
                scheduler = self._loaded.scheduler
                if scheduler is not None and command.id in scheduler.prefilling:
                    self._loaded.context.abort()
                self._post(partial(self._cancel, command.id))
            case ListSessions():
                self._post(partial(self._list_sessions, command))
            case ChangeSession():
                self._post(partial(self._change_session, command))
            case Load():
                raise ValueError("a worker loads one model once")

    def _threads(self, command: Command) -> ThreadPoolExecutor:
        """Those that prepare it."""
        if isinstance(command, Inspect | Detokenize):
            return self._inspectors
        return self._compilers if _compiles(command) else self._tokenisers

    def run(self) -> None:
        """The main thread: inbox, step, report, until nobody takes reports any more. The reader ends the process."""
        try:
            while True:
                self._turn()
        except ConnectionError:
            self._close()

    def _turn(self) -> None:
        while self._inbox:
            self._inbox.popleft()()
        if not self._step():
            # Kept conversations expire also where nothing happens, and a disk that does not answer is not waited
            # for without end.
            compiler = self._loaded.compiler
            waits = compiler.prepared or self._loaded.scheduler is None
            if not self._wake.wait(IDLE_WAIT_S if waits else PREPARE_AFTER_S) and not waits:
                compiler.prepare()
            self._wake.clear()

    def _step(self) -> bool:
        """One step of whatever there is to do; False when there is nothing."""
        scheduler, embedder = self._loaded.scheduler, self._loaded.embedder
        if embedder is not None and not embedder.idle:
            embedded = embedder.step()
            for one in embedded or (Step([]),):
                self._link.send(one)
            return True
        if scheduler is None:
            return False
        if scheduler.idle:
            more, deltas = self._interrupted(scheduler) or scheduler.tidy(), []
        else:
            deltas = scheduler.step()
            self._worked_s = time.monotonic()
            more = not scheduler.stalled
        news = scheduler.sessions.tiers.news()
        counted = self._loaded.compiler.counters
        grammars = None if counted == self._told else counted
        alive = more and time.monotonic() - self._told_s >= ALIVE_EVERY_S
        if deltas or news is not None or grammars is not None or alive:
            self._told = counted
            self._link.send(Step(deltas, self._busyness(scheduler, bool(deltas)), news, grammars))
        while scheduler.failures:
            id, reason = scheduler.failures.popitem()
            self._link.send(Refused(id, "unsupported_schema", f"The grammar became too complex: {reason}."))
        for id in scheduler.blind():
            scheduler.cancel(id)
            self._link.send(Refused(id, "engine_failed", "The engine could not encode an image of this request."))
        return more

    def _busyness(self, scheduler: Scheduler, working: bool) -> Busyness | None:
        """How busy the worker is. While it is `working` and as many run and wait as was told, that is told seldom: what
        is told with each token costs the gateway more than the token."""
        size, now_s = scheduler.size, time.monotonic()
        if working and size == self._told_size and now_s - self._told_s < LOAD_EVERY_S:
            return None
        self._told_size, self._told_s = size, now_s
        return scheduler.busyness()

    def _interrupted(self, scheduler: Scheduler) -> bool:
        """Whether something came up in the moment that is waited before conversations go to disk: the next turn often
        follows at once, and would have to wait for that."""
        left_s = self._worked_s + QUIET_S - time.monotonic()
        if left_s <= 0 or not self._wake.wait(left_s):
            return False
        self._wake.clear()
        return True

    def _post(self, call: Callable[[], object]) -> None:
        self._inbox.append(call)
        self._wake.set()

    # On a tokeniser thread

    def _answer(self, command: Prepare | Embed | Rerank | Inspect | Detokenize) -> None:
        """Works on a command and sends what comes of it, if only a refusal."""
        report: Report | None
        try:
            match command:
                case Prepare():
                    sequences, report = self._preparation.sequences(command)
                    self._post(partial(self._hold, command.id, sequences))
                case Embed() | Rerank():
                    report = None
                    self._post(partial(self._submit_job, Job(command.id, self._preparation.inputs(command))))
                case _:
                    report = self._preparation.inspected(command)
        except Refusal as refusal:
            report = Refused(command.id, refusal.code, refusal.message, refusal.param)
        except Exception as error:
            # A bug of ours must fail one request, not leave it waiting for ever.
            print(f"request {command.id}: {type(error).__name__}: {error}", file=sys.stderr)
            report = Refused(command.id, "internal_error", "The engine could not prepare this request.")
        if isinstance(report, Refused | Inspected):
            self._post(partial(self._settle, command.id))
        if report is not None:
            self._link.send(report)

    # On the main thread

    def _settle(self, id: int) -> bool:
        """Preparation is over; False when the request was cancelled meanwhile."""
        self._preparing.discard(id)
        wanted = id not in self._forgotten
        self._forgotten.discard(id)
        return wanted

    def _hold(self, id: int, sequences: list[Sequence]) -> None:
        if self._settle(id):
            self._prepared[id] = sequences
            if self._loaded.scheduler is not None:
                self._loaded.scheduler.expect(sequences[0])

    def _submit_job(self, job: Job) -> None:
        if not self._settle(job.request):
            return
        if self._loaded.embedder is None:
            self._link.send(Refused(job.request, "invalid_value", "This model only generates text.", "model"))
        else:
            self._loaded.embedder.submit(job)

    def _start(self, id: int, arrived_us: int) -> None:
        sequences = self._prepared.pop(id, None)
        if sequences is None or self._loaded.scheduler is None:
            self._link.send(Refused(id, "invalid_value", "This model does not generate text.", "model"))
        else:
            self._loaded.scheduler.submit(sequences, arrived_us)

    def _cancel(self, id: int) -> None:
        scheduler, embedder = self._loaded.scheduler, self._loaded.embedder
        self._prepared.pop(id, None)
        if id in self._preparing:
            self._forgotten.add(id)
        if scheduler is not None:
            scheduler.cancel(id)
        if embedder is not None:
            embedder.cancel(id)
        self._link.send(Cancelled(id))

    def _close(self) -> None:
        """Brings to disk what is not there yet."""
        scheduler, store = self._loaded.scheduler, self._loaded.store
        if scheduler is not None and store is not None:
            scheduler.drain()
            deadline_s = time.monotonic() + CLOSE_WAIT_S
            while scheduler.sessions.tiers.unwritten and time.monotonic() < deadline_s:
                if not scheduler.tidy():
                    self._wake.wait(0.1)
                    self._wake.clear()
        self._closed.set()

    def _list_sessions(self, command: ListSessions) -> None:
        scheduler = self._loaded.scheduler
        found = scheduler.sessions.listed(command.tenant) if scheduler is not None else []
        self._link.send(SessionList(command.id, found))

    def _change_session(self, command: ChangeSession) -> None:
        scheduler = self._loaded.scheduler
        if scheduler is None:
            self._link.send(SessionChanged(command.id, None))
            return
        if command.action in ("delete", "reset"):
            scheduler.forget(command.tenant, command.key)
        answer = partial(self._session_changed, command.id)
        scheduler.sessions.change(command.tenant, command.key, command.action, command.new_key, answer)

    def _session_changed(self, id: int, changed: Changed) -> None:
        if changed.erased:
            self._link.send(SessionChanged(id, changed.info))
        else:
            self._link.send(Refused(id, "internal_error", "The session's file could not be erased."))


def _compiles(command: Command) -> bool:
    """Whether preparing a request means compiling a grammar."""
    if not isinstance(command, Prepare):
        return False
    return command.generation.constraint is not None or bool(getattr(command.prompt, "tools", ()))


def main(descriptor: int) -> None:
    """Loads what the first command says, then serves."""
    confine()
    link = Link(socket.socket(fileno=descriptor))
    commands = link.commands()
    first = next(commands, None)
    if not isinstance(first, Load):
        raise SystemExit("the first command must be load")
    wake = threading.Event()
    try:
        lease = StepLease(first.settings.lease_path) if first.settings.lease_path else nullcontext()
        loaded = load(first, lambda fraction: link.send(Progress(fraction)), lease, wake.set)
        if loaded.scheduler is not None:
            loaded.scheduler.submit(public(loaded.prompts, loaded.vocabulary, first.settings.public_prefixes))
    except Refusal as error:
        link.send(LoadFailed("model_invalid", f"a public prefix is not possible: {error.message}"))
        return
    except LoadError as error:
        link.send(LoadFailed(error.code, error.message))
        return
    except NativeError as error:
        link.send(LoadFailed("model_unavailable", str(error)))
        return
    link.send(Ready(loaded.info))
    worker = Worker(link, loaded, wake)
    reader = threading.Thread(target=worker.read, args=(commands,), name="reader", daemon=True)
    reader.start()
    worker.run()
    reader.join()


if __name__ == "__main__":
    with suppress(ConnectionError):  # Nobody waits for the model any more that it was loading.
        main(int(sys.argv[1]))
