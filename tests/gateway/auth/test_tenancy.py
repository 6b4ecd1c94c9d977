"""Organisations, teams and people: what is done to them, who may do it, and what follows for their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from gateway.auth.key_rules import KeyChange
from gateway.auth.keyring import Place
from gateway.auth.keys import ADMIN
from gateway.auth.orgs import OrgChange
from gateway.auth.teams import TEAMS_OF_USER_MAX, MemberChange, TeamChange
from gateway.auth.users import UserChange, check_email
from gateway.config_limits import ScopeLimits
from gateway.errors import GatewayError
from tests.house import House, in_house, refused

SOME = ScopeLimits(requests_per_minute=5)


def test_organisations_are_made_changed_and_listed(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        orgs = [await house.org(f"org {i}") for i in range(5)]
        assert await house.orgs.get(ADMIN, orgs[0].id) == orgs[0] and orgs[0].id.startswith("org_")
        first, more = await house.orgs.list(ADMIN, 3)
        rest, end = await house.orgs.list(ADMIN, 3, first[-1].id)
        assert (first + rest, more, end) == (orgs, True, False)
        await refused(house.orgs.list(ADMIN, 3, "org_nothing"), "invalid_value", "after")
        change = OrgChange(name="Better", limits=SOME, models=("llama*",))
        changed = await house.orgs.change(ADMIN, orgs[0].id, change, 1)
        assert (changed.name, changed.limits, changed.models, changed.version) == ("Better", SOME, ("llama*",), 2)
        assert await house.orgs.get(ADMIN, orgs[0].id) == changed
        await refused(house.orgs.change(ADMIN, orgs[0].id, change, 1), "precondition_failed")
        cleared = await house.orgs.change(ADMIN, orgs[0].id, OrgChange(limits=None, models=None))
        assert (cleared.name, cleared.limits, cleared.models) == ("Better", None, None)
        await refused(house.orgs.change(ADMIN, "org_x", change), "not_found")

    in_house(tmp_path, work)


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 101, "\x1b[0m"])
def test_names_that_would_break_a_table_are_refused(tmp_path: Path, name: str) -> None:
    async def work(house: House) -> None:
        await refused(house.org(name), "invalid_value", "name")

    in_house(tmp_path, work)


@pytest.mark.parametrize("models", [("a b",), ("a\n",), ("",), ("*a",), ("a**",), tuple(f"m{i}" for i in range(1001))])
def test_lists_of_models_are_checked(tmp_path: Path, models: tuple[str, ...]) -> None:
    async def work(house: House) -> None:
        await refused(house.org(models=models), "invalid_value", "models")

    in_house(tmp_path, work)


def test_only_an_administrator_of_the_gateway_makes_and_feeds_organisations(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org, other = await house.org(), await house.org("other")
        owner = await house.logged_in(await house.user(org, "ada", "owner"))
        await refused(house.orgs.create(owner, "mine"), "permission_denied")
        assert (await house.orgs.change(owner, org.id, OrgChange(name="Ours"))).name == "Ours"
        for change in (OrgChange(limits=None), OrgChange(models=None), OrgChange(archived=True)):
            await refused(house.orgs.change(owner, org.id, change), "permission_denied")
        await refused(house.orgs.get(owner, other.id), "not_found")
        assert [one.id for one in (await house.orgs.list(owner, 10))[0]] == [org.id]
        admin = await house.logged_in(await house.user(org, "bob", "admin"))
        await refused(house.orgs.change(admin, org.id, OrgChange(name="Mine")), "permission_denied")

    in_house(tmp_path, work)


def test_teams_and_their_members(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org, other = await house.org(), await house.org("other")
        team = await house.team(org)
        await refused(house.team(org, "research"), "conflict", "name")
        assert (await house.team(other, "research")).org_id == other.id
        ada, bob = await house.user(org, "ada", "owner"), await house.user(org, "bob")
        stranger = await house.user(other, "eve")
        owner = await house.logged_in(ada)
        member = await house.teams.add(owner, team.id, bob.id, "admin", SOME)
        assert (member.role, member.limits) == ("admin", SOME)
        await refused(house.teams.add(owner, team.id, bob.id), "conflict", "user_id")
        await refused(house.teams.add(owner, team.id, stranger.id), "not_found", "user_id")
        lead = await house.logged_in(bob)
        assert (lead.role, lead.teams) == ("member", ((team.id, "admin"),))
        renamed = await house.teams.change(lead, team.id, TeamChange(name="lab"), 1)
        assert (renamed.name, renamed.version) == ("lab", 2)
        for change in (TeamChange(limits=None), TeamChange(models=("a",)), TeamChange(archived=True)):
            await refused(house.teams.change(lead, team.id, change), "permission_denied")
        await refused(house.teams.add(lead, team.id, ada.id, "owner"), "permission_denied", "role")
        await house.teams.add(lead, team.id, ada.id)
        await refused(house.teams.set_member(lead, team.id, ada.id, MemberChange(role="owner")), "permission_denied")
        await refused(house.teams.set_member(lead, team.id, bob.id, MemberChange(limits=None)), "permission_denied")
        members, more = await house.teams.members(lead, team.id, 1)
        rest, end = await house.teams.members(lead, team.id, 1, members[0].user_id)
        assert ([one.user_id for one in members + rest], more, end) == ([bob.id, ada.id], True, False)
        elsewhere = await house.logged_in(stranger)
        await refused(house.teams.members(elsewhere, team.id, 1), "not_found")
        await house.teams.remove(lead, team.id, bob.id)
        await refused(house.teams.member(owner, team.id, bob.id), "not_found")

    in_house(tmp_path, work)


def test_the_last_owner_of_a_team_stays(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        team, ada, bob = await house.team(org), await house.user(org, "ada"), await house.user(org, "bob")
        await house.teams.add(ADMIN, team.id, ada.id, "owner")
        await house.teams.add(ADMIN, team.id, bob.id)
        owner = await house.logged_in(ada)
        for by in (owner, ADMIN):
            await refused(house.teams.remove(by, team.id, ada.id), "conflict")
            await refused(house.teams.set_member(by, team.id, ada.id, MemberChange(role="member")), "conflict")
        await house.teams.set_member(owner, team.id, bob.id, MemberChange(role="owner"))
        await house.teams.remove(owner, team.id, ada.id)

    in_house(tmp_path, work)


def test_a_user_is_in_a_bounded_number_of_teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.teams.TEAMS_OF_USER_MAX", 2)

    async def work(house: House) -> None:
        org = await house.org()
        ada = await house.user(org, "ada")
        for name in ("a", "b"):
            await house.teams.add(ADMIN, (await house.team(org, name)).id, ada.id)
        await refused(house.teams.add(ADMIN, (await house.team(org, "c")).id, ada.id), "conflict")

    in_house(tmp_path, work)
    assert TEAMS_OF_USER_MAX > 2


def test_people(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org, other = await house.org(), await house.org("other")
        ada = await house.users.create(ADMIN, org.id, " Ada@Example.COM ", role="owner")
        assert (ada.email, ada.name) == ("ada@example.com", "Ada")
        await refused(house.users.create(ADMIN, other.id, "ADA@example.com"), "conflict", "email")
        await refused(house.users.create(ADMIN, None, "nobody@example.com"), "invalid_value", "org_id")
        root = await house.users.create(ADMIN, None, "root@example.com", admin=True)
        assert (await house.logged_in(root)).admin
        owner = await house.logged_in(ada)
        bob = await house.users.create(owner, org.id, "bob@example.com", role="admin")
        await refused(house.users.create(owner, other.id, "eve@example.com"), "not_found")
        await refused(house.users.create(owner, org.id, "eve@example.com", admin=True), "permission_denied", "admin")
        admin = await house.logged_in(bob)
        await refused(house.users.create(admin, org.id, "c@example.com", role="owner"), "permission_denied", "role")
        await refused(house.users.change(admin, bob.id, UserChange(role="owner")), "permission_denied", "role")
        for change in (UserChange(role="member"), UserChange(disabled=True), UserChange(name="x")):
            await refused(house.users.change(admin, ada.id, change), "permission_denied", "role")
        for change in (UserChange(admin=True), UserChange(email="b@example.com"), UserChange(limits=None)):
            await refused(house.users.change(admin, bob.id, change), "permission_denied")
        member = await house.logged_in(await house.user(org, "carl"))
        assert member.user_id is not None
        assert (await house.users.change(member, member.user_id, UserChange(name="Carl"))).name == "Carl"
        await refused(house.users.change(member, member.user_id, UserChange(role="admin")), "permission_denied")
        await refused(house.users.get(member, ada.id), "not_found")
        assert [one.id for one in (await house.users.list(member, 9))[0]] == [member.user_id]
        assert len((await house.users.list(owner, 9, org_id=org.id))[0]) == 3
        assert (await house.users.by_email(owner, "BOB@example.com")).id == bob.id

    in_house(tmp_path, work)


def test_the_last_owner_of_an_organisation_stays(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        ada, bob = await house.user(org, "ada", "owner"), await house.user(org, "bob", "owner")
        await house.users.change(ADMIN, bob.id, UserChange(disabled=True))
        for change in (UserChange(role="admin"), UserChange(disabled=True)):
            await refused(house.users.change(ADMIN, ada.id, change), "conflict")
        await house.users.change(ADMIN, bob.id, UserChange(disabled=False))
        await house.users.change(ADMIN, ada.id, UserChange(role="viewer"))
        await refused(house.users.change(ADMIN, bob.id, UserChange(role="admin")), "conflict")

    in_house(tmp_path, work)


@pytest.mark.parametrize(
    "email", ["", "a", "a@", "@b.example", "a b@c.example", "a@b", "a@b..example", "a@b.example\n,"]
)
def test_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(GatewayError) as caught:
        check_email(email)
    assert caught.value.param == "email"


def test_a_key_in_an_organisation_has_what_stands_behind_it(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org(limits=SOME, models=("llama*", "demo"))
        team = await house.team(org, limits=ScopeLimits(tokens_per_minute=7), models=("demo",))
        ada = await house.user(org, "ada", limits=ScopeLimits(concurrent_requests=1))
        await house.teams.add(ADMIN, team.id, ada.id, "viewer", ScopeLimits(requests_per_minute=1))
        await house.orgs.change(ADMIN, org.id, OrgChange(guardrails=("pii", "words")))
        await house.teams.change(ADMIN, team.id, TeamChange(guardrails=("words", "judge")))
        settings = KeyChange(
            models=("d*",), scopes=("inference",), tags=("batch",), weight=2.5, priority=7, guardrails=("own",)
        )
        _, text = await house.key(ADMIN, Place(user_id=ada.id, team_id=team.id), settings)
        found = await house.principal(text)
        assert (found.tenant, found.org_id, found.team_id, found.user_id) == (org.id, org.id, team.id, ada.id)
        assert (found.kind, found.role, found.teams) == ("user", None, ((team.id, "viewer"),))
        assert (found.weight, found.priority, found.tags, found.scopes) == (
            2.5,
            7,
            ("batch",),
            frozenset({"inference"}),
        )
        assert found.models == (("d*",), ("demo",), ("llama*", "demo"))
        assert found.guardrails == ("judge", "own", "pii", "words")
        assert found.price_ppm == 1_000_000
        assert dict(found.scopes_limits) == {
            f"org:{org.id}": SOME,
            f"team:{team.id}": ScopeLimits(tokens_per_minute=7),
            f"user:{ada.id}": ScopeLimits(concurrent_requests=1),
            f"member:{team.id}/{ada.id}": ScopeLimits(requests_per_minute=1),
        }
        _, text = await house.key(ADMIN, Place(user_id=ada.id))
        found = await house.principal(text)
        assert (found.team_id, found.role, found.teams) == (None, "member", ((team.id, "viewer"),))
        _, text = await house.key(ADMIN, Place(org_id=org.id))
        found = await house.principal(text)
        assert (found.kind, found.role, found.teams, found.tenant) == ("service", "member", (), org.id)

    in_house(tmp_path, work)


@pytest.mark.parametrize("end", ["org", "team", "user", "left"])
@pytest.mark.parametrize("announced", [True, False])
def test_keys_of_what_is_gone_are_refused_within_five_seconds(tmp_path: Path, end: str, announced: bool) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        team, ada = await house.team(org), await house.user(org, "ada")
        await house.teams.add(ADMIN, team.id, ada.id)
        _, text = await house.key(ADMIN, Place(user_id=ada.id, team_id=team.id))
        await house.principal(text)
        if not announced:
            house.keys._stop_listening and house.keys._stop_listening()
        back: Any = None
        if end == "org":
            await house.orgs.change(ADMIN, org.id, OrgChange(archived=True))
            back = house.orgs.change(ADMIN, org.id, OrgChange(archived=False))
        elif end == "team":
            await house.teams.change(ADMIN, team.id, TeamChange(archived=True))
            back = house.teams.change(ADMIN, team.id, TeamChange(archived=False))
        elif end == "user":
            await house.users.change(ADMIN, ada.id, UserChange(disabled=True))
            back = house.users.change(ADMIN, ada.id, UserChange(disabled=False))
        else:
            await house.teams.remove(ADMIN, team.id, ada.id)
            back = house.teams.add(ADMIN, team.id, ada.id)
        if not announced:
            await house.principal(text)
            house.seconds += 5
        error = await refused(house.principal(text), "key_revoked")
        assert error.status == 401
        await back
        house.seconds += 0 if announced else 5
        await house.principal(text)

    in_house(tmp_path, work)


def test_nothing_new_comes_to_what_is_archived(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        team, ada = await house.team(org), await house.user(org, "ada")
        await house.teams.change(ADMIN, team.id, TeamChange(archived=True))
        await refused(house.teams.add(ADMIN, team.id, ada.id), "conflict")
        await refused(house.key(ADMIN, Place(team_id=team.id)), "conflict")
        await house.orgs.change(ADMIN, org.id, OrgChange(archived=True))
        for work in (house.team(org, "new"), house.user(org, "new"), house.key(ADMIN, Place(org_id=org.id))):
            await refused(work, "conflict")

    in_house(tmp_path, work)


def test_unset_is_not_none() -> None:
    assert OrgChange() == OrgChange(name=UNSET, limits=UNSET) != OrgChange(limits=None)


def test_prices_are_multiplied_by_what_the_team_says_else_the_organisation(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org(price_factor="1.25")
        team, cheap = await house.team(org), await house.team(org, "cheap", price_factor="0.9")
        for of, ppm in ((team, 1_250_000), (cheap, 900_000)):
            _, text = await house.key(ADMIN, Place(org_id=org.id, team_id=of.id))
            assert (await house.principal(text)).price_ppm == ppm
        await house.teams.change(ADMIN, cheap.id, TeamChange(price_factor="0"))
        assert (await house.principal(text)).price_ppm == 0
        owner = await house.logged_in(await house.user(org, "owner", "owner"))
        await refused(house.teams.change(owner, team.id, TeamChange(price_factor="0.1")), "permission_denied")
        await refused(house.teams.create(owner, org.id, "mine", price_factor="0.1"), "permission_denied")
        await refused(house.orgs.change(owner, org.id, OrgChange(price_factor="0.1")), "permission_denied")

    in_house(tmp_path, work)
