"""Upstreams on loopback addresses that record what they are asked and answer as they are told, in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any


class Replica:
    """One engine. `well` says whether it answers and passes its health check, `delay_s` how long it thinks, `dialect`
    what it speaks.

    `bodies` are the requests it was asked to answer, `heads` theirs, `checks` how often its health was asked for,
    and `paths` where.
    """

    def __init__(self, address: str, text: str, dialect: str = "openai") -> None:
        self.address = address
        self.text = text
        self.dialect = dialect
        self.well = True
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.checks = 0
        self.paths: set[str] = set()
        self.left = 0
        self.server: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)
                body = await reader.readexactly(length)
                if head.startswith("GET"):
                    self.checks += 1
                    self.paths.add(head.split(" ")[1])
                    writer.write(plain(b"{}", 200 if self.well else 503))
                else:
                    asked = json.loads(body)
                    self.heads.append(head)
                    self.bodies.append(asked)
                    if self.delay_s and await self.left_while_thinking(reader):
                        raise ConnectionResetError
                    writer.write(self.answer(asked) if self.well else plain(b"{}", 503))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.left += 1
        finally:
            self.writers.discard(writer)
            writer.close()

    async def left_while_thinking(self, reader: asyncio.StreamReader) -> bool:
        gone = asyncio.ensure_future(reader.read(1))
        done, _ = await asyncio.wait([gone], timeout=self.delay_s)
        gone.cancel()
        await asyncio.wait([gone])
        return bool(done)

    def answer(self, asked: dict[str, Any]) -> bytes:
        if self.dialect == "anthropic":
            return anthropic(self.text, stream=asked.get("stream") is True)
        return openai(self.text, stream=asked.get("stream") is True)


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a test must not depend on how long that takes."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def plain(body: bytes, status: int = 200, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def openai(text: str, *, stream: bool) -> bytes:
    """A chat completion; each word of a stream a chunk."""
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    shared = {"id": "chatcmpl-x", "created": 1, "model": "theirs"}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return plain(json.dumps(shared | {"object": "chat.completion", "choices": [choice], "usage": usage}).encode())
    deltas: list[Any] = [({"role": "assistant", "content": text}, None), ({}, "stop")]
    chunks = [
        shared | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": one, "finish_reason": why}]}
        for one, why in deltas
    ]
    chunks.append(shared | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
    events = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
    return plain(events.encode(), kind="text/event-stream")


def anthropic(text: str, *, stream: bool) -> bytes:
    """The same of Anthropic."""
    message = {"id": "msg_x", "type": "message", "role": "assistant", "model": "theirs", "stop_sequence": None}
    usage = {"input_tokens": 5, "output_tokens": 7}
    if not stream:
        content = [{"type": "text", "text": text}]
        return plain(json.dumps(message | {"content": content, "stop_reason": "end_turn", "usage": usage}).encode())
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    text = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events)
    return plain(text.encode(), kind="text/event-stream")


class Fleet:
    """Replicas on one port; each can be shut and opened again."""

    def __init__(self, *replicas: Replica, port: int) -> None:
        self.replicas = replicas
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Fleet:
        self._thread.start()
        for one in self.replicas:
            self.open(one)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.replicas:
            self.shut(one)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self, replica: Replica) -> None:
        """Accept connections, unless it does already."""

        async def act() -> None:
            if replica.server is None:
                replica.server = await asyncio.start_server(replica.serve, replica.address, self.port)

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def shut(self, replica: Replica) -> None:
        """Refuse connections; those there are go on until their requests are answered."""

        async def act() -> None:
            if replica.server is not None:
                replica.server.close()
                replica.server = None

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
