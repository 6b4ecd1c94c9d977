"""The table of keys: who may make, change, rotate and revoke which."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway import errors
from gateway.auth import Principal, key_text
from gateway.auth.key_rules import KeyChange, changed, check_reach, check_rights, gifts, inherited
from gateway.auth.records import (
    Directory,
    Key,
    Org,
    Part,
    Team,
    Wanted,
    check_version,
    denied,
    find,
    insert,
    invalid,
    not_found,
    page,
    require,
    update,
)
from gateway.auth.roles import Resource, outranks, reach
from gateway.auth.standing import Standing, of_key, of_user
from gateway.state.database import Statements

REASON_LENGTH_MAX = 500
OVERLAP_S_MAX = 90 * 86_400


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a key belongs: to a user, to a team or organisation as a service account, or to a `tenant` outside of all
    organisations (None: one of its own)."""

    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    tenant: str | None = None
    admin: bool = False


class Keyring:
    """Every function raises GatewayError: `permission_denied`, `not_found`, `invalid_value`, `conflict`, and
    `precondition_failed` when `version` is not that of the key.

    Whoever acts may do what his roles allow, and a key that acts makes none that reaches further than itself.
    """

    def __init__(self, directory: Directory, pepper: bytes) -> None:
        self._directory = directory
        self._pepper = pepper

    async def create(
        self, principal: Principal, name: str, place: Place | None = None, settings: KeyChange | None = None
    ) -> tuple[Key, str]:
        """A new key and its text, which is nowhere kept."""
        identity, text = key_text.new_key()
        async with self._directory.transaction() as inside:
            place = await _settled(inside, principal, place or Place())
            blank = Key(
                id=identity,
                name=name,
                tenant=identity if place.tenant is None else place.tenant,
                admin=place.admin,
                created_us=self._directory.now_us(),
                org_id=place.org_id,
                team_id=place.team_id,
                user_id=place.user_id,
                kind="admin" if place.admin else "service" if place.user_id is None else "user",
            )
            own = await _own(inside, principal)
            settings = settings or KeyChange()
            asked = inherited(principal, own, settings, admin=place.admin)
            key = changed(blank, asked, blank.created_us)
            check_rights(principal, key, None, settings.given())
            check_reach(principal, own, key)
            await insert(inside, "keys", key, digest=key_text.digest(self._pepper, text))
        return key, text

    async def get(self, principal: Principal, identity: str) -> Key:
        key = await find(self._directory.database, "keys", Key, id=identity)
        if key is None:
            raise not_found()
        require(principal, "keys.read", key.resource)
        return key

    async def whose(self, identity: str) -> Resource | None:
        """Whose a key is, for who decides about rights; None when there is no such key."""
        key = await find(self._directory.database, "keys", Key, id=identity)
        return None if key is None else key.resource

    async def list(
        self, principal: Principal, limit: int, after: str | None = None, **filters: str | None
    ) -> Part[Key]:
        """The keys that the caller may see with these `org_id`, `team_id`, `user_id` or `tenant`, the oldest first; and
        whether there are more."""
        wanted, seen = Wanted(), reach(principal, "keys.read")
        wanted.equal(**filters)
        if not seen.everything:
            teams = [("team_id", team_id) for team_id in seen.team_ids]
            own = ("org_id", seen.org_id), ("user_id", seen.user_id), ("id", seen.key_id), ("tenant", seen.tenant)
            wanted.any_of([*teams, *own])
        return await page(self._directory.database, "keys", Key, wanted, (limit, after))

    async def change(self, principal: Principal, identity: str, change: KeyChange, version: int | None = None) -> Key:
        """Set something of a key that is not revoked."""
        async with self._directory.transaction() as inside:
            before = await _writable(inside, principal, identity)
            check_version(before, version)
            if before.revoked_us is not None:
                raise errors.error("conflict", "The key has been revoked.")
            key = changed(replace(before, version=before.version + 1), change, self._directory.now_us())
            check_rights(principal, key, before, change.given())
            check_reach(principal, await _own(inside, principal), key, before)
            await update(inside, "keys", key)
        await self._directory.announce(identity)
        return key

    async def rotate(
        self, principal: Principal, identity: str, *, overlap_s: float = 0, expires_us: int | UnsetType | None = UNSET
    ) -> tuple[Key, str]:
        """A key with all that this one has, and its text; the old one works on for `overlap_s`.

        The new one's `expires_us` is that of the old one unless it is given.
        """
        if not 0 <= overlap_s <= OVERLAP_S_MAX:
            raise invalid(f"The overlap is 0 to {OVERLAP_S_MAX} seconds.", "overlap_s")
        new, text = key_text.new_key()
        now_us = self._directory.now_us()
        async with self._directory.transaction() as inside:
            old = await _writable(inside, principal, identity)
            if old.status(now_us) != "active" or old.successor is not None:
                raise errors.error("conflict", "Only an active key that has no successor yet can be rotated.")
            line = old.counted_as or old.id
            blank = replace(old, id=new, created_us=now_us, last_used_us=None, version=1, counted_as=line)
            key = changed(blank, KeyChange(expires_us=expires_us), now_us)
            own = await _own(inside, principal)
            check_reach(principal, own, key)
            check_rights(principal, key, old, ())
            if own is not None and own.id != old.id:
                # Whoever rotates a key gets all that was ever given to it.
                check_rights(principal, key, None, gifts(key, own))
            ends_us = now_us + int(overlap_s * 1_000_000)
            ends_us = ends_us if old.expires_us is None else min(ends_us, old.expires_us)
            await insert(inside, "keys", key, digest=key_text.digest(self._pepper, text))
            await update(inside, "keys", replace(old, successor=new, expires_us=ends_us, version=old.version + 1))
        await self._directory.announce(identity)
        return key, text

    async def revoke(self, principal: Principal, identity: str, reason: str = "", version: int | None = None) -> Key:
        """Withdraw a key for good; one that is revoked already stays as it was."""
        if len(reason) > REASON_LENGTH_MAX or not reason.isprintable():
            raise invalid(f"A reason has at most {REASON_LENGTH_MAX} printable characters.", "reason")
        async with self._directory.transaction() as inside:
            key, standing = await _behind(inside, principal, identity)
            _check_rank(principal, key, standing)
            check_version(key, version)
            if key.revoked_us is None:
                revoked_us = self._directory.now_us()
                key = replace(key, revoked_us=revoked_us, revoked_reason=reason, version=key.version + 1)
                await update(inside, "keys", key)
        await self._directory.announce(identity)
        return key


async def count_keys(inside: Statements) -> int:
    """How many keys there are that are not revoked."""
    rows = await inside.query("SELECT COUNT(*) AS count FROM keys WHERE revoked_us IS NULL")
    return int(str(rows[0]["count"]))


async def _behind(inside: Statements, principal: Principal, identity: str) -> tuple[Key, Standing]:
    """A key that the caller may do something to, and what stands behind it."""
    found = await of_key(inside, identity)
    if found is None:
        raise not_found()
    key, standing, _ = found
    require(principal, "keys.write", key.resource)
    if key.admin and not principal.admin:
        raise denied("Only administrators of the gateway touch keys of administrators.")
    return key, standing


async def _writable(inside: Statements, principal: Principal, identity: str) -> Key:
    """A key that the caller may change, and whose text he may have: of people's keys only his own."""
    key, _ = await _behind(inside, principal, identity)
    if key.user_id not in (None, principal.user_id) and not principal.admin:
        raise denied("Only its user changes a user's key; you can revoke it.")
    return key


def _check_rank(principal: Principal, key: Key, standing: Standing) -> None:
    """Nobody revokes a key of somebody above him."""
    if key.user_id in (None, principal.user_id) or standing.user is None:
        return
    role = standing.user.role if key.team_id is None else standing.team_role or "viewer"
    if not outranks(principal, role, key.resource):
        raise denied("The key belongs to somebody whose role is above yours.")


async def _own(inside: Statements, principal: Principal) -> Key | None:
    """The key that the caller acts with, when it is one."""
    return await find(inside, "keys", Key, id=principal.key_id)


async def _settled(inside: Statements, principal: Principal, place: Place) -> Place:
    """The place with its organisation; raises unless it is sound and the caller may make keys there."""
    if place.admin and not principal.admin:
        raise denied("Only administrators of the gateway make keys of administrators.")
    if place.team_id is None and place.user_id is None and place.org_id is None:
        if not principal.admin:
            raise denied("Only administrators of the gateway make keys outside of organisations.", "org_id")
        require(principal, "keys.write", Resource(tenant=place.tenant))
        return place
    if place.tenant is not None:
        raise invalid("The tenant of a key in an organisation is that organisation.", "tenant")
    standing = await _standing(inside, place)
    org_id = None if standing.org is None else standing.org.id
    place = replace(place, org_id=org_id, tenant=org_id or place.user_id)
    resource = Resource(tenant=place.tenant, org_id=org_id, team_id=place.team_id, user_id=place.user_id)
    require(principal, "keys.write", resource, "org_id")
    if place.user_id not in (None, principal.user_id) and not principal.admin:
        raise denied("A person's keys are made by that person.", "user_id")
    try:
        standing.check()
    except errors.GatewayError as error:
        raise errors.error("conflict", error.message) from None
    return place


async def _standing(inside: Statements, place: Place) -> Standing:
    """What would stand behind a key at that place; what is not in its organisation is as if it were not there."""
    user = Standing() if place.user_id is None else await of_user(inside, place.user_id)
    if user is None:
        raise not_found("user_id")
    team = None if place.team_id is None else await find(inside, "teams", Team, id=place.team_id)
    if place.team_id is not None and team is None:
        raise not_found("team_id")
    of = team or user.user
    org_id = place.org_id or (None if of is None else of.org_id)
    org = None if org_id is None else await find(inside, "orgs", Org, id=org_id)
    if org_id is not None and org is None:
        raise not_found("org_id")
    if team is not None and team.org_id != org_id:
        raise not_found("team_id")
    if user.user is not None and user.user.org_id != org_id:
        raise not_found("user_id")
    return Standing(org, team, user.user, user.members)
