"""`Idempotency-Key` on any endpoint: the handler runs once, apart from its connection, and retries get its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from msgspec.structs import replace
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from gateway import errors
from gateway.api import rerank
from gateway.api.http import (
    Answer,
    CancelOnDisconnect,
    ClientDisconnected,
    Endpoint,
    HeaderList,
    Response,
    read_json_body,
    run_until_disconnect,
)
from gateway.errors import GatewayError
from gateway.idempotency import Claim, Idempotency, Result, claim_of

T = TypeVar("T")

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", *rerank.PATHS)
KEY_CHARS_MAX = 255
# How the limits stood is no longer true of a replay, and its length is set anew.
NOT_KEPT = ("content-length", "x-request-id", "request-id", "x-ratelimit-", "anthropic-ratelimit-")


class Recording:
    """An answer under way: told to the client that began it as long as that is there, and kept as a whole if it fits.

    The last piece is handed out only once the answer is kept, so who has all of it can have it again.
    """

    def __init__(self, bytes_max: int) -> None:
        self.status = 0
        self.headers: HeaderList = []
        self.failure: GatewayError | None = None
        self.kept: list[bytes] = []
        self.too_large = False
        self.task: asyncio.Task[None] | None = None
        self._bytes_max = bytes_max
        self._size = 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._last = b""
        self._complete = False
        self._ended = False
        self.given_up = False
        self.followed = True
        self._changed = asyncio.Condition()

    async def send(self, message: Message) -> None:
        """What the answer sends, as ASGI has it."""
        async with self._changed:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], list(message["headers"])
                self._changed.notify_all()
                return
            body = message.get("body", b"")
            self._keep(body)
            if not message.get("more_body", False):
                self._complete, self._last = True, body
                return
            await self._changed.wait_for(lambda: not self.followed or self._queued <= self._bytes_max)
            if self.followed:
                self._queue.append(body)
                self._queued += len(body)
                self._changed.notify_all()
        self._give_up_unwanted()

    def _keep(self, body: bytes) -> None:
        self._size += len(body)
        self.too_large = self._size > self._bytes_max
        if self.too_large:
            self.kept.clear()
        else:
            self.kept.append(body)

    def _give_up_unwanted(self) -> None:
        """Nobody will ever see the rest of an answer that is too large to keep and whose client left."""
        unwanted = self.too_large and not self.followed and not self._complete
        if unwanted and not self.given_up and self.task is not None:
            self.given_up = True
            self.task.cancel()

    async def end(self) -> None:
        """There is no more; without a status it failed with `failure`."""
        async with self._changed:
            self._queue.append(self._last)
            self._ended = True
            self._changed.notify_all()

    async def head(self) -> None:
        """Wait for the status; raises what failed before there was one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.status or self._ended)
        if not self.status:
            assert self.failure is not None
            raise self.failure

    async def next(self) -> bytes | None:
        """The next piece; None at the end."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._queue or self._ended)
            if not self._queue:
                return None
            part = self._queue.popleft()
            self._queued -= len(part)
            self._changed.notify_all()
            return part

    async def leave(self) -> None:
        """The client is gone; the answer goes on without it."""
        async with self._changed:
            self.followed = False
            self._queue.clear()
            self._changed.notify_all()
        self._give_up_unwanted()


class Followed:
    """The answer of a recording to the client that began it."""

    def __init__(self, recording: Recording) -> None:
        self.status = recording.status
        self.headers = list(recording.headers)
        self._recording = recording
        self._started = False

    @property
    def failure(self) -> GatewayError | None:
        return self._recording.failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with CancelOnDisconnect(receive):
                await self._relay(send)
        except ClientDisconnected:
            await asyncio.shield(self._recording.leave())
            raise
        except asyncio.CancelledError:
            # The server ends: so does the execution, whose last words are relayed.
            assert self._recording.task is not None
            self._recording.task.cancel()
            await self._relay(send)

    async def _relay(self, send: Send) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        while (part := await self._recording.next()) is not None:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Idempotent:
    """Wraps endpoints. What it runs outlives the connection that asked for it, but not `close`."""

    def __init__(self, idempotency: Idempotency, body_bytes_max: int) -> None:
        self._idempotency = idempotency
        self._body_bytes_max = body_bytes_max
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """End what runs for clients that are gone."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def wrap(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        """The endpoints; those of inference honour the header."""
        return tuple(self._wrapped(one) if one.path in PATHS else one for one in endpoints)

    def _wrapped(self, endpoint: Endpoint) -> Endpoint:
        async def handler(request: Request) -> Response:
            key = _key_of(request)
            return await endpoint.handler(request) if key is None else await self._once(endpoint, request, key)

        return replace(endpoint, handler=handler)

    async def _once(self, endpoint: Endpoint, request: Request, key: str) -> Response:
        body = await read_json_body(request, self._body_bytes_max)
        principal = request.state.principal
        scope = (principal.tenant, principal.key_id, endpoint.path)
        claim = claim_of(scope, key, body, request.state.request_id)
        recording = Recording(self._idempotency.config.result_bytes_max)

        # Claiming happens in a task of its own too: a claim that was won is never lost to a cancellation.
        async def begin() -> Result | None:
            result = await self._idempotency.begin(claim)
            if result is None and recording.followed:
                work = self._execute(endpoint, _detached(request, body), claim, recording)
                recording.task = self._start(work)
            elif result is None:
                await self._idempotency.release(claim)
            return result

        try:
            result = await run_until_disconnect(request, asyncio.shield(self._start(begin())))
            if result is not None:
                request.state.log["idempotent"] = "replayed"
                return _replay(result)
            await run_until_disconnect(request, recording.head())
        except (ClientDisconnected, asyncio.CancelledError):
            await asyncio.shield(recording.leave())
            raise
        return Followed(recording)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _execute(self, endpoint: Endpoint, request: Request, claim: Claim, recording: Recording) -> None:
        """Run the handler and its answer to the end, whoever still listens."""
        try:
            response = await endpoint.handler(request)
            await response(request.scope, request.receive, recording.send)
            recording.failure = getattr(response, "failure", None)
        except asyncio.CancelledError:
            recording.failure = errors.error("shutting_down", "The server is shutting down.")
        except Exception as exc:
            recording.failure = errors.from_exception(exc, claim.request_id)
        try:
            if recording.given_up or (recording.failure is None and recording.status == 200):
                await self._idempotency.keep(claim, None if recording.too_large else _result(recording))
            else:
                await self._idempotency.release(claim)
        finally:
            await recording.end()


def _key_of(request: Request) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0]
    if len(given) > 1 or not (0 < len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        message = f"Send one Idempotency-Key of 1 to {KEY_CHARS_MAX} printable ASCII characters."
        raise errors.error("invalid_value", message, param="Idempotency-Key")
    return key


def _detached(request: Request, body: bytes) -> Request:
    """The request with its body to read once more, and a client that never leaves."""
    messages: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        while not messages:
            await asyncio.Event().wait()
        return messages.popleft()

    return Request(request.scope, receive)


def _result(recording: Recording) -> Result:
    headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in recording.headers)
    kept = tuple((name, value) for name, value in headers if not name.startswith(NOT_KEPT))
    return Result(recording.status, kept, b"".join(recording.kept))


def _replay(result: Result) -> Answer:
    """The kept answer. It says what this request cost, which is nothing."""
    headers = {name: "0" if name == "x-gateway-cost-usd" else value for name, value in result.headers}
    headers["idempotent-replayed"] = "true"
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return Answer(result.status, pairs, result.body)
