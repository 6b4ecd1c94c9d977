from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.auth import Principal, Role
from gateway.auth.roles import TABLE, Resource, grantable, may, outranks, reach

ROLES: tuple[Role, ...] = get_args(Role)
ADMIN = Principal(tenant="admin", key_id="admin", name="admin", admin=True)
PLAIN = Principal(tenant="k1", key_id="k1", name="plain")
OTHERS = Resource(tenant="org_b", org_id="org_b", team_id="team_b", user_id="user_b", key_id="kb")


def person(role: Role | None = "member", *teams: tuple[str, Role]) -> Principal:
    return Principal(
        tenant="org_a", key_id="ka", name="ann", org_id="org_a", user_id="user_a", role=role, teams=teams, kind="user"
    )


def of(team_id: str | None = None, user_id: str | None = None, key_id: str | None = None) -> Resource:
    return Resource(tenant="org_a", org_id="org_a", team_id=team_id, user_id=user_id, key_id=key_id)


@pytest.mark.parametrize("permission", TABLE)
def test_administrators_may_everything_and_nobody_else_reaches_another_organisation(permission: str) -> None:
    assert may(ADMIN, permission, OTHERS) == "allowed"
    for role, team in itertools.product((*ROLES, None), (*ROLES, None)):
        somebody = person(role, *([("team_a", team)] if team else []), ("team_b", "owner"))
        if permission not in ("inference", "sessions", "passthrough"):
            assert may(somebody, permission, OTHERS) == "hidden"
    assert may(replace(PLAIN, tenant="x"), permission, replace(OTHERS, org_id=None)) in ("hidden", "allowed")
    assert may(PLAIN, permission, OTHERS) == (
        "allowed" if permission in ("inference", "sessions", "passthrough") else "hidden"
    )


@pytest.mark.parametrize(
    ("who", "permission", "what", "verdict"),
    [
        (person("owner"), "orgs.write", of(), "allowed"),
        (person("admin"), "orgs.write", of(), "denied"),
        (person("viewer"), "keys.read", of(user_id="user_x"), "allowed"),
        (person("viewer"), "keys.write", of(user_id="user_x"), "denied"),
        (person("viewer"), "inference", None, "denied"),
        (person("viewer", ("team_a", "member")), "inference", None, "allowed"),
        (person("member"), "keys.write", of(user_id="user_a"), "allowed"),
        (person("member"), "keys.write", of(user_id="user_x"), "hidden"),
        (person("member"), "keys.read", of(key_id="ka"), "allowed"),
        (person("member", ("team_a", "admin")), "keys.write", of("team_a", "user_x"), "allowed"),
        (person("member", ("team_a", "viewer")), "keys.write", of("team_a", "user_x"), "denied"),
        (person("member", ("team_a", "admin")), "keys.write", of("team_c", "user_x"), "hidden"),
        (person("member"), "limits.write", of(user_id="user_a"), "denied"),
        (person("member"), "settings.read", None, "denied"),
        (PLAIN, "inference", None, "allowed"),
        (PLAIN, "keys.read", Resource(tenant="k1", key_id="k1"), "allowed"),
        (PLAIN, "keys.write", Resource(tenant="k1", key_id="k1"), "denied"),
        (PLAIN, "audit.read", None, "denied"),
    ],
)
def test_examples(who: Principal, permission: str, what: Resource | None, verdict: str) -> None:
    assert may(who, permission, what) == verdict


@pytest.mark.parametrize("who", [ADMIN, PLAIN, person("owner")])
def test_scopes_only_ever_take_away(who: Principal) -> None:
    narrow = replace(who, scopes=frozenset({"models.read"}))
    for permission, what in itertools.product(TABLE, (None, of(), OTHERS)):
        if permission != "models.read":
            assert may(narrow, permission, what) == "denied"
        else:
            assert may(narrow, permission, what) == may(who, permission, what)


resources = st.builds(
    Resource,
    tenant=st.sampled_from(["org_a", "org_b", "k1", None]),
    org_id=st.sampled_from(["org_a", "org_b", None]),
    team_id=st.sampled_from(["team_a", "team_b", None]),
    user_id=st.sampled_from(["user_a", "user_b", None]),
    key_id=st.sampled_from(["ka", "kb", "k1", None]),
)
principals = st.one_of(
    st.just(PLAIN),
    st.just(ADMIN),
    st.builds(
        lambda role, teams, scopes: replace(person(role, *teams.items()), scopes=scopes),
        st.sampled_from([*ROLES, None]),
        st.dictionaries(st.sampled_from(["team_a", "team_b"]), st.sampled_from(ROLES), max_size=2),
        st.none() | st.frozensets(st.sampled_from(sorted(TABLE))),
    ),
)


@given(principals, st.sampled_from(sorted(TABLE)), resources)
def test_a_list_shows_what_may_be_read_one_by_one(who: Principal, permission: str, what: Resource) -> None:
    if "plain" in TABLE[permission].who or (who.scopes is not None and permission not in who.scopes):
        return
    seen = reach(who, permission)
    listed = (
        seen.everything
        or (seen.org_id is not None and seen.org_id == what.org_id)
        or (what.team_id in seen.team_ids and what.org_id == who.org_id)
        or (seen.user_id is not None and seen.user_id == what.user_id)
        or (seen.key_id is not None and seen.key_id == what.key_id)
        or (seen.tenant is not None and what.org_id is None and seen.tenant == what.tenant)
    )
    assert listed == (may(who, permission, what) == "allowed")


@given(principals, st.sampled_from(sorted(TABLE)), resources)
def test_what_may_be_done_to_one_thing_may_be_done_at_all(who: Principal, permission: str, what: Resource) -> None:
    if may(who, permission, what) == "allowed":
        assert may(who, permission) == "allowed"


def test_nobody_gives_more_than_he_has() -> None:
    team = of("team_a")
    lead = person("member", ("team_a", "admin"))
    assert outranks(lead, "admin", team) and not outranks(lead, "owner", team)
    assert not outranks(lead, "admin", of()) and not outranks(lead, "admin", of("team_c"))
    assert outranks(person("owner"), "owner", of()) and not outranks(person("owner"), "viewer", OTHERS)
    assert outranks(ADMIN, "owner", OTHERS)
    narrow = replace(lead, scopes=frozenset({"inference", "keys.write"}))
    assert grantable(lead, None) and grantable(lead, ["inference"]) and not grantable(lead, ["rootly"])
    assert grantable(narrow, ["inference"]) and not grantable(narrow, ["usage.read"]) and not grantable(narrow, None)
