"""A worker without a model, run as a process: `fake_worker.py SCENARIO FD`. The prompt's first word says what happens.

say N WORD...  N tokens, each " word"      forever      until cancelled      refuse   Refused at Prepare
hang           Prepare is never answered   crash        SIGSEGV after two tokens       burst N  N tokens, one frame
call           a Hermes tool call          held         tokens without text, then text  unstartable  Refused at Start

Every finished request with a session key leaves a session of that key behind.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from array import array

import msgspec

from adapters.llama_cpp.messages import (
    Busyness,
    CacheReport,
    Cancel,
    Cancelled,
    ChangeSession,
    ChatPrompt,
    Command,
    Delta,
    Detokenize,
    Embed,
    Embedded,
    FrameReader,
    Inspect,
    Inspected,
    ListSessions,
    Load,
    LoadFailed,
    ModelInfo,
    Prepare,
    Prepared,
    Progress,
    Prompt,
    Ready,
    Refused,
    Report,
    SessionChanged,
    SessionList,
    Start,
    Step,
    TextPrompt,
    frame,
)
from adapters.types import SessionInfo

PARALLEL = 4
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def info(scenario: str) -> ModelInfo:
    return ModelInfo(
        description="fake",
        architecture="fake",
        parameters=1000,
        size_bytes=2000,
        vocabulary=256,
        context_train=4096,
        context_tokens=2048,
        cache_tokens=4096,
        parallel=PARALLEL,
        threads=1,
        embedding_dimensions=4,
        generates=scenario != "embedder",
        embeds=scenario == "embedder",
        fim=False,
        chat_template=True,
        tool_format="hermes",
        reasoning_format="think",
        prefill_us_per_token=10.0,
        decode_us_per_token=2000.0,
        load_us=1000,
    )


def words(prompt: Prompt) -> list[str]:
    if isinstance(prompt, ChatPrompt):
        return prompt.messages[-1].text.split()
    return prompt.text.split() if isinstance(prompt, TextPrompt) else ["say", str(len(prompt.tokens)), "token"]


def session(tenant: str, key: str | None) -> SessionInfo:
    return SessionInfo(
        tenant=tenant,
        key=key,
        id=f"sess_{key}",
        tokens=3,
        tier="ram",
        size_bytes=300,
        created_us=1_000_000,
        used_us=2_000_000,
        pinned=False,
    )


class Run:
    """One started request: the texts still to be sent for each choice."""

    def __init__(self, request: Prepare) -> None:
        kind, *rest = words(request.prompt)
        self.request = request
        self.kind = kind
        self.first = True
        count = int(rest[0]) if kind in ("say", "burst") else 1 << 30 if kind in ("forever", "crash") else 0
        self.pieces = [" " + " ".join(rest[1:] or ["x"])] * min(count, 100_000)
        if kind == "call":
            self.pieces = ["Let me see. ", *CALL[:20], CALL[20:]]
        if kind == "held":
            self.pieces = ["", "", "held text"]

    def step(self) -> list[Delta]:
        piece = self.pieces.pop(0)
        first, self.first = self.first, False
        return [
            Delta(
                self.request.id,
                choice,
                piece,
                1,
                None if self.pieces else "stop",
                cached_tokens=1 if first else -1,
                prefill_us=500 if first else -1,
                decode_us=0 if self.pieces else 900,
                cache=CacheReport(1, 2, 1, "b", "c", "ram", 100, 3) if first and self.request.explain else None,
            )
            for choice in range(self.request.generation.n)
        ]


class FakeWorker:
    def __init__(self, scenario: str, connection: socket.socket) -> None:
        self.scenario = scenario
        self.socket = connection
        self.encoder = msgspec.msgpack.Encoder()
        self.prepared: dict[int, Prepare] = {}
        self.running: dict[int, Run] = {}
        self.sessions: list[SessionInfo] = []
        self.steps = 0

    def send(self, report: Report) -> None:
        self.socket.sendall(frame(report, self.encoder))

    def run(self) -> None:
        reader = FrameReader()
        decoder = msgspec.msgpack.Decoder(Command)
        while True:
            if not self.running or select.select([self.socket], [], [], 0)[0]:
                data = self.socket.recv(1 << 16)
                if not data:
                    return
                for payload in reader.feed(data):
                    self.handle(decoder.decode(payload))
            else:
                self.step()

    def step(self) -> None:
        self.steps += 1
        deltas: list[Delta] = []
        for number, run in list(self.running.items()):
            for _ in range(len(run.pieces) if run.kind == "burst" else 1):
                deltas += run.step()
            if not run.pieces:
                del self.running[number]
                if run.request.session_key is not None:
                    self.sessions.append(session(run.request.tenant, run.request.session_key))
            if run.kind == "crash" and len(run.pieces) < 100_000 - 2:
                os.kill(os.getpid(), signal.SIGSEGV)
        told = self.steps % 2 or not self.running
        self.send(Step(deltas, Busyness(len(self.running), 0, 0, 4096, 10.0, 2000.0) if told else None))
        time.sleep(0.001)

    def handle(self, command: Command) -> None:
        match command:
            case Load():
                self.load()
            case Prepare():
                self.prepare(command)
            case Start(number):
                if words(self.prepared[number].prompt)[0] == "unstartable":
                    self.send(Refused(number, "model_unavailable", "no"))
                else:
                    self.running[number] = Run(self.prepared.pop(number))
            case Cancel(number):
                self.prepared.pop(number, None)
                self.running.pop(number, None)
                self.send(Cancelled(number))
            case ListSessions(number, tenant):
                self.send(SessionList(number, [one for one in self.sessions if tenant in (None, one.tenant)]))
            case ChangeSession():
                self.change(command)
            case Embed(number, _, inputs):
                if inputs[0] != "hang":
                    self.send(Embedded(number, (struct.pack("<4f", 0.5, 0.5, 0.5, 0.5),) * len(inputs), len(inputs)))
            case Inspect(number, prompt):
                if words(prompt)[0] == "crash":
                    os.kill(os.getpid(), signal.SIGSEGV)
                self.send(Inspected(number, array("i", range(len(words(prompt)))).tobytes(), " ".join(words(prompt))))
            case Detokenize(number, tokens):
                self.send(Inspected(number, b"", "".join(map(chr, tokens))))

    def change(self, command: ChangeSession) -> None:
        found = [one for one in self.sessions if one.tenant == command.tenant and command.key in (one.key, one.id)]
        info = found[0] if found else None
        if info is not None and command.action == "fork":
            info = session(info.tenant, command.new_key)
            self.sessions.append(info)
        elif info is not None and command.action == "delete":
            self.sessions.remove(info)
        self.send(SessionChanged(command.id, info))

    def load(self) -> None:
        if self.scenario == "invalid":
            self.send(LoadFailed("model_invalid", "not a GGUF file"))
        elif self.scenario == "no-memory":
            self.send(LoadFailed("out_of_memory", "too big"))
        elif self.scenario == "garbage":
            self.socket.sendall(b"\x04\x00\x00\x00\xff\xff\xff\xff" * 3)
        elif self.scenario == "huge":
            self.socket.sendall(b"\xff\xff\xff\xff")
        elif self.scenario == "crash-load":
            print("about to \x1b[31mdie", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
        elif self.scenario == "silent":
            pass
        else:
            self.send(Progress(0.5))
            self.send(Ready(info(self.scenario)))

    def prepare(self, command: Prepare) -> None:
        kind = words(command.prompt)[0]
        if kind == "refuse":
            self.send(Refused(command.id, "context_length_exceeded", "too long", "messages"))
        elif kind != "hang":
            self.prepared[command.id] = command
            ends = (2,) if command.explain else ()
            self.send(
                Prepared(
                    command.id, len(words(command.prompt)), command.generation.max_tokens or 100, message_ends=ends
                )
            )


if __name__ == "__main__":
    if sys.argv[1] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    FakeWorker(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))).run()
    while sys.argv[1] == "stubborn":
        time.sleep(60)
