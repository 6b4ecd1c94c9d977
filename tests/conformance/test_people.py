"""Accounts, identities and invitations on PostgreSQL: the same SQL as on SQLite, and the same outcomes."""

from __future__ import annotations

import asyncio

from gateway.auth.accounts import Visit
from gateway.auth.oidc import Identity
from gateway.config_people import GroupConfig, LoginConfig, PeopleConfig
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from tests.gateway.auth.test_accounts import BONUS_NANO, EMAIL, PASSWORD, World
from tests.stores import Postgres

URL = "https://id.example"
GROUPS = (GroupConfig(group="admins", role="admin"), GroupConfig(group="research", team="Research"))
LOGIN = LoginConfig(name="corp", issuer=URL, client_id="x", organisation="Acme", groups=GROUPS)


async def scenario(world: World) -> None:
    entered = await world.sign_up()
    org_id = str(entered.user.org_id)
    assert (await world.wallets.get(org_id)).balance_nano == BONUS_NANO
    assert (await world.refused(world.sign_up())).code == "conflict"
    assert (await world.refused(world.log_in(EMAIL, "wrong"))).code == "invalid_credentials"
    assert (await world.refused(world.log_in("a\x00@example.test"))).code == "invalid_credentials"
    again = await world.accounts.log_in(EMAIL, PASSWORD, Visit("192.0.2.1", "", entered.session))
    assert await world.sessions.find(entered.token) is None
    found = await world.sessions.find(again.token)
    assert found is not None and found.principal.role == "owner"
    world.clock.seconds += 120
    assert await world.sessions.find(again.token) is not None
    await asyncio.gather(*world.sessions._writing)
    changed = await world.accounts.change_password(again.session, PASSWORD, "another horse battery", world.visit)
    assert [one.id for one in await world.sessions.list(entered.user.id)] == [changed.session.id]

    invitation, _ = await world.invitations.create("bob@example.test", org_id, "viewer", entered.user.id)
    second, token = await world.invitations.create("carol@example.test", org_id, "member", entered.user.id)
    assert {one.id for one in await world.invitations.list(org_id)} == {invitation.id, second.id}
    assert (await world.sign_up("carol@example.test", token=token)).user.role == "member"
    bob = Identity(issuer=URL, subject="1", email="bob@example.test")
    arrived, _ = await world.identities.arrive(bob, LOGIN, "", world.visit)
    assert (arrived.user.org_id, arrived.user.role) == (org_id, "viewer")
    assert not await world.invitations.withdraw(invitation.id)

    dave = Identity(issuer=URL, subject="2", email="dave@example.test", groups=frozenset({"admins", "research"}))
    for identity, role, teams in (
        (dave, "admin", 1),
        (dave, "admin", 1),
        (Identity(issuer=URL, subject="2"), "member", 0),
    ):
        arrived, _ = await world.identities.arrive(identity, LOGIN, "", world.visit)
        found = await world.sessions.find(arrived.token)
        assert found is not None and (arrived.user.role, len(found.principal.teams)) == (role, teams)
    await world.passwords.set(world.sessions, arrived.user, PASSWORD)
    await world.identities.unlink(arrived.user.id, URL)
    assert await world.identities.of_user(arrived.user.id) == []
    await world.passwords.set(world.sessions, arrived.user, None)


def test_people_on_postgres(postgres: Postgres) -> None:
    async def work() -> None:
        database = await open_postgres(postgres.database(), alone=False)
        try:
            await migrate(database, known())
            world = World(database, PeopleConfig(signup="open", bonus_usd="1.5"))
            try:
                await scenario(world)
            finally:
                world.hashing.close()
                await world.sessions.close()
        finally:
            await database.close()

    asyncio.run(work())
