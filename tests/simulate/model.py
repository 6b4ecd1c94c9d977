"""What limits and budgets mean, in the plainest words: every request is remembered, every question counts them all."""

from __future__ import annotations

from typing import NamedTuple

from gateway.limits.book import Ask, Grant
from gateway.limits.windows import SLOTS


class Now(NamedTuple):
    """The latest moments that the counters have seen: those of rates, and those of budgets with a window."""

    rates_us: int = 0
    money_us: int = 0


class Model:
    """Told of every admission and every end; says what has to hold."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.running: dict[str, Grant] = {}
        self.admitted: list[tuple[str, int, int]] = []  # (rate, when, amount)
        self.asks: dict[str, tuple[Ask, int]] = {}
        self.when_us: dict[str, int] = {}
        self.windowed: dict[str, tuple[str, int, int]] = {}  # by request: (account, when it was let in, nano)

    def held(self, account: str) -> int:
        return sum(grant.nano for grant in self.running.values() if account in grant.accounts)

    def counted(self, rate: str, since_us: int) -> int:
        return sum(amount for key, at_us, amount in self.admitted if key == rate and at_us > since_us)

    def spent_since(self, account: str, since_us: int) -> int:
        return sum(nano for name, at_us, nano in self.windowed.values() if name == account and at_us > since_us)

    def fits(self, ask: Ask, tokens: int, nano: int, now: Now) -> bool | None:
        """Whether a request may be let in; None where the slots of a window allow both."""
        now_us = now.rates_us
        sure = True
        for budget in ask.budgets:
            held, limit = self.held(budget.account), budget.limit_nano
            spent = self.spent.get(budget.account, 0)
            if budget.window_us is not None:
                spent = self.spent_since(budget.account, now.money_us - budget.window_us)
                at_most = self.spent_since(budget.account, now.money_us - (SLOTS + 1) * -(-budget.window_us // SLOTS))
                sure = sure and at_most + held + nano <= limit and at_most < limit
            if spent + held + nano > limit or spent >= limit:
                return False
        for gate in ask.gates:
            if sum(gate.key in grant.gates for grant in self.running.values()) >= gate.limit:
                return False
        for rate in ask.rates:
            amount = 1 if rate.unit == "requests" else tokens
            since_us = now_us - rate.window_us if rate.ends_us is None else -1
            if self.counted(rate.key, since_us) + amount > rate.limit:
                return False
            if rate.ends_us is not None:
                continue
            slot_us = -(-rate.window_us // SLOTS)
            sure = sure and self.counted(rate.key, now_us - (SLOTS + 1) * slot_us) + amount <= rate.limit
        return True if sure else None

    def admit(self, ask: Ask, grant: Grant, now: Now) -> None:
        self.running[grant.id] = grant
        self.when_us[grant.id] = now.money_us
        self.asks[grant.id] = ask, len(self.admitted)
        for rate in ask.rates:
            self.admitted.append((rate.key, now.rates_us, 1 if rate.unit == "requests" else grant.tokens))

    def end(self, identity: str, tokens: int, nano: int) -> int:
        """The request is over; what each of its accounts pays."""
        grant = self.running.pop(identity)
        ask, first = self.asks[identity]
        when_us, nano = self.when_us[identity], min(nano, grant.nano)
        for i, rate in enumerate(ask.rates, first):
            if rate.unit == "tokens":
                self.admitted[i] = (rate.key, self.admitted[i][1], min(tokens, grant.tokens))
        for account, place, durable in zip(grant.accounts, grant.places, grant.durable_accounts, strict=True):
            self.spent[durable] = self.spent.get(durable, 0) + nano
            if place is not None:
                self.windowed[identity] = account, when_us, nano
        return nano

    def lose(self, identity: str, nano: int, accounts: tuple[str, ...]) -> None:
        """The request was over, and what it cost is forgotten."""
        self.windowed.pop(identity, None)
        for account in accounts:
            self.spent[account] -= nano
