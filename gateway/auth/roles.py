"""Who may do what: one table of permissions, and the one function that reads it. What is not in it, nobody may.

A permission is also the name of a scope of keys: a key with scopes may do what its roles allow and its scopes name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import msgspec

from gateway.auth import Principal, Role

PUBLIC = "public"
ORG = "org."
TEAM = "team."
# A person about what is his own, and any credential about what it used itself.
PERSON = "person"
SELF = "self"
# A credential that neither is a person's nor has a role: it runs requests and administrates nothing.
PLAIN = "plain"

Verdict = Literal["allowed", "denied", "hidden"]
RANKS: Mapping[Role, int] = {role: rank for rank, role in enumerate(get_args(Role))}


class Resource(msgspec.Struct, frozen=True):
    """Whose something is. `tenant` is the wall it lies behind; in an organisation that is the organisation's id."""

    tenant: str | None = None
    org_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    key_id: str | None = None


class Rule(msgspec.Struct, frozen=True):
    """Who has a permission, administrators of the whole gateway apart, who have all. `read` is the permission that
    lets a caller know that the resource is there at all."""

    who: frozenset[str]
    about: str
    read: str


def _orgs(*roles: Role) -> frozenset[str]:
    return frozenset(ORG + role for role in roles)


def _teams(*roles: Role) -> frozenset[str]:
    return frozenset(TEAM + role for role in roles)


def _table(rows: Iterable[tuple[str, frozenset[str], str]]) -> Mapping[str, Rule]:
    """Who may do something to a thing that he cannot see learns no more of it than of one that is not there."""
    names = {name: (who, about) for name, who, about in rows}
    found = {}
    for name, (who, about) in names.items():
        read = name.partition(".")[0] + ".read"
        found[name] = Rule(who, about, read if read in names else name)
    return found


_NOBODY: frozenset[str] = frozenset()
_OWNER = _orgs("owner")
_ADMINS = _orgs("owner", "admin")
_LEADS = _ADMINS | _teams("owner", "admin")
_READERS = _orgs("owner", "admin", "viewer")
_TEAM_READERS = _teams("owner", "admin", "viewer")
_ORG = _orgs("owner", "admin", "member", "viewer")
_TEAM = _teams("owner", "admin", "member", "viewer")
_USERS = frozenset({PLAIN}) | _orgs("owner", "admin", "member") | _teams("owner", "admin", "member")
_ANYONE = frozenset({SELF, PERSON})

TABLE: Mapping[str, Rule] = _table(
    (
        ("inference", _USERS, "run requests on models"),
        ("passthrough", _USERS, "send requests to providers in their own API"),
        ("sessions", _USERS, "see and change kept conversations"),
        ("models.read", _ANYONE, "see which models there are"),
        ("usage.read", _ANYONE | _READERS | _TEAM_READERS, "see what was used and what it cost"),
        ("account.read", frozenset({PERSON}), "see your own profile"),
        ("account.write", frozenset({PERSON}), "change your own profile"),
        ("orgs.read", _ORG, "see an organisation"),
        ("orgs.write", _OWNER, "change an organisation"),
        ("orgs.create", _NOBODY, "make organisations"),
        ("teams.read", _READERS | _TEAM, "see teams and their members"),
        ("teams.write", _LEADS, "change a team and its members"),
        ("teams.create", _ADMINS, "make teams"),
        ("users.read", frozenset({PERSON}) | _READERS, "see the people of an organisation"),
        ("users.write", _ADMINS, "add, change and disable people"),
        ("keys.read", _ANYONE | _READERS | _TEAM_READERS, "see keys, never their secrets"),
        ("keys.write", frozenset({PERSON}) | _LEADS, "make, change, rotate and revoke keys"),
        ("limits.read", _ANYONE | _READERS | _TEAM_READERS, "see limits and how they stand"),
        ("limits.write", _ADMINS, "limit organisations, teams, people and keys further"),
        ("guardrails.read", _NOBODY, "see the guardrails and what they did, and try them out"),
        ("wallets.read", _READERS, "see wallets and their statements"),
        ("wallets.transfer", _ADMINS, "move credit between wallets of one organisation"),
        ("wallets.write", _NOBODY, "open wallets, top them up and refund"),
        ("alerts.read", _READERS, "see alerts"),
        ("alerts.write", _ADMINS, "say who is told of alerts"),
        ("audit.read", _ADMINS, "see the audit log"),
        ("ledger.write", _NOBODY, "correct the ledger"),
        ("catalog.read", _NOBODY, "see all models with their prices and states"),
        ("catalog.write", _NOBODY, "set the prices of models"),
        ("cache.read", _NOBODY, "see how full the response cache is"),
        ("cache.write", _NOBODY, "empty the response cache"),
        ("pool.read", _NOBODY, "see what is loaded and running"),
        ("pool.write", _NOBODY, "load and unload models"),
        ("library.read", _NOBODY, "see the files of models"),
        ("library.write", _NOBODY, "pull, import and delete files of models"),
        ("routing.read", _NOBODY, "see providers, routes and their health"),
        ("routing.write", _NOBODY, "open and close providers and routes"),
        ("settings.read", _NOBODY, "see the settings"),
    )
)


def may(principal: Principal, permission: str, resource: Resource | None = None) -> Verdict:
    """Whether a caller may do something to a resource, or (None) to any at all.

    `hidden`: he may not even know that it is there, and has to be told what is told of things that are not there.
    """
    rule = TABLE[permission]
    if _has(principal, permission, rule, resource):
        return "allowed"
    # A key whose scopes leave the permission out is refused whatever the resource, so this says nothing about it.
    if resource is None or not in_scope(principal, permission):
        return "denied"
    seen = rule.read != permission and _has(principal, rule.read, TABLE[rule.read], resource, scoped=False)
    return "denied" if seen else "hidden"


def _has(principal: Principal, permission: str, rule: Rule, resource: Resource | None, *, scoped: bool = True) -> bool:
    if scoped and not in_scope(principal, permission):
        return False
    return principal.admin or not rule.who.isdisjoint(capacities(principal, resource))


def in_scope(principal: Principal, permission: str) -> bool:
    return principal.scopes is None or permission in principal.scopes


def capacities(principal: Principal, resource: Resource | None = None) -> frozenset[str]:
    """As what a caller stands to a resource, or (None) all that he can be to any."""
    found = set()
    if resource is None or _is_own(principal, resource):
        found.add(SELF)
    if principal.user_id is not None and (resource is None or resource.user_id == principal.user_id):
        found.add(PERSON)
    if principal.role is None and not principal.teams:
        found.add(PLAIN)
    if principal.role is not None and _in_org(principal, resource):
        found.add(ORG + principal.role)
    for team_id, role in principal.teams:
        if resource is None or (team_id == resource.team_id and _in_org(principal, resource)):
            found.add(TEAM + role)
    return frozenset(found)


def _in_org(principal: Principal, resource: Resource | None) -> bool:
    return principal.org_id is not None and (resource is None or resource.org_id == principal.org_id)


def _is_own(principal: Principal, resource: Resource) -> bool:
    """What the credential itself did or is; outside of organisations a tenant is as good as one credential."""
    if resource.key_id is not None and resource.key_id == principal.key_id:
        return True
    return principal.org_id is None and resource.org_id is None and resource.tenant == principal.tenant


class Reach(msgspec.Struct, frozen=True):
    """What part of all resources of a kind a caller sees: everything, or what any of the other fields names."""

    everything: bool = False
    org_id: str | None = None
    team_ids: tuple[str, ...] = ()
    user_id: str | None = None
    key_id: str | None = None
    tenant: str | None = None


def reach(principal: Principal, permission: str) -> Reach:
    """The resources for which `may` says `allowed`; for lists, which hold nothing else."""
    if principal.admin:
        return Reach(everything=True)
    who = TABLE[permission].who
    outside = SELF in who and principal.org_id is None
    return Reach(
        org_id=principal.org_id if principal.role is not None and ORG + principal.role in who else None,
        team_ids=tuple(team_id for team_id, role in principal.teams if TEAM + role in who),
        user_id=principal.user_id if PERSON in who else None,
        key_id=principal.key_id if SELF in who else None,
        tenant=principal.tenant if outside else None,
    )


def outranks(principal: Principal, role: Role, resource: Resource) -> bool:
    """Whether a caller may give somebody `role`, or take it from him: nobody gives more than he has himself."""
    if principal.admin:
        return True
    ranks = [RANKS[principal.role]] if principal.role is not None and _in_org(principal, resource) else []
    if resource.team_id is not None and _in_org(principal, resource):
        ranks += [RANKS[own] for team_id, own in principal.teams if team_id == resource.team_id]
    return any(rank >= RANKS[role] for rank in ranks)


def grantable(principal: Principal, scopes: Iterable[str] | None) -> bool:
    """Whether a caller may make a key with these scopes (None: all): it has none that his own credential lacks."""
    if principal.scopes is None:
        return scopes is None or all(scope in TABLE for scope in scopes)
    return scopes is not None and principal.scopes.issuperset(scopes)
