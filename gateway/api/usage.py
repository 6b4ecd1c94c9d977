"""What a key may know about its own use: requests, sums, budgets, and what a request would cost."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import msgspec
from msgspec import Meta
from starlette.requests import Request

from adapters.dialects import openai_wire as wire
from adapters.types import Usage
from gateway import errors
from gateway.api import shapes
from gateway.api.http import Doc, Endpoint, Response, event_of, json_response, read_json_body
from gateway.audit import Audit
from gateway.auth import Principal
from gateway.auth.roles import Resource, may
from gateway.catalog import MILLION, Catalog, Price
from gateway.ledger import Entry, believable
from gateway.ledger.export import usd
from gateway.ledger.store import Filter, GroupBy, Ledger
from gateway.limits.limiter import Limiter
from gateway.moments import iso, moment_us

Tokens = Annotated[int, Meta(ge=0, le=1 << 40)]
GROUPS = cast(tuple[GroupBy, ...], get_args(GroupBy))


class CostRequest(msgspec.Struct):
    """A usage to be priced."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    cache_write_tokens: Tokens = 0
    cache_write_1h_tokens: Tokens = 0
    prompt_audio_tokens: Tokens = 0
    completion_audio_tokens: Tokens = 0


_cost = msgspec.json.Decoder(CostRequest)


class OwnQuery(msgspec.Struct, kw_only=True, frozen=True):
    """What the query of `/v1/usage/me` can say. `by` is a list with commas of what the sums are told apart by."""

    by: str = ""
    since: str | None = None
    until: str | None = None


class OwnUsage:
    """The ledger as its users see it: a key sees its tenant's requests and its own sums."""

    def __init__(
        self, catalog: Catalog, ledger: Ledger | None, limiter: Limiter, audit: Audit, body_bytes_max: int
    ) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._limiter = limiter
        self._audit = audit
        self._body_bytes_max = body_bytes_max

    def endpoints(self) -> tuple[Endpoint, ...]:
        entry = Doc("usage", answer=shapes.listed(shapes.request_entry()))
        own = Doc("usage", query=OwnQuery, answer=shapes.own_usage())
        price = Doc("usage", body=CostRequest, answer=shapes.cost())
        return (
            Endpoint("/v1/requests/{id}", "GET", self.request, "usage.read", "What one request used and cost", entry),
            Endpoint(
                "/v1/usage/me", "GET", self.me, "usage.read", "What your key used, and what its budgets still have", own
            ),
            Endpoint("/v1/cost", "POST", self.cost, "models.read", "What a number of tokens costs", price),
        )

    async def request(self, request: Request) -> Response:
        principal: Principal = request.state.principal
        identity = request.path_params["id"]
        found = []
        if self._ledger is not None:
            found = await self._ledger.find(identity, tenant=None if principal.admin else principal.tenant)
        seen = [entry for entry in found if may(principal, "usage.read", resource_of(entry)) == "allowed"]
        if not seen:
            if self._ledger is not None and (others := await self._ledger.find(identity)):
                event = event_of(request.scope, "request.read", identity, "not_found", owner=others[0].tenant)
                self._audit.add_repeatable(event)
            raise errors.error("not_found", "There is no such request.")
        return _json({"object": "list", "data": [shown(entry) for entry in seen]})

    async def me(self, request: Request) -> Response:
        principal: Principal = request.state.principal
        query = request.query_params
        by = tuple(name for name in query.get("by", "").split(",") if name)
        if unknown := [name for name in by if name not in GROUPS]:
            raise _invalid("by", f"{unknown[0][:40]!r} is none of {', '.join(GROUPS)}")
        if len({"hour", "day", "month"} & set(by)) > 1:
            raise _invalid("by", "choose one of hour, day and month")
        wanted = Filter(
            since_us=moment(query.get("since"), "since", 0),
            until_us=moment(query.get("until"), "until", 2**62),
            key_id=principal.key_id,
            tenant=principal.tenant,
        )
        rows = [] if self._ledger is None else await self._ledger.summary(cast(tuple[GroupBy, ...], by), wanted)
        budgets = [
            {
                "account": one.account,
                "spent_usd": usd(one.spent_nano),
                "limit_usd": usd(one.limit_nano),
                "remaining_usd": usd(max(one.limit_nano - one.spent_nano, 0)),
                "resets_at": None if one.ends_us is None else iso(one.ends_us),
                "paused": one.spent_nano >= one.limit_nano,
            }
            for one in await self._limiter.standings(principal)
        ]
        return _json(
            {"object": "usage", "key": principal.key_id, "data": [_sums(row) for row in rows], "budgets": budgets}
        )

    async def cost(self, request: Request) -> Response:
        body = await read_json_body(request, self._body_bytes_max)
        asked = wire.decode(_cost, body)
        target = self._catalog.resolve(request.state.principal, asked.model)
        if target.price is None:
            raise errors.error("model_price_unknown", "This model has no price.", param="model")
        if asked.cached_tokens > asked.prompt_tokens:
            raise _invalid("cached_tokens", "there are no more cached tokens than prompt tokens")
        given = {name: getattr(asked, name) for name in Usage.__struct_fields__ if name in asked.__struct_fields__}
        usage = believable(Usage(**given), asked.prompt_tokens, 0)
        price = target.price.times(request.state.principal.price_ppm)
        answer = {"object": "cost", "model": target.name, "cost_usd": usd(price.cost_nano(usage))}
        return _json(answer | {"items": items(price, usage), "price_table": price.table})


def items(price: Price, usage: Usage) -> list[dict[str, Any]]:
    """A cost line by line, each exact; only their sum is rounded, up to the next nano-USD."""
    return [
        {"item": name, "tokens": tokens, "usd_per_million": usd(nano), "usd": _exact(tokens * nano)}
        for name, tokens, nano in price.at(usage.prompt_tokens).lines(usage)
        if tokens
    ]


def _exact(micro_nano: int) -> str:
    """A millionth of nano-USD as dollars, without rounding."""
    nano, rest = divmod(micro_nano, MILLION)
    whole, fraction = divmod(nano, 10**9)
    digits = f"{fraction:09d}{rest:06d}".rstrip("0")
    return f"{whole}.{digits or '0'}"


def shown(entry: Entry) -> dict[str, Any]:
    """An entry as its owner may see it."""
    price = entry.price
    return {
        "id": entry.request_id,
        "object": "request",
        "entry": entry.id,
        "corrects": entry.corrects,
        "created_at": iso(entry.at_us),
        "status": entry.status,
        "outcome": entry.outcome,
        "key": entry.key_id,
        "model": entry.model,
        "target": entry.target,
        "provider": entry.provider,
        "kind": entry.kind,
        "usage": {
            "prompt_tokens": entry.prompt_tokens,
            "cached_tokens": entry.cached_tokens,
            "completion_tokens": entry.completion_tokens,
            "reasoning_tokens": entry.reasoning_tokens,
            "estimated": entry.estimated,
        },
        "cost_usd": None if entry.cost_nano is None else usd(entry.cost_nano),
        "charged_usd": usd(entry.charged_nano),
        "items": [] if price is None else items(price, entry.usage),
        "price_table": None if price is None else price.table,
        "latency_ms": entry.latency_us / 1000,
        "first_token_ms": None if entry.first_token_us is None else entry.first_token_us / 1000,
        "cache": entry.cache,
        "attempts": entry.attempts,
    }


def resource_of(entry: Entry) -> Resource:
    """Whose request it was."""
    return Resource(
        tenant=entry.tenant,
        org_id=entry.org_id,
        team_id=entry.team_id,
        user_id=entry.user_id,
        key_id=entry.key_id,
    )


def _sums(row: dict[str, Any]) -> dict[str, Any]:
    """Sums with their amounts in dollars and their time as a date."""
    shown_row = {name: value for name, value in row.items() if name not in ("hour_us", "cost_nano")}
    if "hour_us" in row:
        shown_row = {"start": iso(row["hour_us"])} | shown_row
    return shown_row | {"cost_usd": usd(int(row["cost_nano"] or 0))}


def moment(text: str | None, name: str, default: int) -> int:
    """The point in time that a parameter of a query names, in microseconds."""
    if text is None:
        return default
    try:
        return moment_us(text)
    except ValueError as error:
        raise _invalid(name, str(error)) from None


def _invalid(param: str | None, problem: str) -> errors.GatewayError:
    return errors.error("invalid_value", f"Invalid value for {param!r}: {problem}.", param=param)


def _json(answer: object) -> Response:
    return json_response(msgspec.json.encode(answer))
