"""Keys: who makes, changes, rotates and revokes which, and how far they reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.auth.key_rules import KeyChange
from gateway.auth.keyring import OVERLAP_S_MAX, Place
from gateway.auth.keys import ADMIN
from gateway.auth.records import Key
from gateway.auth.users import UserChange
from gateway.config_limits import ScopeLimits
from tests.house import House, in_house, refused

SOME = ScopeLimits(requests_per_minute=5)
PEOPLE: Any = (("ada", "owner"), ("bob", "member"), ("carl", "viewer"))
DAY_US = 86_400 * 1_000_000


def test_an_old_key_works_on_for_the_overlap_and_its_successor_goes_on_counting(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        settings = KeyChange(limits=SOME, tags=("a",), metadata={"who": "ci"}, weight=3)
        old, old_text = await house.key(ADMIN, Place(org_id=org.id), settings)
        await house.principal(old_text)
        new, new_text = await house.keyring.rotate(ADMIN, old.id, overlap_s=60)
        assert replace(new, id=old.id, created_us=old.created_us, counted_as=None) == old
        assert new.counted_as == old.id and (await house.keyring.get(ADMIN, old.id)).successor == new.id
        house.seconds += 59
        await house.principal(old_text)
        found = await house.principal(new_text)
        assert (found.counted_as, found.limits, found.key_id) == (old.id, SOME, new.id)
        house.seconds += 2
        await refused(house.principal(old_text), "key_expired")
        third, _ = await house.keyring.rotate(ADMIN, new.id)
        assert third.counted_as == old.id
        await refused(house.principal(new_text), "key_expired")
        await refused(house.keyring.rotate(ADMIN, new.id), "conflict")
        await house.keyring.revoke(ADMIN, third.id)
        await refused(house.keyring.rotate(ADMIN, third.id), "conflict")
        await refused(house.keyring.rotate(ADMIN, third.id, overlap_s=OVERLAP_S_MAX + 1), "invalid_value", "overlap_s")

    in_house(tmp_path, work)


def test_a_rotation_lets_nothing_live_longer_unless_it_says_so(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        end_us = house.now_us() + DAY_US
        old, _ = await house.key(settings=KeyChange(expires_us=end_us))
        new, _ = await house.keyring.rotate(ADMIN, old.id, overlap_s=30 * 86_400)
        assert new.expires_us == end_us == (await house.keyring.get(ADMIN, old.id)).expires_us
        last, _ = await house.keyring.rotate(ADMIN, new.id, expires_us=end_us + DAY_US)
        assert last.expires_us == end_us + DAY_US
        endless, _ = await house.keyring.rotate(ADMIN, last.id, expires_us=None)
        assert endless.expires_us is None

    in_house(tmp_path, work)


def test_a_key_is_changed_and_the_change_holds_at_once(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        key, text = await house.key()
        await house.principal(text)
        change = KeyChange(name="new", addresses=("10.0.0.0/8",), models=("m",), scopes=("inference",))
        changed = await house.keyring.change(ADMIN, key.id, change, 1)
        assert (changed.name, changed.version) == ("new", 2)
        assert await house.keyring.get(ADMIN, key.id) == changed
        await refused(house.principal(text, "11.0.0.1"), "ip_denied")
        assert (await house.principal(text, "10.0.0.1")).models == (("m",),)
        await refused(house.keyring.change(ADMIN, key.id, change, 1), "precondition_failed")
        freed = await house.keyring.change(ADMIN, key.id, KeyChange(addresses=(), models=None, scopes=None))
        assert replace(freed, version=1, name="k") == key
        await house.keyring.revoke(ADMIN, key.id, "lost")
        await refused(house.keyring.change(ADMIN, key.id, change), "conflict")

    in_house(tmp_path, work)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"scopes": ("nothing.read",)}, "scopes"),
        ({"addresses": ("10.0.0.1/8",)}, "addresses"),
        ({"addresses": ("10.0.0.1",) * 101}, "addresses"),
        ({"tags": ("a b",)}, "tags"),
        ({"guardrails": ("a b",)}, "guardrails"),
        ({"guardrails": tuple(f"g{i}" for i in range(101))}, "guardrails"),
        ({"tags": tuple(f"t{i}" for i in range(21))}, "tags"),
        ({"metadata": {"a": "x" * 501}}, "metadata"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"metadata": {"a": "\0"}}, "metadata"),
        ({"metadata": {f"a{i}": "" for i in range(17)}}, "metadata"),
        ({"weight": 0.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": float("inf")}, "weight"),
        ({"priority": 101}, "priority"),
        ({"models": ("a b",)}, "models"),
        ({"expires_us": 1}, "expires_at"),
    ],
)
def test_what_no_key_can_have_is_refused(tmp_path: Path, settings: dict[str, Any], param: str) -> None:
    async def work(house: House) -> None:
        await refused(house.key(settings=KeyChange(**settings)), "invalid_value", param)
        key, _ = await house.key()
        await refused(house.keyring.change(ADMIN, key.id, KeyChange(**settings)), "invalid_value", param)
        assert (await house.keyring.list(ADMIN, 10))[0] == [key]

    in_house(tmp_path, work)


def test_whose_keys_are_made_by_whom(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org, other = await house.org(), await house.org("other")
        team, alien = await house.team(org), await house.team(other, "alien")
        ada, bob, carl = [await house.user(org, name, role) for name, role in PEOPLE]
        eve = await house.user(other, "eve", "owner")
        await house.teams.add(ADMIN, team.id, carl.id, "admin")
        owner, member, lead = [await house.logged_in(user) for user in (ada, bob, carl)]
        good = [
            (owner, Place(org_id=org.id)),
            (owner, Place(team_id=team.id)),
            (owner, Place(user_id=ada.id, team_id=team.id)),
            (member, Place(user_id=bob.id)),
            (lead, Place(team_id=team.id)),
            (lead, Place(user_id=carl.id, team_id=team.id)),
        ]
        for by, place in good:
            key, text = await house.key(by, place)
            assert key.tenant == org.id == (await house.principal(text)).tenant
        bad = [
            (owner, Place(), "permission_denied"),
            (owner, Place(org_id=org.id, admin=True), "permission_denied"),
            (owner, Place(org_id=other.id), "not_found"),
            (owner, Place(org_id=org.id, team_id=alien.id), "not_found"),
            (owner, Place(org_id=org.id, user_id=eve.id), "not_found"),
            (owner, Place(user_id=bob.id), "permission_denied"),
            (owner, Place(org_id=org.id, tenant="acme"), "invalid_value"),
            (member, Place(org_id=org.id), "not_found"),
            (member, Place(user_id=bob.id, team_id=team.id), "conflict"),
            (member, Place(team_id=team.id), "not_found"),
            (lead, Place(org_id=org.id), "permission_denied"),
            (lead, Place(user_id=bob.id, team_id=team.id), "permission_denied"),
        ]
        before = len((await house.keyring.list(ADMIN, 100))[0])
        for by, place, code in bad:
            await refused(house.key(by, place), code)
        assert len((await house.keyring.list(ADMIN, 100))[0]) == before

    in_house(tmp_path, work)


@pytest.mark.parametrize(
    ("own", "more"),
    [
        ({"scopes": ("keys.write", "inference")}, {"scopes": ("keys.write", "usage.read")}),
        ({"scopes": ("keys.write",)}, {"scopes": None}),
        ({"models": ("llama-1", "demo*")}, {"models": ("llama*",)}),
        ({"models": ("demo*",)}, {"models": None}),
        ({"addresses": ("10.0.0.0/8",)}, {"addresses": ("10.0.0.0/7",)}),
        ({"addresses": ("10.0.0.0/8",)}, {"addresses": ()}),
        ({"tags": ("a", "b")}, {"tags": ("a",)}),
        ({"guardrails": ("a", "b")}, {"guardrails": ("a",)}),
        ({"expires_us": 10**12}, {"expires_us": None}),
        ({"expires_us": 10**12}, {"expires_us": 10**12 + 1}),
    ],
)
def test_a_key_makes_and_opens_none_that_reaches_further(
    tmp_path: Path, own: dict[str, Any], more: dict[str, Any]
) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        ada = await house.user(org, "ada", "owner")
        me = await house.logged_in(ada)
        _, text = await house.key(me, Place(user_id=ada.id), KeyChange(**own))
        narrow = await house.principal(text, "10.0.0.1")
        (name,) = own
        asked = name.replace("_us", "_at")
        for place in (Place(user_id=ada.id), Place(org_id=org.id)):
            await refused(house.key(narrow, place, KeyChange(**more)), "permission_denied", asked)
            child, _ = await house.key(narrow, place)
            inherited = getattr(child, name)
            assert inherited == own[name] if name != "scopes" else sorted(inherited) == sorted(own[name])
            await refused(house.keyring.change(narrow, child.id, KeyChange(**more)), "permission_denied", asked)
            assert await house.keyring.get(ADMIN, child.id) == child
        wide, _ = await house.key(me, Place(user_id=ada.id))
        await refused(house.keyring.rotate(narrow, wide.id), "permission_denied")
        await house.keyring.rotate(narrow, child.id)
        await house.keyring.change(narrow, wide.id, KeyChange(name="renamed"))

    in_house(tmp_path, work)


def test_two_narrow_keys_do_not_open_each_other(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        ada = await house.user(org, "ada", "owner")
        mine = Place(user_id=ada.id)
        _, text = await house.key(ADMIN, mine, KeyChange(scopes=("keys.write",)))
        key, _ = await house.key(ADMIN, mine, KeyChange(scopes=("inference",), models=("small",)))
        by = await house.principal(text)
        await refused(house.keyring.change(by, key.id, KeyChange(models=None)), "permission_denied", "scopes")
        assert (await house.keyring.change(by, key.id, KeyChange(models=()))).models == ()
        _, text = await house.key(ADMIN, mine, KeyChange(limits=SOME))
        limited = await house.principal(text)
        await refused(house.keyring.change(limited, key.id, KeyChange(models=None)), "permission_denied")
        await refused(house.keyring.rotate(limited, key.id), "permission_denied")
        await house.keyring.rotate(limited, limited.key_id)

    in_house(tmp_path, work)


def test_a_key_of_a_team_makes_keys_of_that_team_only(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        team, other = await house.team(org), await house.team(org, "other")
        ada = await house.user(org, "ada", "owner")
        _, text = await house.key(ADMIN, Place(user_id=ada.id, team_id=team.id))
        narrow = await house.principal(text)
        assert (narrow.role, narrow.teams) == (None, ((team.id, "owner"),))
        await house.key(narrow, Place(team_id=team.id))
        await house.key(narrow, Place(user_id=ada.id, team_id=team.id))
        await refused(house.key(narrow, Place(user_id=ada.id)), "permission_denied", "team_id")
        await refused(house.key(narrow, Place(user_id=ada.id, team_id=other.id)), "permission_denied", "team_id")
        await refused(house.key(narrow, Place(org_id=org.id)), "not_found")

    in_house(tmp_path, work)


def test_a_key_with_limits_of_its_own_makes_no_others(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        ada = await house.user(org, "ada", "owner")
        me = await house.logged_in(ada)
        _, text = await house.key(me, Place(user_id=ada.id), KeyChange(limits=SOME))
        await refused(house.key(await house.principal(text), Place(user_id=ada.id)), "permission_denied")

    in_house(tmp_path, work)


def test_limits_weights_and_wallets_are_set_by_those_who_limit_others(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        ada, bob = await house.user(org, "ada", "owner"), await house.user(org, "bob")
        owner, member = await house.logged_in(ada), await house.logged_in(bob)
        mine = Place(user_id=bob.id)
        for change in (KeyChange(limits=SOME), KeyChange(priority=1), KeyChange(weight=2)):
            await refused(house.key(member, mine, change), "permission_denied")
        await house.key(owner, Place(org_id=org.id), KeyChange(limits=SOME, priority=1))
        wallet = KeyChange(limits=ScopeLimits(wallet="gold"))
        for change in (wallet, KeyChange(weight=2)):
            await refused(house.key(owner, Place(org_id=org.id), change), "permission_denied")
        key, _ = await house.key(ADMIN, mine, KeyChange(tags=("slow",), limits=SOME, weight=2))
        await refused(house.keyring.change(member, key.id, KeyChange(tags=())), "permission_denied", "tags")
        await refused(house.keyring.change(member, key.id, KeyChange(limits=None)), "permission_denied", "limits")
        await house.keyring.change(member, key.id, KeyChange(guardrails=("pii",)))
        taken = house.keyring.change(member, key.id, KeyChange(guardrails=()))
        await refused(taken, "permission_denied", "guardrails")
        more = await house.keyring.change(member, key.id, KeyChange(tags=("slow", "more"), weight=2))
        assert (more.tags, more.weight, more.limits) == (("slow", "more"), 2, SOME)

    in_house(tmp_path, work)


def test_a_persons_key_is_changed_by_him_and_revoked_by_who_is_not_below_him(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org = await house.org()
        ada, bob = await house.user(org, "ada", "owner"), await house.user(org, "bob", "admin")
        owner, admin = await house.logged_in(ada), await house.logged_in(bob)
        hers, _ = await house.key(owner, Place(user_id=ada.id))
        his, _ = await house.key(admin, Place(user_id=bob.id))
        for by, key in ((owner, his), (admin, hers)):
            await refused(house.keyring.rotate(by, key.id), "permission_denied")
            await refused(house.keyring.change(by, key.id, KeyChange(name="x")), "permission_denied")
        await refused(house.keyring.revoke(admin, hers.id), "permission_denied")
        assert (await house.keyring.revoke(owner, his.id, "gone")).revoked_reason == "gone"
        root = await house.users.create(ADMIN, org.id, "root@example.com", role="viewer", admin=True)
        master, text = await house.key(ADMIN, Place(user_id=root.id, admin=True))
        assert (await house.principal(text)).admin
        await refused(house.keyring.revoke(owner, master.id), "permission_denied")
        await house.users.change(ADMIN, root.id, UserChange(admin=False))
        assert not (await house.principal(text)).admin

    in_house(tmp_path, work)


def test_everybody_lists_what_he_may_see(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        org, other = await house.org(), await house.org("other")
        team = await house.team(org)
        ada, bob = await house.user(org, "ada", "owner"), await house.user(org, "bob")
        await house.teams.add(ADMIN, team.id, bob.id, "admin")
        plain, plain_text = await house.key(ADMIN)
        await house.key(ADMIN, Place(org_id=other.id))
        service, _ = await house.key(ADMIN, Place(org_id=org.id))
        of_team, _ = await house.key(ADMIN, Place(team_id=team.id))
        his, text = await house.key(ADMIN, Place(user_id=bob.id))

        async def seen(by: Any, **filters: str) -> list[Key]:
            return (await house.keyring.list(by, 100, **filters))[0]

        assert await seen(await house.logged_in(ada)) == [service, of_team, his]
        assert await seen(await house.logged_in(bob)) == [of_team, his]
        assert await seen(await house.principal(plain_text)) == [plain]
        assert await seen(ADMIN, user_id=bob.id) == [his] and len(await seen(ADMIN)) == 5
        assert await seen(await house.logged_in(bob), team_id=team.id) == [of_team]
        await refused(house.keyring.get(await house.principal(text), service.id), "not_found")

    in_house(tmp_path, work)
