"""What a process that died had recorded but not yet counted is counted by another one.

An entry is durable before the shared counters learn of it. A process that is killed in between leaves a charge that
only the ledger knows, and its hold would run out as if the request had cost nothing. So every process says now and then
that it lives; when one has stopped, another asks the ledger for the requests it ended last, whose ids begin with the
name of their process, and counts those whose holds are still open. A process that was only out of reach settles the
rest itself: a hold ends once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.limits.scripts import ADOPT, BEAT, LEAVE
from gateway.limits.windows import account_and_slot
from gateway.state.shared import SharedState, SharedStateUnavailable

BEAT_S = 5.0
DEAD_US = 20_000_000
# How long before its last beat a process may have ended a request that it had not told of; their clocks may differ.
BEFORE_US = 30_000_000
TOGETHER = 100
NAME_CHARS = 10
PROCESSES = "processes"

log = logging.getLogger(__name__)


class Charge(msgspec.Struct, frozen=True):
    """What an entry of the ledger took from its accounts; `id` is that of its reservation."""

    id: str
    accounts: tuple[str, ...]
    nano: int


# The charges of a process, by the beginning of their ids, which ended after a moment of the wall clock.
Charges = Callable[[str, int], Awaitable[Sequence[Charge]]]


class Orphans:
    """The life signs of this process, whose name is `name`, and what it does for those that died."""

    def __init__(self, shared: SharedState, name: str, charges: Charges) -> None:
        self._shared = shared
        self._number = int(name, 16)
        self._charges = charges

    async def watch(self) -> None:
        """Go on for ever."""
        while True:
            try:
                await self.beat()
            except SharedStateUnavailable:
                pass  # The counters say so themselves.
            except Exception:
                log.exception("what a process left that died could not be counted; it will be tried again")
            await asyncio.sleep(BEAT_S)

    async def beat(self) -> None:
        """Say that this process lives, and take up what those left that died."""
        reply = await self._shared.run(BEAT, [PROCESSES], [0, 0, 0, self._number, DEAD_US])
        for number, beat_us in zip(reply[::2], reply[1::2], strict=True):
            adopted = await self.adopt(await self._charges(f"{number:0{NAME_CHARS}x}", beat_us - BEFORE_US))
            await self._shared.run(LEAVE, [PROCESSES], [0, 0, 0, number])
            log.warning("a process has died; %d charges that it had not told of are counted now", adopted)

    async def adopt(self, charges: Sequence[Charge]) -> int:
        """Count charges that are in the ledger, as far as nobody has; how many. Where the counters know nothing of one,
        as after a loss, its accounts are to be read again."""
        adopted = 0
        for start in range(0, len(charges), TOGETHER):
            adopted += sum(await asyncio.gather(*map(self._adopt, charges[start : start + TOGETHER])))
        return adopted

    async def _adopt(self, charge: Charge) -> int:
        places = [account_and_slot(name) for name in charge.accounts]
        keys = [*(f"a:{account}" for account, _ in places), f"h:{charge.id}"]
        arguments = [0, 0, len(places), charge.nano, *(-1 if slot is None else slot for _, slot in places)]
        return (await self._shared.run(ADOPT, keys, arguments))[0]

    async def leave(self) -> None:
        """This process ends and has told everything."""
        await self._shared.run(LEAVE, [PROCESSES], [0, 0, 0, self._number])
