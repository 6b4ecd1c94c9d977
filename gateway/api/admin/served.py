"""Providers and routes over HTTP: those of the configuration to be looked at, those made at run time to be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Body, Call, Moment, Page, Paging, Route, kept, moment, part_of
from gateway.api.admin.server import MASK, PriceShown, price_shown
from gateway.api.admin.targets import TargetShown
from gateway.api.admin.targets import shown as standing_shown
from gateway.auth.records import not_found
from gateway.catalog import Catalog
from gateway.config import ProviderConfig, RouteConfig
from gateway.config_providers import ProviderSettings
from gateway.routing.router import Router
from gateway.served import Item, Kind, ProviderChange, ProviderSecret, RouteChange, given
from gateway.served.live import Live
from gateway.served.stock import Stock

PROVIDERS = "/admin/v1/providers"
PROVIDER = "/admin/v1/providers/{name:text}"
SECRET = "/admin/v1/providers/{name:text}/secret"
ROUTES = "/admin/v1/routes"
ROUTE = "/admin/v1/routes/{name:text}"

Source = Literal["config", "api"]
SecretText = Annotated[str, Meta(min_length=1, max_length=10_000, pattern=r"^[!-~]+\Z")]


class SecretShown(msgspec.Struct, frozen=True, kw_only=True):
    """That there is a secret, not what it is. It goes to `origin` only; `usable` false: it cannot be decrypted here."""

    set_at: Moment
    set_by: str
    origin: str
    usable: bool


class ProviderShown(ProviderSettings, frozen=True, kw_only=True):
    """A provider. One of the configuration has no version and no dates, and its key is set there. With a `problem` it
    is not served. What its `headers` hold is not shown."""

    object: str = "provider"
    id: str
    source: Source
    version: int | None
    created_at: Moment | None
    changed_at: Moment | None
    secret: SecretShown | None
    problem: str | None


class RouteTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A target of a route on this replica, with the price in force. `price` null is not known, which is not free."""

    group: int
    weight: float
    price: PriceShown | None
    standing: TargetShown


class RouteShown(RouteConfig, frozen=True, kw_only=True):
    """A route. One of the configuration has no version and no dates. With a `problem` it is not served."""

    object: str = "route"
    id: str
    source: Source
    version: int | None
    created_at: Moment | None
    changed_at: Moment | None
    problem: str | None
    targets: tuple[RouteTarget, ...]


class NewSecret(Body, frozen=True, kw_only=True):
    """What authorises requests to a provider: its key or token, for Bedrock the parts of an AWS credential, for Vertex
    a service account as its file holds it."""

    api_key: SecretText | None = None
    aws_secret_access_key: SecretText | None = None
    aws_session_token: SecretText | None = None
    google_account: Annotated[str, Meta(min_length=1, max_length=20_000)] | None = None


SECRETS = dict.fromkeys(NewSecret.__struct_fields__, "A secret is set by PUT /admin/v1/providers/<name>/secret.")


class _Kept:
    """What routes about one kind of thing have in common."""

    def __init__(self, live: Live | None, kind: Kind) -> None:
        self._maybe = live
        self._kind: Kind = kind

    @property
    def _live(self) -> Live:
        return kept(self._maybe)

    @property
    def _stock(self) -> Stock:
        return kept(self._live.stock)

    def _page(self, paging: Paging) -> tuple[list[Item], str | None]:
        return part_of(self._live.served.of(self._kind), paging, _cursor)

    def _find(self, name: str) -> Item:
        found = self._live.served.find(self._kind, name)
        if found is None:
            raise not_found()
        return found

    async def _create(self, call: Call[Any, Any]) -> Item:
        await self._stock.create(call.body)
        call.note(call.body.name)
        return await self._now(call.body.name)

    async def _change(self, call: Call[Any, Any]) -> Item:
        name, asked = call.path["name"], given(call.body)
        await self._stock.change(self._kind, name, asked, call.version)
        call.note(name, fields=", ".join(asked))
        return await self._now(name)

    async def delete(self, call: Call[None, None]) -> None:
        name = call.path["name"]
        await self._stock.delete(self._kind, name, call.version)
        call.note(name)
        await self._live.refresh()

    async def _now(self, name: str) -> Item:
        """It as it is served by now, which another change may have followed already."""
        await self._live.refresh()
        return self._find(name)


def _cursor(item: Item) -> str:
    """Where something is in the list. A name can stand there twice, since the configuration took it later."""
    return f"{'config' if item.row is None else 'api'}:{item.name}"


class ProviderRoutes(_Kept):
    """`/admin/v1/providers`."""

    def __init__(self, live: Live | None) -> None:
        super().__init__(live, "provider")

    def routes(self) -> tuple[Route, ...]:
        read, write = "routing.read", "routing.write"
        return (
            Route("GET", PROVIDERS, read, self.list, "All providers", query=Paging, answer=list[ProviderShown]),
            Route(
                "POST",
                PROVIDERS,
                write,
                self.create,
                "Add a provider",
                body=ProviderSettings,
                answer=ProviderShown,
                status=201,
                action="provider.create",
                description="Its key is set afterwards, by its secret.",
                elsewhere=SECRETS,
            ),
            Route("GET", PROVIDER, read, self.get, "One provider", answer=ProviderShown),
            Route(
                "PATCH",
                PROVIDER,
                write,
                self.change,
                "Change a provider",
                body=ProviderChange,
                answer=ProviderShown,
                action="provider.change",
                description="One that is then at another host loses its secret.",
                elsewhere=SECRETS,
            ),
            Route("DELETE", PROVIDER, write, self.delete, "Remove a provider", action="provider.delete"),
            Route(
                "PUT",
                SECRET,
                write,
                self.set_secret,
                "Set the secret of a provider",
                body=NewSecret,
                answer=ProviderShown,
                action="provider.secret",
                description="It is kept encrypted, goes to the provider's host only, and is never shown.",
            ),
            Route(
                "DELETE",
                SECRET,
                write,
                self.drop_secret,
                "Forget the secret of a provider",
                action="provider.secret.delete",
            ),
        )

    async def list(self, call: Call[Paging, None]) -> Page[ProviderShown]:
        items, cursor = self._page(call.query)
        return Page([provider_shown(item) for item in items], cursor)

    async def get(self, call: Call[None, None]) -> ProviderShown:
        return provider_shown(self._find(call.path["name"]))

    async def create(self, call: Call[None, ProviderSettings]) -> ProviderShown:
        return provider_shown(await self._create(call))

    async def change(self, call: Call[None, msgspec.Struct]) -> ProviderShown:
        return provider_shown(await self._change(call))

    async def set_secret(self, call: Call[None, NewSecret]) -> ProviderShown:
        name, texts = call.path["name"], msgspec.structs.asdict(call.body)
        if not any(texts.values()):
            raise errors.error("invalid_value", "Say what the secret is.", param="api_key")
        await self._stock.set_secret(name, ProviderSecret(**texts), call.principal.key_id, call.version)
        call.note(name, fields=", ".join(field for field, text in texts.items() if text))
        return provider_shown(await self._now(name))

    async def drop_secret(self, call: Call[None, None]) -> None:
        name = call.path["name"]
        await self._stock.set_secret(name, None, call.principal.key_id, call.version)
        call.note(name)
        await self._live.refresh()


class RouteRoutes(_Kept):
    """`/admin/v1/routes`. `router` finds what serves a route now, `clock` is that of breakers."""

    def __init__(
        self,
        live: Live | None,
        router: Callable[[str], Router | None],
        catalog: Catalog,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(live, "route")
        self._router = router
        self._catalog = catalog
        self._clock = clock

    def routes(self) -> tuple[Route, ...]:
        read, write = "routing.read", "routing.write"
        return (
            Route(
                "GET",
                ROUTES,
                read,
                self.list,
                "All routes, with how their targets do on this replica",
                query=Paging,
                answer=list[RouteShown],
            ),
            Route(
                "POST",
                ROUTES,
                write,
                self.create,
                "Open a route",
                body=RouteConfig,
                answer=RouteShown,
                status=201,
                action="route.create",
            ),
            Route("GET", ROUTE, read, self.get, "One route", answer=RouteShown),
            Route(
                "PATCH",
                ROUTE,
                write,
                self.change,
                "Change a route",
                body=RouteChange,
                answer=RouteShown,
                action="route.change",
                description="Requests that run end with what they began with.",
            ),
            Route("DELETE", ROUTE, write, self.delete, "Close a route", action="route.delete"),
        )

    async def list(self, call: Call[Paging, None]) -> Page[RouteShown]:
        items, cursor = self._page(call.query)
        return Page([self._shown(item) for item in items], cursor)

    async def get(self, call: Call[None, None]) -> RouteShown:
        return self._shown(self._find(call.path["name"]))

    async def create(self, call: Call[None, RouteConfig]) -> RouteShown:
        return self._shown(await self._create(call))

    async def change(self, call: Call[None, msgspec.Struct]) -> RouteShown:
        return self._shown(await self._change(call))

    def _shown(self, item: Item) -> RouteShown:
        router, target = self._router(item.name), self._catalog.find(item.name)
        groups: Sequence[Any] = () if router is None or item.problem is not None else router.groups
        now_s, targets = self._clock(), []
        for i, group in enumerate(groups):
            for one in group:
                assert router is not None and target is not None, "what has groups is served"
                price = target.price_of(one.identity)
                targets.append(
                    RouteTarget(
                        group=i,
                        weight=one.weight,
                        price=None if price is None else price_shown(price),
                        standing=standing_shown(one.identity, router.standings[one.identity], now_s),
                    )
                )
        settings = {name: getattr(item.settings, name) for name in RouteConfig.__struct_fields__}
        return RouteShown(**settings, **_origin(item), targets=tuple(targets))


def provider_shown(item: Item) -> ProviderShown:
    assert isinstance(item.settings, ProviderConfig)
    settings = {name: getattr(item.settings, name) for name in ProviderSettings.__struct_fields__}
    settings["headers"] = dict.fromkeys(item.settings.headers, MASK)
    sealed, secret = item.sealed, None
    if sealed is not None:
        secret = SecretShown(set_at=Moment(sealed.set_us), set_by=sealed.set_by, origin=sealed.origin, usable=item.open)
    return ProviderShown(**settings, **_origin(item), secret=secret)


def _origin(item: Item) -> dict[str, Any]:
    """Where something comes from, and how it stands."""
    row = item.row
    return {
        "id": item.name,
        "source": "config" if row is None else "api",
        "version": None if row is None else row.version,
        "created_at": moment(None if row is None else row.created_us),
        "changed_at": moment(None if row is None else row.changed_us),
        "problem": None if item.problem is None else item.problem.message,
    }
