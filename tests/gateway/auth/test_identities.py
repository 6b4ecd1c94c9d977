"""Who a provider's users become: new ones, known ones, linked ones, refused ones; and what their groups mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.auth.accounts import Rejected, Visit
from gateway.auth.identities import Change, role_of, team_roles
from gateway.auth.oidc import Identity
from gateway.auth.records import Member, Org, Team, User, find, insert
from gateway.config_people import GroupConfig, LoginConfig, PeopleConfig
from tests.gateway.auth.test_accounts import EMAIL, OPEN, PASSWORD, World, run

URL = "https://id.example"
NEW = Identity(issuer=URL, subject="1", name="Alice", email=EMAIL)
CLOSED = PeopleConfig()


def login(**fields: Any) -> LoginConfig:
    return LoginConfig(name="corp", issuer=URL, client_id="gateway", **fields)


def of(identity: Identity = NEW, **fields: Any) -> Identity:
    return Identity(**({name: getattr(identity, name) for name in identity.__struct_fields__} | fields))


async def arrive(
    world: World, identity: Identity = NEW, config: LoginConfig | None = None, **options: Any
) -> tuple[User, list[Change]]:
    visit = options.get("visit", world.visit)
    entered, changes = await world.identities.arrive(identity, config or login(), options.get("link", ""), visit)
    assert await world.sessions.find(entered.token) is not None
    return entered.user, changes


async def refused(world: World, identity: Identity = NEW, config: LoginConfig | None = None, **options: Any) -> str:
    error = await world.refused(arrive(world, identity, config, **options))
    return error.code


def test_somebody_new_becomes_a_user_and_is_known_then(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user, changes = await arrive(world)
        assert (user.email, user.name, user.role) == (EMAIL, "Alice", "owner")
        assert [change.action for change in changes] == ["user.signup", "user.link"]
        again, changes = await arrive(world, of(email="changed@example.test", name="Changed"))
        assert again == user and changes == []
        other, _ = await arrive(world, of(subject="2", email="b@example.test"))
        assert other.id != user.id and other.org_id != user.org_id
        third, _ = await arrive(world, of(issuer="https://other.example", email="c@example.test"))
        assert third.id != user.id
        assert [one.issuer for one in await world.identities.of_user(user.id)] == [URL]

    run(tmp_path, work, CLOSED)


@pytest.mark.parametrize(
    ("identity", "config"),
    [
        (of(email=None), login()),
        (of(), login(provision=False)),
        (of(), login(email_domains=("other.test",))),
        (of(email="a@sub.example.test"), login(email_domains=("example.test",))),
        (of(email=None), login(email_domains=("example.test",))),
        (of(), login(organisation_claim="org")),
    ],
)
def test_who_stays_out(tmp_path: Path, identity: Identity, config: LoginConfig) -> None:
    async def work(world: World) -> None:
        assert await refused(world, identity, config) == "permission_denied"
        for table in ("users", "orgs", "identities", "browser_sessions"):
            assert await world.database.query(f"SELECT * FROM {table}") == []

    run(tmp_path, work)


def test_a_domain_counts_at_every_log_in(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        config = login(email_domains=("example.test",))
        await arrive(world, NEW, config)
        assert await refused(world, of(email="alice@elsewhere.test"), config) == "permission_denied"

    run(tmp_path, work)


def test_an_address_that_is_taken_is_not_taken_over(tmp_path: Path) -> None:
    trusting = login(link_verified_email=True)

    async def work(world: World) -> None:
        claimed = (await world.sign_up()).user
        assert await refused(world) == "conflict"
        assert await refused(world, NEW, trusting) == "conflict"
        bob = await world.make_user("bob@example.test")
        theirs = of(subject="2", email="bob@example.test")
        assert await refused(world, theirs) == "conflict"
        user, changes = await arrive(world, theirs, trusting)
        assert user.id == bob.id and [change.action for change in changes] == ["user.link"]
        assert await refused(world, of(theirs, email=None, subject="3"), trusting) == "permission_denied"
        await world.passwords.set(world.sessions, claimed, PASSWORD)
        assert (await arrive(world, NEW, trusting))[0].id == claimed.id

    run(tmp_path, work)


def test_whoever_is_logged_in_adds_a_provider(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        entered = await world.sign_up()
        visit = Visit("192.0.2.1", "", entered.session)
        stranger = of(email=None, subject="7")
        assert await refused(world, stranger, link=entered.user.id) == "permission_denied"
        assert await refused(world, stranger, link="user_other", visit=visit) == "permission_denied"
        user, changes = await arrive(world, stranger, link=entered.user.id, visit=visit)
        assert user.id == entered.user.id and [change.action for change in changes] == ["user.link"]
        assert await world.sessions.find(entered.token) is None
        assert (await arrive(world, stranger))[0].id == user.id
        other = await world.sign_up("bob@example.test")
        visit = Visit("192.0.2.1", "", other.session)
        assert await refused(world, stranger, link=other.user.id, visit=visit) == "conflict"

    run(tmp_path, work)


def test_the_last_way_in_stays(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user, _ = await arrive(world)
        assert (await world.refused(world.identities.unlink(user.id, URL))).code == "conflict"
        await world.passwords.set(world.sessions, user, PASSWORD)
        await world.identities.unlink(user.id, URL)
        assert (await world.refused(world.identities.unlink(user.id, URL))).code == "not_found"
        assert await world.identities.of_user(user.id) == []

    run(tmp_path, work)


def test_who_is_disabled_stays_out(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user, _ = await arrive(world)
        await world.change(user, "users", disabled_us=5)
        error = await world.refused(arrive(world))
        assert isinstance(error, Rejected) and error.user is not None and error.user.id == user.id

    run(tmp_path, work)


def test_an_invited_address_comes_into_its_organisation(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.make_user("owner@example.test", role="owner")
        invitation, token = await world.invitations.create(EMAIL, "org_a", "admin", "user_owner")
        user, _ = await arrive(world, NEW, login(provision=False))
        assert (user.org_id, user.role) == ("org_a", "admin")
        error = await world.refused(world.sign_up(token=token))
        assert error.param == "invitation" and invitation.email == user.email

    run(tmp_path, work, PeopleConfig(signup="invited"))


def test_organisations_by_a_claim_and_by_the_configuration(tmp_path: Path) -> None:
    by_claim = login(organisation_claim="org")

    async def work(world: World) -> None:
        async with world.database.transaction() as inside:
            await insert(inside, "orgs", Org(id="org_evil", name="acme", created_us=1))
        one, _ = await arrive(world, of(organisation="acme"), by_claim)
        two, _ = await arrive(world, of(subject="2", email="b@example.test", organisation="acme"), by_claim)
        other, _ = await arrive(world, of(subject="3", email="c@example.test", organisation="globex"), by_claim)
        assert one.org_id == two.org_id not in ("org_evil", other.org_id) and one.role == "member"
        # What a token says is a name, never an id.
        named, _ = await arrive(world, of(subject="4", email="d@example.test", organisation="org_evil"), by_claim)
        assert named.org_id != "org_evil"
        fixed = login(organisation="org_evil", role="viewer")
        user, _ = await arrive(world, of(subject="5", email="e@example.test"), fixed)
        assert (user.org_id, user.role) == ("org_evil", "viewer")
        elsewhere = LoginConfig(name="b", issuer="https://b.example", client_id="x", organisation_claim="org")
        foreign = of(issuer="https://b.example", email="f@example.test", organisation="acme")
        assert (await arrive(world, foreign, elsewhere))[0].org_id not in ("org_evil", one.org_id)

    run(tmp_path, work)


GROUPS = (
    GroupConfig(group="admins", role="admin"),
    GroupConfig(group="readers", role="viewer"),
    GroupConfig(group="research", team="Research"),
    GroupConfig(group="leads", team="Research", team_role="admin"),
    GroupConfig(group="ops", team="Operations", role="member"),
)
MAPPED = login(organisation="Acme", role="member", groups=GROUPS)


def test_groups_are_applied_anew_at_every_log_in(tmp_path: Path) -> None:
    async def teams(world: World, user: User) -> dict[str, str]:
        found: dict[str, str] = {}
        for team in await world.database.query("SELECT id, name FROM teams"):
            member = await find(world.database, "members", Member, team_id=team["id"], user_id=user.id)
            if member is not None:
                found[str(team["name"])] = member.role
        return found

    async def come(world: World, *groups: str) -> tuple[User, dict[str, str], list[str]]:
        user, changes = await arrive(world, of(groups=frozenset(groups)), MAPPED)
        return user, await teams(world, user), [change.action for change in changes]

    async def work(world: World) -> None:
        user, found, actions = await come(world, "admins", "research", "unknown")
        assert (user.role, found) == ("admin", {"Research": "member"})
        assert actions == ["user.signup", "user.link", "user.role", "member.role"]
        user, found, actions = await come(world, "admins", "research")
        assert (user.role, found, actions) == ("admin", {"Research": "member"}, [])
        user, found, actions = await come(world, "leads", "research", "ops")
        assert (user.role, found) == ("member", {"Research": "admin", "Operations": "member"})
        assert actions == ["user.role", "member.role", "member.role"]
        async with world.database.transaction() as inside:
            own = Team(id="team_own", org_id=str(user.org_id), name="Own", created_us=1)
            await insert(inside, "teams", own)
            await insert(inside, "members", Member(team_id="team_own", user_id=user.id, role="owner", created_us=1))
        user, found, actions = await come(world)
        assert (user.role, found) == ("member", {"Own": "owner"}) and actions == ["member.role", "member.role"]

    run(tmp_path, work)


def test_groups_mean_nothing_in_another_organisation(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        bob = await world.make_user("bob@example.test", role="viewer")
        config = login(organisation="Acme", groups=GROUPS, link_verified_email=True)
        theirs = of(email="bob@example.test", groups=frozenset({"admins", "leads"}))
        user, changes = await arrive(world, theirs, config)
        assert user == bob and [change.action for change in changes] == ["user.link"]
        assert await world.database.query("SELECT * FROM members") == []

    run(tmp_path, work)


def test_an_owner_stays_unless_the_provider_decides_about_owners(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user, _ = await arrive(world, NEW, MAPPED)
        await world.change(user, "users", role="owner")
        assert (await arrive(world, NEW, MAPPED))[0].role == "owner"
        deciding = login(organisation="Acme", groups=(GroupConfig(group="bosses", role="owner"),))
        assert (await arrive(world, of(groups=frozenset({"bosses"})), deciding))[0].role == "owner"
        assert (await arrive(world, NEW, deciding))[0].role == "member"

    run(tmp_path, work)


def test_what_groups_mean() -> None:
    assert role_of(frozenset({"admins"}), login(groups=(GroupConfig(group="admins", team="T"),))) is None
    assert role_of(frozenset(), MAPPED) == "member" == role_of(frozenset({"readers"}), MAPPED)
    assert role_of(frozenset({"readers", "admins"}), MAPPED) == "admin"
    assert team_roles(frozenset(), MAPPED) == {"Research": None, "Operations": None}
    assert team_roles(frozenset({"leads", "research"}), MAPPED)["Research"] == "admin"
    assert OPEN.signup == "open"
