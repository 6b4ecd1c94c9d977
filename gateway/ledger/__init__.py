"""The ledger: one terminal entry per request, never changed; corrections are entries of their own.

This file is its pure half: what an entry is, what a usage is charged, and what a batch of entries adds to the sums that
are written with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from typing import Any, Literal

import msgspec

from adapters.types import Usage
from gateway import errors
from gateway.catalog import Price
from gateway.limits.plans import WALLET
from gateway.limits.wallets import REVENUE, Transfer

HOUR_US = 3_600_000_000
NOT_RECORDED = "Usage cannot be recorded right now. Try again shortly."

# Where an entry is summed up: the hour, tenant, key, user, team, model, provider and organisation.
Place = tuple[int, str, str, str, str, str, str, str]
Status = Literal["posted", "voided", "expired", "correction"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What one request used and cost.

    `id` is the reservation's and unique; `request_id` is what the client saw and may repeat. `cost_nano` None: the
    model has no price. `charged_nano` was taken from each of `accounts`; it is never above what was reserved, so it can
    be below the cost. `estimated`: tokens were counted here because the request ended without a report. A correction
    names the entry it `corrects`, and its amounts are differences. With `cache` "hit" the answer was given before: no
    tokens were used, and it costs what the cache's rule says.
    """

    id: str
    request_id: str
    at_us: int
    status: Status
    outcome: str
    tenant: str
    key_id: str
    model: str
    target: str
    provider: str
    kind: str
    user_id: str | None = None
    team_id: str | None = None
    org_id: str | None = None
    # As in `Usage`.
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    prompt_audio_tokens: int = 0
    completion_audio_tokens: int = 0
    estimated: bool = False
    price: Price | None = None
    cost_nano: int | None = None
    charged_nano: int = 0
    accounts: tuple[str, ...] = ()
    latency_us: int = 0
    first_token_us: int | None = None
    cache: str = "none"
    attempts: int = 1
    corrects: str | None = None

    @property
    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.cache_write_tokens,
            self.cache_write_1h_tokens,
            self.prompt_audio_tokens,
            self.completion_audio_tokens,
        )


class Durable:
    """Whether an entry is durable. Of those who await it each may be cancelled, which is nothing to the others."""

    __slots__ = ("_impatient", "_waiting", "done")

    def __init__(self) -> None:
        self.done = False
        self._waiting: tuple[asyncio.Future[None], ...] = ()
        self._impatient: tuple[asyncio.Future[None], ...] = ()

    def __await__(self) -> Generator[Any, None, None]:
        if not self.done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting += (waiter,)
            yield from waiter

    async def in_time(self) -> None:
        """Wait as a client does, who is told `overloaded` when it takes too long."""
        if not self.done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._impatient += (waiter,)
            await waiter

    def reach(self) -> None:
        """It is, for good."""
        self.done = True
        for waiter in (*self._waiting, *self._impatient):
            if not waiter.done():
                waiter.set_result(None)

    def takes_too_long(self) -> None:
        """Tell clients so; the entry stays on its way."""
        for waiter in self._impatient:
            if not waiter.done():
                waiter.set_exception(errors.error("overloaded", NOT_RECORDED))
        self._impatient = ()


class Sums(msgspec.Struct):
    """What a number of entries come to."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0

    def add(self, entry: Entry) -> None:
        self.requests += entry.status != "correction"
        self.prompt_tokens += entry.prompt_tokens
        self.cached_tokens += entry.cached_tokens
        self.completion_tokens += entry.completion_tokens
        self.cost_nano += entry.cost_nano or 0

    def join(self, other: Sums) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Batch(msgspec.Struct, frozen=True):
    """What a group of new entries changes besides itself: charges to budgets, transfers of wallets, hourly sums."""

    charges: dict[str, int]
    transfers: list[Transfer]
    hours: dict[Place, Sums]


def fold(entries: Iterable[Entry]) -> Batch:
    """What entries that have just become part of the ledger change."""
    charges: dict[str, int] = {}
    transfers: list[Transfer] = []
    hours: dict[Place, Sums] = {}
    for entry in entries:
        place = _place(entry)
        if (sums := hours.get(place)) is None:
            sums = hours[place] = Sums()
        sums.add(entry)
        for account in entry.accounts:
            if account.startswith(WALLET):
                transfers.extend(_transfer(entry, account))
            elif entry.charged_nano:
                charges[account] = charges.get(account, 0) + entry.charged_nano
    return Batch(charges, transfers, hours)


def _place(entry: Entry) -> Place:
    hour_us = entry.at_us - entry.at_us % HOUR_US
    user_id, team_id = entry.user_id or "", entry.team_id or ""
    tenant, org_id = entry.tenant, entry.org_id or ""
    return hour_us, tenant, entry.key_id, user_id, team_id, entry.model, entry.provider, org_id


def transfer_id(entry_id: str, wallet: str) -> str:
    """The id of what an entry takes from a wallet."""
    return f"{entry_id}:{wallet}"


def _transfer(entry: Entry, wallet: str) -> Iterable[Transfer]:
    nano = entry.charged_nano
    identity = transfer_id(entry.id, wallet)
    if nano > 0:
        yield Transfer(identity, wallet, REVENUE, nano, "usage", entry.at_us, entry.model)
    elif nano < 0:
        yield Transfer(identity, REVENUE, wallet, -nano, "correction", entry.at_us, entry.model)


def believable(reported: Usage | None, prompt_tokens: int, counted_tokens: int) -> Usage:
    """The usage that is charged: what was reported, and where that is missing or cannot be, what was counted here.

    What is counted are pieces of an answer, which can be smaller than tokens, but hardly by more than half.
    """
    reported = reported or Usage()
    prompt = reported.prompt_tokens if reported.prompt_tokens > 0 else prompt_tokens
    output = reported.completion_tokens
    if 2 * output < counted_tokens:
        output = counted_tokens
    plain = Usage(prompt, output if output > 0 else 0)
    if reported == plain:
        return plain  # There are no details that could be wrong.
    output = plain.completion_tokens
    cached = min(max(reported.cached_tokens, 0), prompt)
    written = min(max(reported.cache_write_tokens, 0), prompt - cached)
    return Usage(
        prompt,
        output,
        cached,
        min(max(reported.reasoning_tokens, 0), output),
        written,
        min(max(reported.cache_write_1h_tokens, 0), written),
        min(max(reported.prompt_audio_tokens, 0), prompt - cached - written),
        min(max(reported.completion_audio_tokens, 0), output),
    )


def correction(entry: Entry, corrected: list[Entry], price: Price, at_us: int) -> Entry | None:
    """The entry that makes a posted one, after earlier corrections, cost what `price` says; None when it does.

    Money is only ever given back: what should have cost more is noted as its cost and not charged after the fact. What
    came from the response cache has no tokens to be priced anew.
    """
    if entry.cache == "hit":
        return None
    if entry.cost_nano is None and entry.price is None and not entry.accounts and entry.status != "posted":
        return None
    cost_nano = (entry.cost_nano or 0) + sum(one.cost_nano or 0 for one in corrected)
    charged_nano = entry.charged_nano + sum(one.charged_nano for one in corrected)
    price = price if entry.price is None else price.times(entry.price.factor_ppm)
    right_nano = price.cost_nano(entry.usage) if entry.status == "posted" else 0
    if right_nano == cost_nano:
        return None
    return Entry(
        id=f"{entry.id}~{len(corrected) + 1}",
        request_id=entry.request_id,
        at_us=at_us,
        status="correction",
        outcome="price",
        tenant=entry.tenant,
        key_id=entry.key_id,
        user_id=entry.user_id,
        team_id=entry.team_id,
        org_id=entry.org_id,
        model=entry.model,
        target=entry.target,
        provider=entry.provider,
        kind=entry.kind,
        price=price,
        cost_nano=right_nano - cost_nano,
        charged_nano=min(right_nano, charged_nano) - charged_nano,
        accounts=entry.accounts,
        corrects=entry.id,
        attempts=0,
    )
