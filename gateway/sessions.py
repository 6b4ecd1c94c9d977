"""The one path to kept conversations, over all models: whose they are, which one is meant, what is done to them."""

from __future__ import annotations

import msgspec

from adapters.errors import AdapterError, InvalidRequest, Unavailable
from adapters.types import SessionAction, SessionInfo
from gateway import errors
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.errors import GatewayError

EVERYBODY = "*"


class Session(msgspec.Struct, frozen=True):
    """A kept conversation and the public name of its model."""

    model: str
    info: SessionInfo


class Selection(msgspec.Struct, frozen=True):
    """Where to look: in one model or (None) in all that the principal may use, among the sessions of one tenant.

    `tenant` None is the principal's own; another one, or `EVERYBODY`, is for administrators.
    """

    model: str | None = None
    tenant: str | None = None


class Listing(msgspec.Struct, frozen=True):
    """Sessions, the youngest first, and the models that cannot be asked now."""

    sessions: list[Session]
    unavailable: list[str] = []


class Sessions:
    """Entrances for everything that is done to sessions. All raise `GatewayError` or `AdapterError`.

    What is hidden from a principal and what is not there look the same.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def kept(self, principal: Principal, where: Selection) -> Listing:
        """What is kept. A model asked for by name must be there; of several, those that are not are named."""
        sessions, failures = await self._look(principal, where)
        if where.model is not None:
            for failure in failures.values():
                raise failure
        sessions.sort(key=lambda one: (-one.info.created_us, one.info.id))
        return Listing(sessions, list(failures))

    async def find(self, principal: Principal, name: str, where: Selection) -> Session:
        """The session whose key, or else whose id, is `name`."""
        sessions, failures = await self._look(principal, where)
        found = [one for one in sessions if one.info.key == name] or [one for one in sessions if one.info.id == name]
        if not found:
            for failure in failures.values():
                # Whether it is there can only be said by a model that answers.
                raise failure
            raise _unknown()
        places = {(one.model, one.info.tenant): one for one in found}
        if len(places) > 1:
            param = "model" if len({model for model, _ in places}) > 1 else "tenant"
            raise InvalidRequest(f"Several sessions have this name: say which is meant with '{param}'.", param=param)
        return max(found, key=lambda one: one.info.used_us)

    async def change(
        self, principal: Principal, name: str, where: Selection, action: SessionAction, new_key: str | None = None
    ) -> Session:
        """Do `action` to a session; the session as it is then, of a fork the new one, whose key must be free."""
        found = await self.find(principal, name, where)
        if new_key is not None:
            await self._check_free(principal, new_key, Selection(found.model, found.info.tenant))
        adapter = self._catalog.resolve(principal, found.model).adapter
        info = await adapter.change_session(found.info.tenant, found.info.id, action, new_key)
        if info is None:
            raise _unknown()
        return Session(found.model, info)

    async def owner(self, principal: Principal, name: str, where: Selection) -> str | None:
        """Whose session has the id `name` when it is another tenant's; for the audit log, never for the principal."""
        sessions, _ = await self._list(principal, where.model, None)
        owners = [one.info.tenant for one in sessions if one.info.id == name]
        return next((owner for owner in owners if owner != principal.tenant), None)

    async def _check_free(self, principal: Principal, key: str, where: Selection) -> None:
        sessions, _ = await self._look(principal, where)
        if any(one.info.key == key for one in sessions):
            raise InvalidRequest("There is a session with this key already.", param="new_id")

    async def _look(self, principal: Principal, where: Selection) -> tuple[list[Session], dict[str, AdapterError]]:
        """All sessions of the selection, and why some models could not be asked."""
        return await self._list(principal, where.model, _tenant(principal, where.tenant))

    async def _list(
        self, principal: Principal, model: str | None, tenant: str | None
    ) -> tuple[list[Session], dict[str, AdapterError]]:
        sessions: list[Session] = []
        failures: dict[str, AdapterError] = {}
        for target in self._targets(principal, model):
            try:
                kept = await target.adapter.list_sessions(tenant)
            except Unavailable as error:
                failures[target.name] = error
                continue
            sessions += [Session(target.name, info) for info in kept]
        return sessions, failures

    def _targets(self, principal: Principal, model: str | None) -> tuple[Target, ...]:
        """Each engine once: an adapter over a model is a name of its own, with the model's sessions."""
        if model is not None:
            return (self._catalog.resolve(principal, model),)
        targets = self._catalog.list(principal)
        engines = [target.adapter for target in targets]
        return tuple(target for index, target in enumerate(targets) if engines.index(target.adapter) == index)


def _tenant(principal: Principal, asked: str | None) -> str | None:
    """The tenant to look for, None for all; raises where the principal may not."""
    if asked is None or asked == principal.tenant:
        return principal.tenant
    if not principal.admin:
        raise errors.error("permission_denied", "Only an administrator sees other tenants' sessions.", param="tenant")
    return None if asked == EVERYBODY else asked


def _unknown() -> GatewayError:
    return errors.error("not_found", "There is no such session.", param="id")
