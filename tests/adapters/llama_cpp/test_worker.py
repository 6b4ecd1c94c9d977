"""What a worker tells its gateway, with a model in this process."""

from __future__ import annotations

import socket
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import msgspec
import pytest

from adapters.llama_cpp import messages, worker
from adapters.llama_cpp.loading import load
from adapters.llama_cpp.messages import (
    Embed,
    EngineSettings,
    FrameReader,
    Inspect,
    Inspected,
    Load,
    Prepare,
    Prepared,
    Refused,
    Report,
    Start,
    Step,
    TextPrompt,
    TokenPrompt,
)
from adapters.llama_cpp.worker import Link, Worker
from adapters.types import Generation


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[Report] = []

    def send(self, report: Report) -> None:
        self.sent.append(report)


def steps_before_the_answer(path: Path, command: Prepare | Embed) -> int:
    """How often a worker said that it is at work before it answered."""
    settings = EngineSettings(threads=1, context_tokens=512, chunk_tokens=32, session_ram_bytes=0)
    link = FakeLink()
    loaded = load(Load(str(path), settings), lambda fraction: None, nullcontext())
    served = Worker(cast(Link, link), loaded, threading.Event())
    served._answer(command)
    if isinstance(command, Prepare):
        served._sort(Start(command.id))
    while not any(not isinstance(report, Step) or report.deltas for report in link.sent[1:]):
        served._turn()
    return sum(isinstance(report, Step) and not report.deltas for report in link.sent)


def test_who_computes_a_long_prompt_is_heard_of(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ALIVE_EVERY_S", 0.0)
    prompt = TokenPrompt(tuple(range(300, 600)))
    assert steps_before_the_answer(tiny_model, Prepare(1, "a", prompt, Generation(max_tokens=2))) >= 300 // 64 - 1


def test_who_embeds_many_inputs_is_heard_of(embedding_model: Path) -> None:
    inputs = tuple((5, 6, 7) for _ in range(300))
    assert steps_before_the_answer(embedding_model, Embed(1, "a", inputs)) >= 300 // 64 - 1


def test_texts_that_are_only_looked_at_keep_no_prompt_waiting(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, looked = FakeLink(), threading.Event()
    settings = EngineSettings(threads=1, context_tokens=512, session_ram_bytes=0)
    loaded = load(Load(str(tiny_model), settings), lambda fraction: None, nullcontext())
    served = Worker(cast(Link, link), loaded, threading.Event())
    monkeypatch.setattr(served._preparation, "inspected", lambda command: looked.wait(60))
    try:
        for id in range(8):
            served._sort(Inspect(id, TextPrompt("x")))
        served._sort(Prepare(9, "a", TokenPrompt((5, 6))))
        served._tokenisers.shutdown()
        assert [report.id for report in link.sent if isinstance(report, Prepared)] == [9]
    finally:
        looked.set()


def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "FRAME_BYTES_MAX", 4096)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Link(theirs).send(Inspected(7, b"", "x" * 5000))
        (payload,) = FrameReader().feed(ours.recv(1 << 16))
    refused = msgspec.msgpack.decode(payload, type=Report)
    assert isinstance(refused, Refused) and (refused.id, refused.code) == (7, "request_too_large")
