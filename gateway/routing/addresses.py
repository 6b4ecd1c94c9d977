"""The addresses of a name, asked for now and then; while nobody answers, those known last stay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from adapters.errors import AdapterError

log = logging.getLogger(__name__)

ADDRESSES_MAX = 64
RESOLVE_TIMEOUT_S = 5.0


class Addresses:
    """What a name leads to. `known` is empty until somebody has answered; `changed` is called when it is different."""

    def __init__(
        self,
        name: str,
        resolve: Callable[[], Awaitable[tuple[str, ...]]],
        changed: Callable[[], None],
        *,
        timeout_s: float = RESOLVE_TIMEOUT_S,
    ) -> None:
        self.known: tuple[str, ...] = ()
        self._name = name
        self._resolve = resolve
        self._changed = changed
        self._timeout_s = timeout_s
        self._asking: asyncio.Future[tuple[str, ...]] | None = None

    async def refresh(self) -> None:
        """Ask once. A question that hangs goes on in its thread, and no further one is asked beside it."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._resolve())
        done, _ = await asyncio.wait([self._asking], timeout=self._timeout_s)
        if not done:
            log.warning("nobody says what the addresses of %s are; those known last stay", self._name)
            return
        asked, self._asking = self._asking, None
        try:
            found = asked.result()
        except AdapterError:
            return  # Whoever asked has said why.
        self._settle(found)

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    def _settle(self, found: tuple[str, ...]) -> None:
        if len(found) > ADDRESSES_MAX:
            log.warning("%s has %d addresses; %d are used", self._name, len(found), ADDRESSES_MAX)
            found = found[:ADDRESSES_MAX]
        if found and found != self.known:
            log.info("the addresses of %s: %s", self._name, ", ".join(found))
            self.known = found
            self._changed()
