"""The events of a request at whichever target answers it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from adapters.diverting import Take, divert
from adapters.types import Event


class Routed:
    """The events that `run` gives, with the short way of those of the target that it has set as the `answer`."""

    def __init__(self, run: Callable[[Routed], AsyncGenerator[Event]]) -> None:
        self.answer: AsyncIterator[Event] | None = None
        self._events = run(self)

    def __aiter__(self) -> Routed:
        return self

    def __anext__(self) -> Awaitable[Event]:
        return self._events.__anext__()

    def aclose(self) -> Awaitable[None]:
        return self._events.aclose()

    def divert(self, take: Take) -> None:
        """As `Direct` says, once a target has answered."""
        if self.answer is not None:
            divert(self.answer, take)
