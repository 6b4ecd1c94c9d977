"""Counters that all replicas share, and what happens while they are away or have been lost.

Away: rates and concurrency are kept to this replica's part of them; budgets are not spent, because nobody knows what
the others spend. Back: each replica tells what was let in without the counters, and until all have, each keeps to its
part as well. So that their parts are parts of what is left, the replicas tell each other a few times a second what they
let in. Lost: every replica holds again what its running requests held, within a grace in which no account is
opened; then accounts are read from the ledger. A charge is told to the counters only once its entry is durable, so an
account that is read after a loss has it already, and one that was read before gets it; one that is being read is read
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from gateway import errors
from gateway.limits.book import Ask, Charged, Grant, Missing, Rate, Refusal
from gateway.limits.hearsay import Hearsay
from gateway.limits.limiter import Opening, wall_us
from gateway.limits.orphans import Charge, Orphans, noted_key
from gateway.limits.scripts import ADMIT, GRANTED, KINDS, LATE, LOAD, MISSING, RENEW, RESTORE, SETTLE, TELL
from gateway.limits.shares import Counted, Share, Slots
from gateway.limits.windows import BUSY_RETRY_US, Room, durable_accounts
from gateway.state.shared import PATIENCE_S, Reply, Script, SharedState, SharedStateUnavailable

GRACE_S = 3.0
RETRY_S = 0.2
CLOSE_S = 1.0
# Longer than a settlement is patient and then under way.
LOOK_AGAIN_S = PATIENCE_S + 0.01
WATCH_S = 0.25
HEARSAY = "limits-hearsay"
# A replica that has entries in its outbox when the counters are lost says so again and again.
INCOMPLETE = "ledger-incomplete"
INCOMPLETE_TTL_S = 2.0
# A replica that dies stops renewing, and the money it held comes back after this.
HOLD_US = 180_000_000
RENEW_US = 60_000_000

log = logging.getLogger(__name__)


class _End(NamedTuple):
    """What a request came to; `then` is told what was charged."""

    ask: Ask
    grant: Grant
    tokens: int
    nano: int
    then: Callable[[tuple[Charged, ...]], None]

    @property
    def arguments(self) -> list[int]:
        return _settle_arguments(self.ask, self.tokens, self.nano, self.grant.places)


class SharedCounters:
    """The limiter's counters in shared state. `replicas` share each limit while it is away; `complete` says that
    nothing which this one has told the counters waits outside of the ledger."""

    def __init__(
        self,
        shared: SharedState,
        replicas: int,
        steady_us: Callable[[], int],
        *,
        complete: Callable[[], bool] = lambda: True,
        grace_s: float = GRACE_S,
        look_again_s: float = LOOK_AGAIN_S,
        orphans: Orphans | None = None,
    ) -> None:
        self._shared = shared
        self._replicas = replicas
        self._steady_us = steady_us
        self._grace_us = round(grace_s * 1e6)
        self._look_again_s = look_again_s
        self._complete = complete
        self._incomplete_since_us: int | None = None
        self._epoch: str | None = None
        self._epoch_seen_us = 0
        self._live: dict[str, tuple[Grant, Ask]] = {}
        self._counted: dict[str, Slots] = {}
        self._renewed_us = steady_us()
        self._hearsay = Hearsay(secrets.token_hex(8))
        self._share = Share(replicas, self._hearsay)
        self._stop_listening: Callable[[], None] = lambda: None
        self._away = False
        self._careful_until_us = 0
        self._tasks: set[asyncio.Future[Any]] = set()
        self._orphans = orphans
        self._watching: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch for losses, and for other processes that die."""
        if self._replicas > 1:
            self._stop_listening = self._shared.listen(HEARSAY, self._heard)
        self._watching = [asyncio.create_task(self._watch())]
        if self._orphans is not None:
            self._watching.append(asyncio.create_task(self._orphans.watch()))

    async def close(self) -> None:
        """Stop; what is still to be settled is tried once more, and else ends by itself when its hold does."""
        self._stop_listening()
        for watching in self._watching:
            watching.cancel()
            await asyncio.wait([watching])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        late = tuple(self._tasks)
        for task in late:
            task.cancel()
        if self._orphans is not None and not late and not self._live:
            with contextlib.suppress(SharedStateUnavailable):
                await self._orphans.leave()

    @property
    def holds(self) -> int:
        return len(self._live) + self._share.holds

    async def admit(self, ask: Ask) -> Grant | Refusal | Missing:
        decision = await self._decide(ask)
        if self._replicas > 1 and isinstance(decision, Refusal) and decision.retry_us == BUSY_RETRY_US:
            # What holds it may have ended at another replica, whose settlement is patient.
            await asyncio.sleep(self._look_again_s)
            decision = await self._decide(replace(ask, now_us=self._steady_us()))
        return decision

    async def _decide(self, ask: Ask) -> Grant | Refusal | Missing:
        self._notice()
        ask = replace(ask, expires_us=ask.now_us + HOLD_US)
        if ask.now_us < self._careful_until_us and (refusal := self._share.refuse(ask)) is not None:
            return refusal
        try:
            reply = await self._shared.run(ADMIT, _keys(ask), _arguments(ask))
        except SharedStateUnavailable:
            self._undo(ask)
            return self._admit_alone(ask)
        except asyncio.CancelledError:
            # Whether it was let in is not known, so it is given back either way.
            self._undo(ask)
            raise
        decision = _decision(ask, reply)
        if isinstance(decision, Grant):
            self._live[ask.id] = decision, ask
            self._counted[ask.id] = self._share.count(ask, decision.tokens)
        return decision

    def _admit_alone(self, ask: Ask) -> Grant | Refusal | Missing:
        """This replica's part of the limits, as far as they are not about money."""
        if ask.budgets:
            message = "What the budget still has cannot be known right now. Try again shortly."
            raise errors.error("budget_unavailable", message, retry_after_s=1)
        self._away = True
        return self._share.admit(ask)

    async def ready(self, accounts: Sequence[str]) -> Mapping[str, int]:
        """Wait until what was lost has been held again; how often each account was `late`."""
        while True:
            self._notice()
            left_us = self._epoch_seen_us + self._grace_us - self._steady_us()
            if left_us <= 0:
                break
            await asyncio.sleep(left_us / 1e6)
        with _unavailable():
            if await self._shared.get(INCOMPLETE) is not None:
                raise SharedStateUnavailable("a replica has entries that are not in the ledger yet")
        late = await self._run(LATE, [f"a:{account}" for account in accounts], [0, 0, len(accounts)])
        return dict(zip(accounts, late, strict=True))

    async def load(self, opening: Opening) -> None:
        by_slot = [value for item in opening.slots.items() for value in item]
        arguments = [0, 0, 1, opening.mark, opening.spent_nano, *by_slot]
        await self._run(LOAD, [f"a:{opening.account}"], arguments)

    async def forget(self, account: str) -> bool:
        # Another replica may have told a charge whose entry is still in its outbox.
        return False

    async def _run(self, script: Script, keys: list[str], arguments: list[int]) -> Reply:
        """Run a script that is about money and may fail."""
        with _unavailable():
            return await self._shared.run(script, keys, arguments)

    def settle(
        self,
        grant: Grant,
        tokens: int,
        nano: int,
        then: Callable[[tuple[Charged, ...]], None],
        durable: Awaitable[None] | None,
    ) -> None:
        if self._share.settle(grant.id, tokens):
            return
        _, ask = self._live[grant.id]
        self._share.uncount(self._counted.pop(grant.id), grant.tokens - min(tokens, grant.tokens))
        end = _End(ask, grant, tokens, min(nano, grant.nano), then)
        if durable is None:
            self._tell_end(end)
        else:
            self._spawn(self._end_when(durable, end))

    async def _end_when(self, durable: Awaitable[None], end: _End) -> None:
        await durable
        self._tell_end(end)

    def _tell_end(self, end: _End) -> None:
        """Settle with the next admission, without a task of its own."""
        told = asyncio.ensure_future(self._shared.run(SETTLE, _keys(end.ask), end.arguments, patient=True))
        self._tasks.add(told)
        told.add_done_callback(partial(self._ended, end))

    def _ended(self, end: _End, told: asyncio.Future[Reply]) -> None:
        self._tasks.discard(told)
        if told.cancelled():
            return
        if isinstance(told.exception(), SharedStateUnavailable):
            self._spawn(self._end_later(end))
        else:
            self._note_end(end, told.result())

    async def _end_later(self, end: _End) -> None:
        await asyncio.sleep(RETRY_S)
        self._note_end(end, await self._insist(SETTLE, _keys(end.ask), end.arguments))

    def _note_end(self, end: _End, reply: Reply) -> None:
        self._live.pop(end.grant.id, None)
        if reply[0]:
            sums = zip(end.grant.accounts, reply[1:], strict=True)
            end.then(tuple(Charged(account, end.nano, spent) for account, spent in sums if spent >= 0))

    def _undo(self, ask: Ask) -> None:
        """Give back what may have been held. It comes after the admission on every connection."""
        self._spawn(self._give_back(ask))

    async def _give_back(self, ask: Ask) -> None:
        await self._insist(SETTLE, _keys(ask), _settle_arguments(ask, 0, 0))

    async def _insist(self, script: Script, keys: list[str], arguments: list[int]) -> Reply:
        """Run an idempotent script until there is an answer."""
        while True:
            try:
                return await self._shared.run(script, keys, arguments)
            except SharedStateUnavailable:
                await asyncio.sleep(RETRY_S)

    def adopt(self, charges: Sequence[Charge]) -> None:
        """Charges have reached the ledger after others were read from it, or were left by a process that is gone."""
        charges = [charge for charge in charges if charge.id not in self._live]
        if self._orphans is not None and charges:
            self._spawn(self._adopt(self._orphans, charges))

    async def _adopt(self, orphans: Orphans, charges: Sequence[Charge]) -> None:
        while True:
            try:
                await orphans.adopt(charges)
                return
            except SharedStateUnavailable:
                await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        while True:
            try:
                self._notice()
                await self._warn()
                await self._renew()
                await self._say()
            except Exception:
                # Neither may a bug of ours end this: what requests hold would run out while they run.
                log.exception("what requests of this replica hold could not be looked after; it will be tried again")
            await asyncio.sleep(WATCH_S)

    async def _warn(self) -> None:
        """Keep the others from opening accounts while entries of this replica that lost counters knew wait outside of
        the ledger."""
        if self._complete():
            self._incomplete_since_us = None
            return
        if self._incomplete_since_us is None:
            self._incomplete_since_us = self._steady_us()
        if self._incomplete_since_us <= self._epoch_seen_us:
            with contextlib.suppress(SharedStateUnavailable):
                await self._shared.set(INCOMPLETE, b"1", INCOMPLETE_TTL_S)

    async def _say(self) -> None:
        """Tell the other replicas what this one let in."""
        if self._replicas == 1 or self._shared.degraded:
            return
        now_us = self._steady_us()
        with contextlib.suppress(SharedStateUnavailable):
            for message in self._hearsay.messages(self._share.changed(), now_us):
                await self._shared.publish(HEARSAY, message)

    def _heard(self, message: bytes | None) -> None:
        if message is None:
            return
        try:
            self._hearsay.hear(message, self._steady_us())
        except msgspec.DecodeError as error:
            # Of another release, perhaps.
            log.debug("what a replica let in cannot be read: %s", error)

    async def _renew(self) -> None:
        """Tell now and then that the requests which hold something still run."""
        now_us = self._steady_us()
        if now_us - self._renewed_us < RENEW_US:
            return
        self._renewed_us = now_us
        self._share.forget(now_us)
        self._hearsay.forget(now_us, wall_us())
        for grant, ask in list(self._live.values()):
            if ask.now_us + RENEW_US > now_us:
                continue
            try:
                await self._shared.run(RENEW, _held_keys(grant), _held_arguments(grant))
            except SharedStateUnavailable:
                return

    def _notice(self) -> None:
        """See whether everything was lost, and then hold again what still runs; or whether the counters are back."""
        if self._shared.degraded:
            self._away = True
            return
        epoch, now_us = self._shared.epoch, self._steady_us()
        if epoch == self._epoch and not self._away:
            return
        lost, self._away = epoch != self._epoch, False
        if self._epoch is not None:
            self._careful_until_us = now_us + self._grace_us
        self._epoch = epoch
        for counted in self._share.take(now_us, everything=lost):
            self._spawn(self._tell(counted))
        if lost:
            self._epoch_seen_us = now_us
        for grant, _ in self._live.values():
            # Holds may also have run out while nobody could be told that their requests still run.
            self._spawn(self._restore(grant) if lost else self._prolong(grant))

    async def _prolong(self, grant: Grant) -> None:
        await self._insist(RENEW, _held_keys(grant), _held_arguments(grant))

    async def _tell(self, counted: Counted) -> None:
        # An age may have been a whole slot more when it was rounded, so that it is told as one less.
        amounts = [value for age, amount in counted.amounts for value in (max(age - 1, 0), amount)]
        await self._insist(TELL, [f"w:{counted.key}"], [0, 0, 0, counted.slot_us, int(counted.periodic), *amounts])

    async def _restore(self, grant: Grant) -> None:
        places = (-1 if place is None else place for place in grant.places)
        await self._insist(RESTORE, _held_keys(grant), [*_held_arguments(grant), grant.nano, *places])

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """An answer for who needs a budget that cannot be known."""
    try:
        yield
    except SharedStateUnavailable as error:
        message = "What the budget still has cannot be known right now. Try again shortly."
        raise errors.error("budget_unavailable", message, retry_after_s=1) from error


def _keys(ask: Ask) -> list[str]:
    return [
        *(f"w:{rate.key}" for rate in ask.rates),
        *(f"g:{gate.key}" for gate in ask.gates),
        *(f"a:{budget.account}" for budget in ask.budgets),
        noted_key(ask.id),
        f"h:{ask.id}",
    ]


def _held_keys(grant: Grant) -> list[str]:
    held = [*(f"g:{key}" for key in grant.gates), *(f"a:{name}" for name in grant.accounts)]
    return [*held, noted_key(grant.id), f"h:{grant.id}"]


def _held_arguments(grant: Grant) -> list[int]:
    return [0, len(grant.gates), len(grant.accounts), HOLD_US]


def _unit(rate: Rate) -> int:
    return KINDS.index(rate.unit)


def _arguments(ask: Ask) -> list[int]:
    arguments = [len(ask.rates), len(ask.gates), len(ask.budgets), ask.expires_us - ask.now_us]
    arguments += [ask.input_tokens, ask.input_nano, ask.output_tokens, ask.choices, ask.unit_nano]
    arguments.append(-1 if ask.output_tokens_min is None else ask.output_tokens_min)
    for rate in ask.rates:
        arguments += [_unit(rate), rate.limit, rate.window_us, rate.ends_us or 0]
    arguments += [gate.limit for gate in ask.gates]
    for budget in ask.budgets:
        arguments += [budget.limit_nano, budget.window_us or 0]
    return arguments


def _settle_arguments(ask: Ask, tokens: int, nano: int, places: Sequence[int | None] | None = None) -> list[int]:
    """`places` None: of a request that was perhaps let in, and costs nothing."""
    arguments = [len(ask.rates), len(ask.gates), len(ask.budgets), tokens, nano]
    arguments += [rate.window_us for rate in ask.rates]
    return arguments + [-1 if place is None else place for place in places or (None,) * len(ask.budgets)]


def _decision(ask: Ask, reply: Reply) -> Grant | Refusal | Missing:
    if reply[0] == MISSING:
        return Missing(tuple(ask.budgets[i].account for i in reply[1:]))
    if reply[0] == GRANTED:
        _, output_tokens, tokens, nano, *rest = reply
        slots = zip(ask.rates, rest[6:], strict=False)
        accounts = tuple(budget.account for budget in ask.budgets)
        places = tuple(None if place < 0 else place for place in rest[6 + len(ask.rates) :])
        return Grant(
            id=ask.id,
            expires_us=ask.expires_us,
            output_tokens=output_tokens,
            tokens=tokens,
            nano=nano,
            slots=tuple((rate.key, slot) for rate, slot in slots if rate.unit == "tokens"),
            gates=tuple(gate.key for gate in ask.gates),
            accounts=accounts,
            places=places,
            durable_accounts=durable_accounts(accounts, places),
            requests_room=_room(rest[:3]),
            tokens_room=_room(rest[3:6]),
        )
    _, kind, index, limit, remaining, retry_us, *rest = reply
    names = [rate.key for rate in ask.rates]
    if kind == 2:
        names = [gate.key for gate in ask.gates]
    elif kind == 3:
        names = [budget.account for budget in ask.budgets]
    return Refusal(
        kind=KINDS[kind],
        key=names[index],
        limit=limit,
        remaining=remaining,
        retry_us=None if retry_us < 0 else retry_us,
        requests_room=_room(rest[:3]),
        tokens_room=_room(rest[3:6]),
    )


def _room(values: Reply) -> Room | None:
    return None if values[0] < 0 else Room(values[0], values[1], values[2])
