"""What a process that died had recorded but not yet counted is counted by another one.

An entry is durable before the shared counters learn of it. A process that is killed in between leaves a charge that
only the ledger knows, and its hold would run out as if the request had cost nothing. So every process says now and then
that it lives; when one has stopped, another asks the ledger for the requests it ended last, whose ids begin with the
name of their process, and counts those whose holds are still open. A process that was only out of reach settles the
rest itself: a hold ends once.

What else the dead process held is freed as far as it is a slot among requests that run at the same time, for those run
no longer. A process that was only out of reach takes its slots again when it renews its holds. The money of those
requests stays held until the holds run out: what they cost may be in the outbox or the journal on the disk of that
process, from where it is charged when it starts again, and until then nobody else may spend it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.limits.scripts import ADOPT, BEAT, LEAVE, RELEASE
from gateway.limits.windows import account_and_slot
from gateway.state.shared import SharedState, SharedStateUnavailable

BEAT_S = 5.0
# Of another process one can say that it was silent for this long only after having been heard for this long oneself,
# without a gap of a third of it. So nobody is taken for dead because the shared state was out of everybody's reach.
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


def noted_key(id: str) -> str:
    """Where the holds of the process are noted that a reservation is of, or any that has its name."""
    return f"o:{id[:NAME_CHARS]}"


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
            name = f"{number:0{NAME_CHARS}x}"
            adopted = await self.adopt(await self._charges(name, beat_us - BEFORE_US))
            freed = await self._release(name)
            await self._shared.run(LEAVE, [PROCESSES], [0, 0, 0, number])
            message = "a process has died; %d charges that it had not told of are counted now, %d requests ran"
            log.warning(message, adopted, freed)

    async def _release(self, name: str) -> int:
        """Free the slots of a process; how many requests had some."""
        freed, left = 0, 1
        while left:
            one, left = await self._shared.run(RELEASE, [noted_key(name)], [0, 0, 0, TOGETHER])
            freed += one
        return freed

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
