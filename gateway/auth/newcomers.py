"""Where new people go: into which organisation, as what, and with what in their wallet."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from gateway import errors
from gateway.auth import Role
from gateway.auth.records import Directory, Org, User, check_name, find, insert, new_id
from gateway.config_limits import ScopeLimits
from gateway.config_people import PeopleConfig
from gateway.state.database import Statements

# As the source of an organisation's name; every other source is an issuer.
CONFIGURED = "configuration"

_ORG = re.compile(r"org_[a-z0-9]+")

# Opens the wallet of that name for a tenant, with the bonus that it gets once, as part of the caller's transaction.
OpenWallet = Callable[[Statements, str, str, int], Awaitable[None]]


class Place(msgspec.Struct, frozen=True):
    """Where somebody belongs: an organisation, or (None) one of their own, in which they are owner."""

    org_id: str | None = None
    role: Role = "owner"


class Newcomers:
    """Makes users. `open_wallet` belongs to the money's side."""

    def __init__(self, directory: Directory, config: PeopleConfig, open_wallet: OpenWallet) -> None:
        self._directory = directory
        self._open_wallet = open_wallet
        self._config = config

    async def place(self, inside: Statements) -> Place:
        """Where those go who sign up."""
        if self._config.organisation is None:
            return Place()
        org = await self.org(inside, CONFIGURED, self._config.organisation)
        return Place(org.id, self._config.role)

    async def admit(self, inside: Statements, email: str, name: str, place: Place) -> User:
        """A new user; raises `conflict` when the address has one, `permission_denied` when the place is closed."""
        if place.org_id is not None:
            _check_open(await find(inside, "orgs", Org, id=place.org_id))
        now_us = self._directory.now_us()
        identity, org_id = new_id("user"), place.org_id or new_id("org")
        # A wallet pays for all that somebody can do with what they are given: of an organisation of their own that is
        # the whole organisation, as its owner makes keys in it that are nobody's.
        wallet = identity if place.org_id is not None else org_id
        limits = ScopeLimits(wallet=wallet) if self._config.bonus_usd is not None else None
        if place.org_id is None:
            await insert(inside, "orgs", Org(id=org_id, name=name, created_us=now_us, limits=limits))
        user = User(
            id=identity,
            org_id=org_id,
            email=email,
            name=name,
            role=place.role,
            admin=False,
            created_us=now_us,
            limits=limits if place.org_id is not None else None,
        )
        if await find(inside, "users", User, email=email) is not None:
            raise taken()
        await insert(inside, "users", user)
        if limits is not None:
            await self._open_wallet(inside, wallet, org_id, now_us)
        return user

    async def org(self, inside: Statements, source: str, named: str) -> Org:
        """The organisation that `source` calls so, made when it is named for the first time.

        Names of organisations are not unique and people choose those of their own, so what a name meant once is kept.
        An organisation that is there already is named by its id, which only the configuration can do.
        """
        org = await self.known_org(inside, source, named)
        if org is None and source == CONFIGURED and _ORG.fullmatch(named):
            raise errors.error("not_found", "The organisation of this gateway's configuration does not exist.")
        if org is None:
            org = Org(id=new_id("org"), name=check_name(named, "organisation"), created_us=self._directory.now_us())
            await insert(inside, "orgs", org)
            sql = "INSERT INTO org_sources (source, name, org_id) VALUES ($1, $2, $3)"
            await inside.execute(sql, source, named, org.id)
        _check_open(org)
        return org

    async def known_org(self, inside: Statements, source: str, named: str) -> Org | None:
        """The organisation that `source` calls so, if it was named before."""
        if source == CONFIGURED and _ORG.fullmatch(named):
            return await find(inside, "orgs", Org, id=named)
        rows = await inside.query("SELECT org_id FROM org_sources WHERE source = $1 AND name = $2", source, named)
        return await find(inside, "orgs", Org, id=rows[0]["org_id"]) if rows else None


def _check_open(org: Org | None) -> None:
    if org is None or org.archived_us is not None:
        raise errors.error("permission_denied", "The organisation is closed.")


def taken() -> errors.GatewayError:
    return errors.error("conflict", "There is an account with this e-mail address already. Log in.", param="email")
