"""The counters of some limits, found once for all requests that have the same."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.limits.windows import Account, Window, durable_accounts

NEVER_US = 2**62


class Place:
    """How many requests of a scope run."""

    __slots__ = ("running",)

    def __init__(self) -> None:
        self.running = 0


class Bound:
    """Counters, each with its limit: accounts, gates, and the windows of rates of requests and of tokens. What it was
    made `of` is kept with it, so that nothing else can have the same ids meanwhile.

    `slots` are the windows of tokens with the slots they are in, `places` those of the accounts that have a window,
    which `slides` says. The slots of rates hold until `turns_us`, and each has an amount already, of zero at least.
    """

    def __init__(
        self,
        of: object,
        accounts: Sequence[tuple[str, Account, int]],
        gates: Sequence[tuple[str, Place, int]],
        requests: Sequence[tuple[Window, int]],
        tokens: Sequence[tuple[str, Window, int]],
    ) -> None:
        self._of = of
        self.accounts = [(account, limit_nano) for _, account, limit_nano in accounts]
        self.gates = [(place, limit) for _, place, limit in gates]
        self.requests = requests
        self.tokens = [(window, limit) for _, window, limit in tokens]
        self.names = tuple([name for name, _, _ in accounts])
        self.gate_keys = tuple([key for key, _, _ in gates])
        self._token_keys = [key for key, _, _ in tokens]
        self.slots: tuple[tuple[str, int], ...] = ()
        self.places: tuple[int | None, ...] = (None,) * len(accounts)
        self.durable_accounts = self.names
        self.slides = any(account.window is not None for account, _ in self.accounts)
        self.turns_us = 0

    def turn(self, now_us: int) -> None:
        """Go on to the slots of now, of windows that follow the clock which is never set."""
        windows = [window for window, _ in self.tokens]
        self.turns_us = NEVER_US
        for window in [*windows, *(window for window, _ in self.requests)]:
            window.advance(now_us)
            window.add(0)
            if window.ends_us is None:
                self.turns_us = min(self.turns_us, (window.last + 1) * window.slot_us)
        self.slots = tuple([(key, window.last) for key, window in zip(self._token_keys, windows, strict=True)])

    def slide(self, wall_us: int) -> None:
        """The same of accounts, which follow the time of day: it may be set back and forth."""
        places: list[int | None] = []
        for account, _ in self.accounts:
            account.advance(wall_us)
            places.append(None if account.window is None else account.window.add(0))
        if (moved := tuple(places)) != self.places:
            self.places, self.durable_accounts = moved, durable_accounts(self.names, moved)

    def occupy(self, nano: int, now_us: int) -> None:
        """Hold a place in every scope, and an amount of every account."""
        for account, _ in self.accounts:
            account.used_us = now_us
            account.held += nano
            account.holders += 1
        for place, _ in self.gates:
            place.running += 1
