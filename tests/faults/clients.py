"""Clients of a gateway that cost little, leave when they like, and remember what they saw."""

from __future__ import annotations

import asyncio
import time

import msgspec


class Answer(msgspec.Struct):
    """What a client got: `status` 0: nothing, `finished`: all of it. Times are seconds of a steady clock."""

    status: int = 0
    request_id: str = ""
    code: str | None = None
    cost_nano: int | None = None
    retry: bool = True
    finished: bool = False
    sent_s: float = 0.0
    head_s: float = 0.0
    end_s: float = 0.0
    body: bytes = b""


class Client:
    """One connection at a time, kept as long as it lasts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def complete(
        self, key: str, tokens: int, *, stream: bool = False, leave_after: int | None = None, **more: object
    ) -> Answer:
        """Ask for a completion. `leave_after` bytes of the answer the client is gone."""
        body = {"model": "m", "prompt": "one two", "max_tokens": tokens, "stream": stream} | more
        return await self.post(key, "/v1/completions", msgspec.json.encode(body), leave_after=leave_after)

    async def post(self, key: str, path: str, body: bytes, *, leave_after: int | None = None) -> Answer:
        answer = Answer(sent_s=time.monotonic())
        try:
            await self._ask(answer, key, path, body, leave_after)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            self.leave()
        answer.end_s = time.monotonic()
        return answer

    async def _ask(self, answer: Answer, key: str, path: str, body: bytes, leave_after: int | None) -> None:
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        assert self._reader is not None
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if leave_after == 0:
            await self._writer.drain()
            return self.leave()
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        answer.head_s = time.monotonic()
        answer.status = int(lines[0].split()[1])
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        answer.request_id = headers.get("x-request-id", "")
        answer.retry = headers.get("x-should-retry") != "false"
        if "x-gateway-cost-usd" in headers:
            answer.cost_nano = round(float(headers["x-gateway-cost-usd"]) * 1e9)
        if leave_after is not None:
            await self._reader.read(leave_after)
            return self.leave()
        answer.body = await self._rest(self._reader, headers)
        if answer.status != 200:
            answer.code = msgspec.json.decode(answer.body)["error"]["code"]
        answer.finished = answer.status == 200 and ("content-length" in headers or b"data: [DONE]" in answer.body)
        if headers.get("connection") == "close":
            self.leave()
        return None

    async def _rest(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"]))
        parts = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(parts)

    def leave(self) -> None:
        """Gone at once, as by a reset."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
