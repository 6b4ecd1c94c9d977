"""The ways to a provider: to whatever its name leads to, or to each of the addresses behind it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from adapters import open_remote, open_upstream
from adapters.addresses import addresses_of
from adapters.asking import knock
from adapters.remote import Remote, RemoteModel
from gateway.config import ProviderConfig
from gateway.regularly import Regularly
from gateway.remotes import upstream_settings
from gateway.routing.addresses import Addresses
from gateway.routing.health import Checks, Condition

# How long nothing has run at a place that is no longer served before its client is closed. A request that began before
# may still come back to it after a pause.
QUIET_S = 60.0
LOOK_S = 5.0


class Place:
    """Where requests of a provider go: whatever its name leads to, or one `address` of it.

    `entered_s` is when it came up beside others. With `checked` its health is asked for as the provider says.
    """

    def __init__(
        self,
        provider: ProviderConfig,
        address: str | None = None,
        entered_s: float | None = None,
        *,
        checked: bool = True,
    ) -> None:
        self.address = address
        self.entered_s = entered_s
        self.upstream = open_upstream(upstream_settings(provider), address)
        self.condition: Condition | None = None
        self._checking: Regularly | None = None
        if checked and (health := provider.health) is not None:
            upstream, name = self.upstream, f"{provider.name}{'' if address is None else f' at {address}'}"
            self.condition = Condition(health)
            checks = Checks(name, self.condition, lambda: knock(upstream, health.path, health.timeout_s))
            self._checking = Regularly(checks.check, health.interval_s)

    @property
    def suffix(self) -> str:
        """What tells targets here from those at other addresses, in words that say nothing about one's network."""
        return "" if self.address is None else f"@{hashlib.sha256(self.address.encode()).hexdigest()[:8]}"

    def start(self) -> None:
        if self._checking is not None:
            self._checking.start()

    async def close(self) -> None:
        if self._checking is not None:
            await self._checking.close()
        await self.upstream.close()

    async def close_when_quiet(self) -> None:
        """Let what runs end. Connections are closed with their last requests, and the rest when nothing comes back."""
        self.upstream.retire()
        if self._checking is not None:
            await self._checking.close()
        quiet_since_s = time.monotonic()
        try:
            while time.monotonic() - quiet_since_s < QUIET_S:
                await asyncio.sleep(LOOK_S)
                if self.upstream.connections:
                    quiet_since_s = time.monotonic()
        finally:
            await asyncio.shield(self.close())


class Way:
    """A provider as it was described. `places` lead there for routes, `own` to its own API, where that is open.

    `changed` is called when its name leads to other addresses than before, if each of them is wanted.
    """

    def __init__(self, provider: ProviderConfig, changed: Callable[[], None]) -> None:
        self.config = provider
        self.places: tuple[Place, ...] = (Place(provider),)
        self._own = Place(provider, checked=False) if provider.passthrough else None
        self.own: Remote | None = None
        if self._own is not None:
            self.own = open_remote(RemoteModel(name=f"{provider.name}/*", model="*"), self._own.upstream)
        self._addresses: Addresses | None = None
        self._asking: Regularly | None = None
        if provider.addresses == "each":
            origin = self.places[0].upstream.origin
            self._addresses = Addresses(provider.name, lambda: addresses_of(origin), changed)
            self._asking = Regularly(self._addresses.refresh, provider.resolve_every_s, first_s=0.0)

    @property
    def everywhere(self) -> tuple[Place, ...]:
        return self.places if self._own is None else (*self.places, self._own)

    def placed(self) -> tuple[Place, ...]:
        """The places for the addresses that are known now; those that stay are the same."""
        if self._addresses is None or not self._addresses.known:
            return self.places
        there = {place.address: place for place in self.places}
        entered_s = None if None in there else time.monotonic()
        return tuple(there.get(one) or Place(self.config, one, entered_s) for one in self._addresses.known)

    def start(self) -> None:
        if self._asking is not None:
            self._asking.start()

    async def stop(self) -> None:
        """Ask for no more addresses."""
        if self._asking is not None and self._addresses is not None:
            await self._asking.close()
            self._addresses.close()

    async def close(self) -> None:
        await self.stop()
        async with AsyncExitStack() as stack:
            for place in self.everywhere:
                stack.push_async_callback(place.close)
