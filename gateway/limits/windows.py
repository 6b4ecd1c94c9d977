"""What the book counts with: amounts of a sliding window or of a calendar period, and accounts of money."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

SLOTS = 60
BUSY_RETRY_US = 1_000_000
DAY_US = 86_400_000_000
_SLOT = re.compile(r":(\d{1,9})s:(\d{1,15})\Z")


class Room(msgspec.Struct, frozen=True, gc=False):
    """How a rate stands after a decision; it is whole again after `reset_us`."""

    limit: int
    remaining: int
    reset_us: int


def slot_length_us(window_us: int) -> int:
    """A window is `SLOTS` slots of this length, and the running one."""
    return -(-window_us // SLOTS)


class Window:
    """Amounts of the last 60 slots and the running one; `held` of them may still be given back.

    With `ends_us` it is a calendar period instead: a single slot that lasts until then.
    """

    __slots__ = ("amounts", "ends_us", "held", "last", "slot_us", "total")

    def __init__(self, window_us: int, ends_us: int | None = None) -> None:
        self.slot_us = slot_length_us(window_us)
        self.ends_us = ends_us
        self.amounts: dict[int, int] = {}
        self.total = 0
        self.held = 0
        self.last = 0

    def advance(self, now_us: int) -> None:
        """Drop what has left the window."""
        slot = now_us // self.slot_us
        if slot <= self.last or self.ends_us is not None:
            return
        self.last = slot
        amounts = self.amounts
        while amounts:
            oldest = next(iter(amounts))
            if oldest >= slot - SLOTS:
                return
            self.total -= amounts.pop(oldest)

    def fill(self, amounts: Mapping[int, int]) -> None:
        """Count what is known from elsewhere, by slot."""
        known = self.amounts
        self.amounts = {slot: known.get(slot, 0) + amounts.get(slot, 0) for slot in sorted({*known, *amounts})}
        self.total += sum(amounts.values())

    def add(self, amount: int) -> int:
        """Count now; the slot it went into."""
        amounts, last = self.amounts, self.last
        self.total += amount
        if last in amounts:
            amounts[last] += amount
            return last
        # Where the clock was set back between two lives, the ledger has told of later slots.
        behind = bool(amounts) and last < next(reversed(amounts))
        amounts[last] = amount
        if behind:
            self.amounts = dict(sorted(amounts.items()))
        return last

    def give_back(self, slot: int, held: int, surplus: int) -> None:
        """End a hold, of which so much was not used. What has left the window is given back no more."""
        self.change(slot, -surplus)
        self.held = self.held - held if self.held > held else 0

    def change(self, slot: int, amount: int) -> None:
        """Count more, or with a negative amount less, in a slot; nothing when it has left the window."""
        if slot in self.amounts:
            self.amounts[slot] += amount
            self.total += amount

    def wait_us(self, excess: int, now_us: int) -> int:
        """How long until `excess` of what is counted has left; shorter when running requests may give it back."""
        if excess <= min(self.held, self.total):
            return BUSY_RETRY_US
        if self.ends_us is not None:
            return max(self.ends_us - now_us, 1)
        leaves = self.last
        for slot, amount in self.amounts.items():
            leaves = slot
            excess -= amount
            if excess <= 0:
                break
        return max((leaves + SLOTS + 1) * self.slot_us - now_us, 1)

    def room(self, limit: int, now_us: int, wall_us: int) -> Room:
        """What is left of a limit: a calendar period ends by the time of day, a window by the clock that is not set."""
        total, reset_us = self.total, 0
        if total:
            left_us = (
                (self.last + SLOTS + 1) * self.slot_us - now_us if self.ends_us is None else self.ends_us - wall_us
            )
            reset_us = left_us if left_us > 0 else 0
        return Room(limit, limit - total if limit > total else 0, reset_us)


class SavedWindow(msgspec.Struct, frozen=True):
    """A rate's window: what was counted in each of its slots."""

    key: str
    slot_us: int
    ends_us: int | None
    last: int
    amounts: dict[int, int]


class Account:
    """Nano-USD spent for good, or within a sliding window, and held by running requests.

    What is held counts for as long as it is held; what was spent leaves a window with the slot in which it was held
    first.
    """

    __slots__ = ("held", "holders", "spent", "used_us", "window")

    def __init__(self, spent: int, used_us: int, window: Window | None = None) -> None:
        self.spent = spent
        self.held = 0
        self.holders = 0
        self.used_us = used_us
        self.window = window

    def advance(self, wall_us: int) -> None:
        """Forget what has left the window."""
        if self.window is not None:
            self.window.advance(wall_us)
            self.spent = self.window.total

    def charge(self, held_nano: int, nano: int, slot: int | None) -> None:
        """Turn what was held into a charge."""
        self.held -= held_nano
        self.holders -= 1
        if self.window is None or slot is None:
            self.spent += nano
        else:
            self.window.change(slot, nano)
            self.spent = self.window.total

    def wait_us(self, nano: int, limit_nano: int, wall_us: int) -> int | None:
        """When a request that holds `nano` may fit, None when waiting does not help. It has to be in the way."""
        excess = self.spent + max(nano, 1) - limit_nano
        if excess <= 0:
            return BUSY_RETRY_US
        if self.window is None or max(nano, 1) > limit_nano:
            return None
        return self.window.wait_us(excess, wall_us)


def durable_account(account: str, slot: int | None) -> str:
    """What the ledger calls an account, or one slot of an account that has a window."""
    return account if slot is None else f"{account}:{slot}"


def durable_accounts(accounts: Sequence[str], slots: Sequence[int | None]) -> tuple[str, ...]:
    """What it calls several of them."""
    return tuple([durable_account(account, slot) for account, slot in zip(accounts, slots, strict=True)])


def account_and_slot(durable_account: str) -> tuple[str, int | None]:
    """The account and the slot of its window that the ledger's name means."""
    match = _SLOT.search(durable_account)
    return (durable_account, None) if match is None else (durable_account[: match.start(2) - 1], int(match[2]))


def slot_is_over(durable_account: str, now_us: int) -> bool:
    """Whether an account of the ledger is a slot of a budget's window (`key:k:3600s:8123`) that left it over a day ago,
    so that nobody will ask for it again."""
    match = _SLOT.search(durable_account)
    if match is None:
        return False
    slot_us = slot_length_us(int(match[1]) * 1_000_000)
    return (int(match[2]) + SLOTS + 1) * slot_us + DAY_US < now_us
