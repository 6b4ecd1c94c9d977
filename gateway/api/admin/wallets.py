"""Prepaid credit: wallets opened, topped up, refunded, moved between, and what happened to each."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, shown
from gateway.auth.roles import Resource
from gateway.catalog import nano_usd
from gateway.config_auth import TENANT
from gateway.config_limits import Usd
from gateway.ledger.export import usd
from gateway.limits.limiter import Limiter
from gateway.limits.plans import WALLET
from gateway.limits.wallets import NAME, Transfer, Wallet, Wallets

ONCE = "`Idempotency-Key` makes it happen once, however often it is sent."
HEADERS = {"Idempotency-Key": "A change with the same key happens once."}
ONE = "/admin/v1/wallets/{id:text}"


class WalletShown(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet. `paused`: it is empty, and keys that live on it are refused until it is topped up."""

    object: str = "wallet"
    id: str
    tenant: str
    usd: str
    paused: bool
    created_at: Moment


class NewWallet(Body, frozen=True, kw_only=True):
    """`usd` is a bonus that the wallet is opened with, once."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]
    tenant: str = "default"
    usd: Usd = "0"


class Amount(Body, frozen=True, kw_only=True):
    usd: Usd
    note: Annotated[str, Meta(max_length=200)] = ""


class Move(Amount, frozen=True, kw_only=True):
    """`to` is the wallet that gets the amount."""

    to: Annotated[str, Meta(min_length=1, max_length=200)]


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet after a change. `new` is false where the same change had been made before."""

    object: str = "wallet.change"
    new: bool
    wallet: WalletShown


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a statement. `usd` is below zero where credit went out; `other` is where it came from or went to, and
    `balance_usd` is what the wallet held after it."""

    object: str = "wallet.line"
    id: str
    at: Moment
    kind: str
    usd: str
    other: str
    balance_usd: str
    note: str


class WalletQuery(Paging, kw_only=True, frozen=True):
    tenant: str | None = None


class WalletRoutes:
    """Wallets over HTTP. Only the process that serves moves credit out of one, because it knows what is held."""

    def __init__(self, wallets: Wallets | None, limiter: Limiter, now_us: Callable[[], int]) -> None:
        self._maybe = wallets
        self._limiter = limiter
        self._now_us = now_us

    @property
    def _wallets(self) -> Wallets:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/wallets",
                "wallets.read",
                self.list,
                "Wallets, by their names",
                query=WalletQuery,
                answer=list[WalletShown],
            ),
            Route(
                "POST",
                "/admin/v1/wallets",
                "wallets.write",
                self.open,
                "Open a wallet",
                body=NewWallet,
                answer=WalletShown,
                status=201,
                action="wallet.open",
            ),
            Route("GET", ONE, "wallets.read", self.get, "One wallet", answer=WalletShown, about=self.whose),
            Route(
                "GET",
                f"{ONE}/statement",
                "wallets.read",
                self.statement,
                "What went in and out of a wallet, the newest first",
                query=Paging,
                answer=list[Line],
                about=self.whose,
            ),
            self._change("top-up", "wallets.write", self.top_up, "Add credit to a wallet", Amount),
            self._change("refund", "wallets.write", self.refund, "Give back what requests had cost", Amount),
            self._change("transfer", "wallets.transfer", self.transfer, "Move credit to another wallet", Move),
        )

    def _change(self, verb: str, permission: str, handler: Any, summary: str, body: type[Body]) -> Route:
        return Route(
            "POST",
            f"{ONE}/{verb}",
            permission,
            handler,
            summary,
            body=body,
            answer=Moved,
            about=self.whose,
            action=f"wallet.{verb}",
            headers=HEADERS,
            description=ONCE,
        )

    async def whose(self, call: Call[Any, Any]) -> Resource | None:
        return await self._resource(call.path["id"])

    async def _resource(self, name: str) -> Resource | None:
        found = await self._wallets.all(name)
        return resource_of(found[0]) if found else None

    async def list(self, call: Call[WalletQuery, None]) -> Page[WalletShown]:
        reach, tenant = call.reach, call.query.tenant
        if not reach.everything:
            if tenant not in (None, reach.org_id):
                raise errors.error("permission_denied", "Only your own organisation's wallets.", param="tenant")
            tenant = reach.org_id
        found, has_more = await self._wallets.page(tenant, call.query.limit, call.query.after)
        return Page([_shown(one) for one in found], found[-1].id if has_more else None)

    async def open(self, call: Call[None, NewWallet]) -> WalletShown:
        body = call.body
        if not NAME.fullmatch(body.id):
            raise errors.error("invalid_value", "A name has 1 to 200 letters, digits and ._:/@+-.", param="id")
        if not TENANT.fullmatch(body.tenant):
            raise errors.error("invalid_value", "A tenant has 1 to 100 letters, digits and ._:@-.", param="tenant")
        if await self._wallets.all(body.id):
            raise errors.error("conflict", "There is a wallet of this name.", param="id")
        nano = nano_usd(body.usd)
        opened = await self._wallets.open(body.id, body.tenant, self._now_us(), bonus_nano=nano)
        call.note(body.id, tenant=body.tenant, usd=usd(nano))
        return _shown(opened)

    async def get(self, call: Call[None, None]) -> WalletShown:
        return _shown(await self._wallets.get(call.path["id"]))

    async def statement(self, call: Call[Paging, None]) -> Page[Line]:
        name, query = call.path["id"], call.query
        found = await self._wallets.statement(name, limit=query.limit + 1, after=query.after)
        lines = [line(one, WALLET + name) for one in found[: query.limit]]
        return Page(lines, lines[-1].id if len(found) > query.limit else None)

    async def top_up(self, call: Call[None, Amount]) -> Moved:
        return await self._credit(call, self._wallets.top_up)

    async def refund(self, call: Call[None, Amount]) -> Moved:
        return await self._credit(call, self._wallets.refund)

    async def _credit(self, call: Call[None, Amount], change: Any) -> Moved:
        name, nano = call.path["id"], nano_usd(call.body.usd)
        new = await change(name, nano, _key(call), self._now_us(), call.body.note)
        return await self._moved(call, name, nano, new)

    async def transfer(self, call: Call[None, Move]) -> Moved:
        name, body, nano = call.path["id"], call.body, nano_usd(call.body.usd)
        target = await self._resource(body.to)
        if target is None:
            raise errors.error("not_found", "There is nothing of this name.", param="to")
        call.require("wallets.transfer", target, "to")
        key = _key(call)
        new = not await self._wallets.transferred(name, body.to, nano, key)
        if new:
            move = partial(self._wallets.transfer, name, body.to, nano, key, self._now_us(), body.note)
            new = await self._limiter.take(name, nano, move)
        call.note(name, to=body.to)
        return await self._moved(call, name, nano, new)

    async def _moved(self, call: Call[None, Any], name: str, nano: int, new: bool) -> Moved:
        call.note(name, usd=usd(nano), note=call.body.note, new=new)
        return Moved(new=new, wallet=_shown(await self._wallets.get(name)))


def resource_of(wallet: Wallet) -> Resource:
    """A wallet belongs to its tenant, which is the id of an organisation where that has one."""
    return Resource(tenant=wallet.tenant, org_id=wallet.tenant)


def _shown(wallet: Wallet) -> WalletShown:
    return shown(WalletShown, wallet, usd=usd(wallet.balance_nano))


def line(transfer: Transfer, account: str) -> Line:
    out = transfer.debit == account
    other = (transfer.credit if out else transfer.debit).removeprefix(WALLET)
    amounts = {"usd": usd(transfer.gives(account)), "balance_usd": usd(transfer.balance_nano or 0)}
    return shown(Line, transfer, other=other, **amounts)


def _key(call: Call[Any, Any]) -> str:
    """Two tenants' keys for idempotency never meet."""
    chosen = call.idempotency_key or secrets.token_hex(12)
    return chosen if call.principal.admin else f"{call.principal.tenant}:{chosen}"
