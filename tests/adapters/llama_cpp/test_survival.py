"""Real workers on a real model: conversations outlive them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adapters.llama_cpp.messages import (
    ChangeSession,
    Command,
    Delta,
    EngineSettings,
    FrameReader,
    ListSessions,
    Load,
    LoadFailed,
    Prepare,
    Prepared,
    Ready,
    Report,
    SessionChanged,
    SessionCounters,
    SessionList,
    Start,
    Step,
    TextPrompt,
    TokenPrompt,
    frame,
)
from adapters.llama_cpp.process import worker_argv, worker_environment
from adapters.types import Generation, Sampling, SessionInfo

HISTORY = np.random.default_rng(5).integers(300, 500, 700).tolist()
KEY = bytes(range(32))


class Client:
    """Talks to a worker as the gateway does, but waits for each answer."""

    def __init__(self, model: Path, folder: Path, *, parallel: int = 4, **changed: Any) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        ours.settimeout(60)
        with theirs:
            self.process = subprocess.Popen(
                [*worker_argv(), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=worker_environment(os.environ),
                stderr=subprocess.DEVNULL,
            )
        self.counters = SessionCounters()
        self._encoder = msgspec.msgpack.Encoder()
        self._reports = self._received()
        self._ids = 0
        settings = EngineSettings(
            context_tokens=1024, cache_tokens=4096, parallel=parallel, threads=1, session_dir=str(folder), **changed
        )
        self.send(Load(str(model), settings))
        self.until(lambda report: isinstance(report, Ready | LoadFailed))

    def send(self, command: Command) -> None:
        self.socket.sendall(frame(command, self._encoder))

    def _received(self) -> Iterator[Report]:
        reader, decoder = FrameReader(), msgspec.msgpack.Decoder(Report)
        while data := self.socket.recv(1 << 16):
            for payload in reader.feed(data):
                yield decoder.decode(payload)

    def until(self, wanted: Callable[[Report], bool]) -> Report:
        for report in self._reports:
            if isinstance(report, Step) and report.sessions is not None:
                self.counters = report.sessions
            if wanted(report):
                return report
        raise AssertionError("the worker is gone")

    def ask(self, tokens: list[int], key: str | None = None, *, tenant: str = "a", count: int = 24) -> tuple[str, int]:
        """The text that greedy decoding gives and how many tokens were cached."""
        self._ids += 1
        id = self._ids
        generation = Generation(max_tokens=count, ignore_eos=True, sampling=Sampling(temperature=0))
        self.start(Prepare(id, tenant, TokenPrompt(tuple(tokens)), generation, key))
        deltas: list[Delta] = []

        def done(report: Report) -> bool:
            if isinstance(report, Step):
                deltas.extend(delta for delta in report.deltas if delta.id == id)
            return bool(deltas and deltas[-1].finish)

        self.until(done)
        return "".join(delta.text for delta in deltas), deltas[0].cached_tokens

    def start(self, request: Prepare) -> None:
        self.send(request)
        self.until(lambda report: isinstance(report, Prepared))
        self.send(Start(request.id))

    def written(self, count: int) -> None:
        """Waits until so many conversations have been written."""
        if self.counters.written < count:
            self.until(lambda report: self.counters.written >= count)

    def listed(self, tenant: str | None = None) -> list[SessionInfo]:
        self.send(ListSessions(9000, tenant))
        report = self.until(lambda report: isinstance(report, SessionList))
        assert isinstance(report, SessionList)
        return report.sessions

    def change(self, command: ChangeSession) -> SessionInfo | None:
        self.send(command)
        report = self.until(lambda report: isinstance(report, SessionChanged))
        assert isinstance(report, SessionChanged)
        return report.info

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Hangs up, as a gateway does that unloads the model."""
        self.socket.close()
        self.process.wait(20)


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    started: list[Client] = []
    yield started
    for client in started:
        client.process.kill()
        client.process.wait()
        client.socket.close()


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("end", [Client.kill, Client.close], ids=["killed", "unloaded"])
def test_the_next_turn_goes_on_after_a_restart_as_if_nothing_had_been(
    tiny_model: Path,
    tmp_path: Path,
    clients: list[Client],
    key: bytes | None,
    end: Callable[[Client], None],
) -> None:
    following = [*HISTORY, *range(320, 360)]
    steady = Client(tiny_model, tmp_path / "steady")
    clients.append(steady)
    first, _ = steady.ask(HISTORY, "talk")
    wanted = steady.ask(following, "talk")
    assert wanted[1] == len(HISTORY)

    before = Client(tiny_model, tmp_path / "kept", session_key=key)
    clients.append(before)
    assert before.ask(HISTORY, "talk") == (first, 0)
    if end is Client.kill:
        before.written(1)
    end(before)
    after = Client(tiny_model, tmp_path / "kept", session_key=key)
    clients.append(after)
    assert [(info.key, info.tier, info.tokens) for info in after.listed("a")] == [("talk", "disk", 723)]
    assert after.ask(following, "talk") == wanted
    assert after.counters.hits_disk == 1 and after.counters.corrupt == 0


@pytest.mark.slow
def test_a_gateway_that_leaves_in_the_middle_of_an_answer_does_not_cost_what_was_kept(
    tiny_model: Path, tmp_path: Path, clients: list[Client]
) -> None:
    before = Client(tiny_model, tmp_path)
    clients.append(before)
    before.ask(HISTORY, "talk")
    endless = Generation(max_tokens=300, ignore_eos=True)
    before.start(Prepare(7, "a", TokenPrompt((300,)), endless))
    before.until(lambda report: isinstance(report, Step) and any(delta.id == 7 for delta in report.deltas))
    before.close()
    assert before.process.returncode == 0
    after = Client(tiny_model, tmp_path)
    clients.append(after)
    assert ("talk", "disk", 723) in [(info.key, info.tier, info.tokens) for info in after.listed("a")]


@pytest.mark.slow
def test_files_that_were_damaged_or_belong_elsewhere_mean_a_new_computation(
    tiny_model: Path, tmp_path: Path, clients: list[Client]
) -> None:
    folder = tmp_path / "kept"
    before = Client(tiny_model, folder)
    clients.append(before)
    first, _ = before.ask(HISTORY, "talk")
    before.close()
    (path,) = folder.glob("*.kv")
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    damaged = Client(tiny_model, folder)
    clients.append(damaged)
    assert damaged.ask(HISTORY, "talk") == (first, 0)
    assert damaged.counters.corrupt == 1
    damaged.close()
    for changed in ({"session_key": KEY}, {"kv_type": "q8_0"}, {"flash_attention": "off"}):
        other = Client(tiny_model, folder, **changed)
        clients.append(other)
        assert other.listed() == []
        assert other.ask(HISTORY, "talk")[1] == 0
        assert other.counters.mismatched == 1
        other.close()


def test_forks_and_deletions_reach_the_disk(tiny_model: Path, tmp_path: Path, clients: list[Client]) -> None:
    folder = tmp_path / "kept"
    client = Client(tiny_model, folder)
    clients.append(client)
    client.ask(HISTORY, "talk")
    fork = client.change(ChangeSession(1, "a", "talk", "fork", "branch"))
    assert fork is not None and fork.tokens == 723
    assert client.change(ChangeSession(2, "b", "talk", "delete")) is None
    assert client.ask([*HISTORY, 301, 302], "talk")[1] == len(HISTORY)
    assert client.ask([*HISTORY, 400], "branch")[1] == len(HISTORY)
    assert client.change(ChangeSession(3, "a", "talk", "delete")) is not None
    client.close()
    assert len(list(folder.glob("*.kv"))) == 1
    after = Client(tiny_model, folder)
    clients.append(after)
    assert [info.key for info in after.listed("a")] == ["branch"]


def test_a_public_prefix_is_computed_once_for_all(tiny_model: Path, tmp_path: Path, clients: list[Client]) -> None:
    text = "You are a helpful assistant. Answer briefly and kindly. " * 4
    client = Client(tiny_model, tmp_path, public_prefixes=(TextPrompt(text),))
    clients.append(client)
    client.until(lambda report: client.counters.sessions > 0)
    client.start(Prepare(50, "b", TextPrompt(text + "What is new?"), Generation(max_tokens=4, ignore_eos=True)))
    report = client.until(lambda report: isinstance(report, Step) and any(delta.id == 50 for delta in report.deltas))
    assert isinstance(report, Step)
    assert next(delta.cached_tokens for delta in report.deltas if delta.id == 50) > 40
