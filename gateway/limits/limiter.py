"""Reserves the worst case of a request in every scope that limits it, and settles what it really was."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec.structs import replace

from gateway import errors
from gateway.auth import Principal
from gateway.catalog import MILLION, Price
from gateway.config_limits import LimitsConfig
from gateway.errors import GatewayError
from gateway.limits.book import Ask, Book, Budget, Charged, Grant, Missing, NotHeld, Refusal
from gateway.limits.plans import PLANS_MAX, WALLET, Allowance, Plan, Plans
from gateway.limits.told import refusal_error
from gateway.limits.windows import BUSY_RETRY_US, SLOTS, durable_account, slot_length_us

HOLD_US = 2 * 3600 * 1_000_000
OUTPUT_TOKENS_MIN = 16
# How far the clocks of replicas and stores may be apart, for what is read of a window.
CLOCKS_APART_US = 30_000_000
SWEEP_US = 60_000_000
REREAD_US = 60_000_000
REREAD_MAX = 10_000
IDLE_US = 3600 * 1_000_000

log = logging.getLogger(__name__)


def wall_us() -> int:
    """The time of day, which may be set."""
    return time.time_ns() // 1000


def steady_us() -> int:
    """A time that only goes on."""
    return time.monotonic_ns() // 1000


class Balance(msgspec.Struct, frozen=True):
    """What ever went out of an account, and into it, in nano-USD. A budget has no credits, only its limit."""

    debits_nano: int = 0
    credits_nano: int = 0


class Need(msgspec.Struct, frozen=True, gc=False):
    """What a request may use at most. `cuttable`: its author set no bound, so the answer may be bounded for it. `kept`:
    its provider may keep part of the prompt, `audio`: some of it, or of the answer, may be audio."""

    input_tokens: int
    output_tokens: int = 0
    choices: int = 1
    cuttable: bool = False
    kept: bool = False
    audio: bool = False


class Alert(msgspec.Struct, frozen=True):
    """A budget's spending has reached a percentage of it, or a wallet is low, or empty and has paused its keys.

    What happens once has one `id`, whoever notices it: a threshold in a period, a wallet between two top-ups.
    """

    id: str
    subject: str
    account: str
    percent: int
    spent_nano: int
    limit_nano: int
    kind: Literal["budget", "low", "paused"] = "budget"


class Standing(msgspec.Struct, frozen=True):
    """How a budget or a wallet stands; `ends_us` is when the budget begins anew."""

    account: str
    spent_nano: int
    limit_nano: int
    ends_us: int | None = None


class Opening(msgspec.Struct, frozen=True):
    """What the ledger says was spent of an account; with a window also by slot, of which `spent_nano` is the sum."""

    account: str
    spent_nano: int
    window_us: int | None
    slots: Mapping[int, int]
    mark: int


class Counters(Protocol):
    """Where the counters are: `Book` in this process, or a store that replicas share."""

    async def admit(self, ask: Ask) -> Grant | Refusal | Missing: ...

    async def ready(self, accounts: Sequence[str]) -> Mapping[str, int]:
        """Wait until accounts may be read from durable state, to be loaded; a mark for each, which `load` wants."""
        ...

    async def load(self, opening: Opening) -> None:
        """Make an account known, unless it is or has changed since its mark."""
        ...

    async def forget(self, account: str) -> bool:
        """Read an account anew with the next request; False when that cannot be now."""
        ...

    def settle(
        self,
        grant: Grant,
        tokens: int,
        nano: int,
        then: Callable[[tuple[Charged, ...]], None],
        durable: Awaitable[None] | None,
    ) -> None:
        """End a hold without waiting; `then` learns what was charged, at once or after `durable`."""
        ...


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What a running request holds, and under which limits."""

    grant: Grant
    plan: Plan


class LocalCounters:
    """The counters of a gateway that is alone: a book in its memory.

    `complete` says whether all that was settled is in the accounts' durable sums; `caught_up` waits until what was
    settled before is.
    """

    def __init__(
        self, complete: Callable[[], bool] = lambda: False, caught_up: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.book = Book()
        self._complete = complete
        self._caught_up = caught_up
        self._swept_us = 0

    @property
    def holds(self) -> int:
        return self.book.holds

    async def admit(self, ask: Ask) -> Grant | Refusal | Missing:
        return self.decide(ask)

    def decide(self, ask: Ask) -> Grant | Refusal | Missing:
        """The same without a wait."""
        now_us = ask.now_us
        if now_us - self._swept_us >= SWEEP_US:
            self._swept_us = now_us
            for grant in self.book.expire(now_us):
                log.error("the reservation %s was never settled", grant.id)
            self.book.forget(now_us, IDLE_US if self._complete() else None)
        return self.book.admit(ask)

    async def ready(self, accounts: Sequence[str]) -> Mapping[str, int]:
        return {}

    async def load(self, opening: Opening) -> None:
        self.book.load(opening.account, opening.spent_nano, opening.window_us, opening.slots)

    async def forget(self, account: str) -> bool:
        if self._caught_up is not None:
            await self._caught_up()
        return self._complete() and self.book.unload(account)

    def settle(
        self,
        grant: Grant,
        tokens: int,
        nano: int,
        then: Callable[[tuple[Charged, ...]], None],
        durable: Awaitable[None] | None,
    ) -> None:
        try:
            charged = self.book.settle(grant.id, tokens, nano)
        except NotHeld:
            # Requests are ended long before their holds are. The entry is in the ledger all the same.
            log.error("the reservation %s was settled too late", grant.id)
            return
        then(charged)


class Limiter:
    """The one place where a request is let in. `balances` reads accounts from durable state.

    `now_us` is the wall clock, which periods follow; `steady_us` is never set, and rates and holds follow it.
    """

    def __init__(
        self,
        config: LimitsConfig,
        counters: Counters,
        balances: Callable[[Sequence[str]], Awaitable[dict[str, Balance]]],
        *,
        now_us: Callable[[], int],
        steady_us: Callable[[], int],
        alert: Callable[[Alert], None] = lambda _: None,
        wallet_low_nano: int = 0,
    ) -> None:
        self._plans = Plans(config)
        self._counters = counters
        # Those in this process need not be waited for.
        self._decide = counters.decide if isinstance(counters, LocalCounters) else None
        self._balances = balances
        self._now_us = now_us
        self._steady_us = steady_us
        self._alert = alert
        self._wallet_low_nano = wallet_low_nano
        self._credits: dict[str, int] = {}
        # Of plans with wallets, by their ids.
        self._budgets: dict[int, tuple[Plan, tuple[Budget, ...]]] = {}
        self._reread_us: dict[str, int] = {}

    def plan(self, principal: Principal, model: str) -> Plan:
        """The limits that apply now."""
        return self._plans.plan(principal, model, self._now_us())

    def reserve_now(
        self, identity: str, plan: Plan, need: Need, price: Price | None, now: tuple[int, int]
    ) -> Reservation | None:
        """What `reserve` does, where nothing is in the way and nobody else has to be asked; None: ask that. `now` is
        what both clocks say, first the one that is never set."""
        if self._decide is None or (price is None and plan.money):
            return None
        decision = self._decide(self._ask(identity, plan, need, price, *now))
        return Reservation(decision, plan) if type(decision) is Grant else None

    async def reserve(self, identity: str, plan: Plan, need: Need, price: Price | None) -> Reservation | Refusal:
        """Hold the worst case; raises `model_price_unknown` where money is limited and the price is not known."""
        if plan.money and price is None:
            message = "This model has no price, and your key may only use models that have one."
            raise errors.error("model_price_unknown", message, param="model")
        ask = self._ask_now(identity, plan, need, price)
        decision = await self._counters.admit(ask)
        while isinstance(decision, Missing):
            await self._load([budget for budget in ask.budgets if budget.account in decision.accounts])
            ask = self._ask_now(identity, plan, need, price)
            decision = await self._counters.admit(ask)
        if isinstance(decision, Refusal) and decision.key in plan.wallets and await self._credited(decision.key):
            decision = await self._counters.admit(self._ask_now(identity, plan, need, price))
        if isinstance(decision, Refusal) and await self._reread(decision):
            return await self.reserve(identity, plan, need, price)
        if isinstance(decision, Refusal):
            return self._until_reset(plan, ask, decision)
        assert isinstance(decision, Grant), "an account was just loaded"
        return Reservation(decision, plan)

    async def _reread(self, refusal: Refusal) -> bool:
        """Whether to decide once more, with what the ledger says: corrections give money back behind our back. A budget
        is looked at again at most once in a while."""
        now_us, account = self._steady_us(), refusal.key
        if refusal.kind != "budget" or refusal.retry_us == BUSY_RETRY_US:
            return False
        if now_us - self._reread_us.get(account, -REREAD_US) < REREAD_US:
            return False
        self._reread_us[account] = now_us
        if len(self._reread_us) > REREAD_MAX:
            del self._reread_us[next(iter(self._reread_us))]
        return await self._counters.forget(account)

    def _until_reset(self, plan: Plan, ask: Ask, refusal: Refusal) -> Refusal:
        """The refusal with the end of the budget's period, if the request could fit into a new one."""
        for budget, ends_us in zip(plan.budgets, plan.budget_ends_us, strict=True):
            if budget.account == refusal.key and refusal.kind == "budget" and ends_us is not None:
                output = ask.output_tokens if ask.output_tokens_min is None else ask.output_tokens_min
                if ask.input_nano + min(output, ask.output_tokens) * ask.unit_nano <= budget.limit_nano:
                    return replace(refusal, resets_us=max(ends_us - ask.wall_us, 1))
        return refusal

    def _ask_now(self, identity: str, plan: Plan, need: Need, price: Price | None) -> Ask:
        return self._ask(identity, plan, need, price, self._steady_us(), self._now_us())

    def _ask(self, identity: str, plan: Plan, need: Need, price: Price | None, now_us: int, wall_us: int) -> Ask:
        budgets = self._with_wallets(plan) if plan.wallets else plan.budgets
        input_nano = unit_nano = 0
        if price is not None:
            input_nano, unit_nano = price.worst_nano(need.input_tokens, need.choices, need.kept, need.audio)
        # By position, which is quicker than by name, and as in the definition.
        return Ask(
            identity,
            now_us,
            now_us + HOLD_US,
            wall_us,
            plan.rates,
            plan.gates,
            budgets,
            need.input_tokens,
            input_nano,
            need.output_tokens,
            need.choices,
            unit_nano,
            OUTPUT_TOKENS_MIN if need.cuttable else None,
        )

    def _with_wallets(self, plan: Plan) -> tuple[Budget, ...]:
        """The budgets of a plan and its wallets with what they have, the same tuple for as long as that is the same."""
        known = self._budgets.get(id(plan))
        if known is None:
            wallets = [Budget(wallet, self._credits.get(wallet, 0)) for wallet in plan.wallets]
            if len(self._budgets) >= PLANS_MAX:
                self._budgets.clear()
            # With the plan, so that no other one has its id meanwhile.
            known = self._budgets[id(plan)] = plan, (*plan.budgets, *wallets)
        return known[1]

    async def take(self, wallet: str, nano: int, work: Callable[[], Awaitable[bool]]) -> bool:
        """Hold an amount of a wallet while `work` takes it out, so that no request spends it as well; what `work` says,
        which is whether it did.

        Raises `insufficient_quota`, or `rate_limit_exceeded` where running requests hold it for now. Where `work` fails
        otherwise than by a refusal it may have been done all the same, and the amount counts as spent until the account
        is read anew.
        """
        plan = Plan((), (), (), (), {}, (WALLET + wallet,), 0, None)
        price = Price(nano * MILLION, nano * MILLION, 0)
        held = await self.reserve(f"withheld:{secrets.token_hex(12)}", plan, Need(1), price)
        if isinstance(held, Refusal):
            raise refusal_error(held)
        taken_nano = nano
        try:
            done = await work()
            taken_nano = nano if done else 0
            return done
        except GatewayError:
            taken_nano = 0
            raise
        finally:
            self.settle(held, 0, taken_nano)

    async def _load(self, budgets: Sequence[Budget]) -> None:
        marks = await self._counters.ready([budget.account for budget in budgets])
        spent = await self._spent(budgets)
        for budget in budgets:
            account, slots = budget.account, spent[budget.account]
            by_slot = {slot: nano for slot, nano in slots.items() if slot is not None}
            nano = sum(slots.values())
            await self._counters.load(Opening(account, nano, budget.window_us, by_slot, marks.get(account, 0)))

    async def _spent(self, budgets: Sequence[Budget]) -> dict[str, dict[int | None, int]]:
        """What the ledger has of each account; of one with a window by slot."""
        names = {budget.account: self._durable_names(budget) for budget in budgets}
        found = await self._balances([name for slots in names.values() for name in slots.values()])
        for account in names:
            if account.startswith(WALLET):
                self._credit(account, found.get(account, Balance()).credits_nano)
        return {
            account: {slot: found[name].debits_nano for slot, name in slots.items() if name in found}
            for account, slots in names.items()
        }

    def _durable_names(self, budget: Budget) -> dict[int | None, str]:
        """By slot what the ledger calls an account, as far as it can count now."""
        if budget.window_us is None:
            return {None: budget.account}
        slot_us = slot_length_us(budget.window_us)
        now, apart = self._now_us() // slot_us, CLOCKS_APART_US // slot_us + 1
        return {slot: durable_account(budget.account, slot) for slot in range(now - SLOTS - apart, now + apart + 1)}

    async def _credited(self, wallet: str) -> bool:
        """Whether a wallet got more since it was looked at, here or by another process."""
        before = self._credits.get(wallet, 0)
        self._credit(wallet, (await self._balances((wallet,))).get(wallet, Balance()).credits_nano)
        return self._credits.get(wallet, 0) > before

    def _credit(self, wallet: str, credits_nano: int) -> None:
        # What went in only grows, so the larger of two readings is the later one.
        if credits_nano > self._credits.get(wallet, 0):
            self._credits[wallet] = credits_nano
            self._budgets.clear()

    async def standings(self, principal: Principal) -> list[Standing]:
        """The budgets and wallets of a principal as far as they are durable; those of models left out."""
        plan = self.plan(principal, "")
        spent = await self._spent(plan.budgets) if plan.budgets else {}
        standings = [
            Standing(budget.account, self._running(budget, spent[budget.account]), budget.limit_nano, ends_us)
            for budget, ends_us in zip(plan.budgets, plan.budget_ends_us, strict=True)
            if not budget.account.startswith("model:")
        ]
        found = await self._balances(plan.wallets) if plan.wallets else {}
        for wallet in plan.wallets:
            balance = found.get(wallet, Balance())
            standings.append(Standing(wallet, balance.debits_nano, balance.credits_nano))
        return standings

    def _running(self, budget: Budget, slots: Mapping[int | None, int]) -> int:
        """What of an account's slots has not left its window."""
        first = 0 if budget.window_us is None else self._now_us() // slot_length_us(budget.window_us) - SLOTS
        return sum(nano for slot, nano in slots.items() if slot is None or slot >= first)

    def settle(self, reservation: Reservation, tokens: int, nano: int, durable: Awaitable[None] | None = None) -> None:
        """End the hold with what was used; a plain call, so that a cancelled request can still make it."""
        allowances = reservation.plan.allowances

        def note(charged: tuple[Charged, ...]) -> None:
            for one in charged:
                if one.nano > 0:
                    allowance = allowances.get(one.account)
                    if allowance is None:
                        self._note_wallet(one)
                    elif one.spent_nano >= allowance.alert_nano:
                        self._note(one, allowance)

        self._counters.settle(reservation.grant, tokens, nano, note, durable)

    def _note(self, charged: Charged, allowance: Allowance) -> None:
        """Report the highest threshold that is reached. Who hears it knows what was reported: after a crash it may be
        a later charge that reports it."""
        spent_nano, limit_nano = charged.spent_nano, allowance.limit_nano
        for percent in allowance.percents:
            if limit_nano * percent <= spent_nano * 100:
                window_s = allowance.config.window_s
                turn = "" if window_s is None else f":{self._now_us() // (window_s * 1_000_000)}"
                id = f"{charged.account}{turn}:{percent}"
                self._alert(Alert(id, allowance.subject, charged.account, percent, spent_nano, limit_nano))
                return

    def _note_wallet(self, charged: Charged) -> None:
        """Report a wallet that is low or empty, once between two top-ups."""
        credits_nano = self._credits.get(charged.account, 0)
        left_nano = credits_nano - charged.spent_nano
        if left_nano > self._wallet_low_nano:
            return
        name, percent = charged.account, charged.spent_nano * 100 // max(credits_nano, 1)
        kind: Literal["low", "paused"] = "low" if left_nano > 0 else "paused"
        id = f"{name}:{kind}:{credits_nano}"
        self._alert(Alert(id, name, name, min(percent, 100), charged.spent_nano, credits_nano, kind))
