"""What limits and budgets mean, in the plainest words: every request is remembered, every question counts them all."""

from __future__ import annotations

from gateway.limits.book import SLOTS, Ask, Grant


class Model:
    """Told of every admission and every end; says what has to hold."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.running: dict[str, Grant] = {}
        self.admitted: list[tuple[str, int, int]] = []  # (rate, when, amount)
        self.asks: dict[str, tuple[Ask, int]] = {}

    def held(self, account: str) -> int:
        return sum(grant.nano for grant in self.running.values() if account in grant.accounts)

    def counted(self, rate: str, since_us: int) -> int:
        return sum(amount for key, at_us, amount in self.admitted if key == rate and at_us > since_us)

    def fits(self, ask: Ask, tokens: int, nano: int, now_us: int) -> bool | None:
        """Whether a request may be let in; None where the slots of a window allow both."""
        for budget in ask.budgets:
            spent = self.spent.get(budget.account, 0)
            if spent + self.held(budget.account) + nano > budget.limit_nano or spent >= budget.limit_nano:
                return False
        for gate in ask.gates:
            if sum(gate.key in grant.gates for grant in self.running.values()) >= gate.limit:
                return False
        sure = True
        for rate in ask.rates:
            amount = 1 if rate.unit == "requests" else tokens
            if self.counted(rate.key, now_us - rate.window_us) + amount > rate.limit:
                return False
            slot_us = -(-rate.window_us // SLOTS)
            sure = sure and self.counted(rate.key, now_us - (SLOTS + 1) * slot_us) + amount <= rate.limit
        return True if sure else None

    def admit(self, ask: Ask, grant: Grant, now_us: int) -> None:
        self.running[grant.id] = grant
        self.asks[grant.id] = ask, len(self.admitted)
        for rate in ask.rates:
            self.admitted.append((rate.key, now_us, 1 if rate.unit == "requests" else grant.tokens))

    def end(self, identity: str, tokens: int, nano: int) -> int:
        """The request is over; what each of its accounts pays."""
        grant = self.running.pop(identity)
        ask, first = self.asks[identity]
        for i, rate in enumerate(ask.rates, first):
            if rate.unit == "tokens":
                self.admitted[i] = (rate.key, self.admitted[i][1], min(tokens, grant.tokens))
        for account in grant.accounts:
            self.spent[account] = self.spent.get(account, 0) + min(nano, grant.nano)
        return min(nano, grant.nano)
