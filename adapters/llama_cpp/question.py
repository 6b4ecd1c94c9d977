"""A command to the worker that has a single answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from adapters.errors import ModelLoading, Timeout
from adapters.llama_cpp.messages import Cancel, Command, Delta, Refused
from adapters.llama_cpp.part import refused
from adapters.llama_cpp.process import Answer, Worker


class Question:
    """A command with a single answer. Given up, its place in line stays taken until the worker has let go of it."""

    def __init__(self, worker: Worker, release: Callable[[], None]) -> None:
        self._worker = worker
        self._release = release
        self._future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.id = worker.register(self)

    async def ask(self, command: Command, timeout_s: float) -> Answer:
        try:
            self._worker.send(command)
            async with asyncio.timeout(timeout_s):
                return await self._future
        except TimeoutError:
            raise Timeout("The engine did not answer in time.") from None
        finally:
            if not self._future.done() or self._future.cancelled():
                self._worker.send(Cancel(self.id))

    def delta(self, delta: Delta) -> None:
        """Questions have no deltas."""

    def answer(self, answer: Answer) -> None:
        self._worker.forget(self.id)
        self._release()
        if self._future.done():
            return
        if isinstance(answer, Refused):
            self._future.set_exception(refused(answer))
        else:
            self._future.set_result(answer)

    def lost(self, reason: str) -> None:
        self._release()
        if not self._future.done():
            error = self._worker.unavailable()
            self._future.set_exception(error or ModelLoading("The engine was restarted.", retry_after_s=1.0))
