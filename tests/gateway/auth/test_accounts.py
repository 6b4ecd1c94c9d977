"""Accounts: who gets one, who gets in, and what a password change ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from gateway.auth.accounts import RECENT_US, Accounts, Entered, Rejected, Visit
from gateway.auth.attempts import LOG_IN_ACCOUNT, SIGN_UP_ADDRESS, Attempts
from gateway.auth.browser import BrowserSessions
from gateway.auth.identities import Identities
from gateway.auth.invitations import LIFETIME_S, Invitations
from gateway.auth.newcomers import Newcomers
from gateway.auth.passwords import Hashing, Kept, Passwords, Verdict
from gateway.auth.records import Directory, Org, Team, User, find, insert, update
from gateway.config_limits import ScopeLimits
from gateway.config_people import PeopleConfig
from gateway.errors import GatewayError
from gateway.limits.wallets import Wallets
from gateway.state.database import Database, Statements
from gateway.state.memory import Memory
from tests.databases import open_migrated
from tests.gateway.auth.test_keys import PEPPER, Clock

EMAIL, PASSWORD = "alice@example.test", "correct horse battery"
OPEN = PeopleConfig(signup="open")
BONUS_NANO = 1_500_000_000


class World:
    """Everything that lets people in, over a real file."""

    def __init__(self, database: Database, config: PeopleConfig) -> None:
        self.clock = Clock()
        self.database = database
        self.directory = Directory(database, None, now_us=self.clock.wall_us)
        self.wallets = Wallets(database)
        self.sessions = BrowserSessions(self.directory, PEPPER, config, clock=self.clock.monotonic)
        self.hashing = Hashing(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        attempts = Attempts(None, PEPPER, local=Memory(now_us=self.clock.wall_us))
        self.newcomers = Newcomers(self.directory, config, self.open_wallet)
        self.invitations = Invitations(database, PEPPER, now_us=self.clock.wall_us)
        self.passwords = Passwords(self.directory, self.hashing, config.password_length_min)
        guards = self.passwords, attempts
        self.accounts = Accounts(self.directory, config, self.sessions, self.newcomers, self.invitations, guards)
        self.identities = Identities(self.directory, self.accounts, self.newcomers, self.invitations)
        self.visit = Visit("192.0.2.1", "browser")

    async def open_wallet(self, inside: Statements, name: str, tenant: str, at_us: int) -> None:
        await self.wallets.open_in(inside, name, tenant, at_us, BONUS_NANO)

    async def sign_up(self, email: str = EMAIL, password: str = PASSWORD, token: str | None = None) -> Entered:
        return await self.accounts.sign_up(email, password, "Alice", token, self.visit)

    async def log_in(self, email: str = EMAIL, password: str = PASSWORD) -> Entered:
        return await self.accounts.log_in(email, password, self.visit)

    async def refused(self, work: Awaitable[Any]) -> GatewayError:
        with pytest.raises(GatewayError) as refused:
            await work
        return refused.value

    async def user(self, **key: Any) -> User | None:
        return await find(self.database, "users", User, **key)

    async def make_user(self, email: str, org_id: str = "org_a", **fields: Any) -> User:
        """A user as administrators make them."""
        if await find(self.database, "orgs", Org, id=org_id) is None:
            async with self.database.transaction() as inside:
                await insert(inside, "orgs", Org(id=org_id, name=org_id, created_us=1))
        values: dict[str, Any] = {"role": "member", "admin": False, "name": "Somebody"} | fields
        user = User(id=f"user_{email.partition('@')[0]}", org_id=org_id, email=email, created_us=1, **values)
        async with self.database.transaction() as inside:
            await insert(inside, "users", user)
        return user

    async def change(self, record: User | Org | Team, table: str, **fields: Any) -> None:
        async with self.database.transaction() as inside:
            await update(
                inside, table, type(record)(**({n: getattr(record, n) for n in record.__struct_fields__} | fields))
            )


def run(tmp_path: Path, work: Callable[[World], Awaitable[None]], config: PeopleConfig = OPEN) -> None:
    async def inside() -> None:
        database = await open_migrated(tmp_path, serve=True)
        world = World(database, config)
        try:
            await work(world)
        finally:
            world.hashing.close()
            await world.sessions.close()
            await database.close()

    asyncio.run(inside())


def test_signing_up_and_logging_in(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        entered = await world.sign_up(" Alice@Example.TEST ")
        user = entered.user
        assert (user.email, user.name, user.role, user.admin) == (EMAIL, "Alice", "owner", False)
        found = await world.sessions.find(entered.token)
        assert found is not None and found.session == entered.session
        principal = found.principal
        assert (principal.kind, principal.tenant, principal.role) == ("user", user.org_id, "owner")
        assert (principal.user_id, principal.key_id, principal.admin) == (user.id, user.id, False)
        again = await world.log_in("ALICE@example.test")
        assert again.user == user and again.token != entered.token
        rows = await world.database.query("SELECT * FROM passwords")
        assert PASSWORD not in str(rows) and "$argon2id$" in str(rows)

    run(tmp_path, work)


def test_a_bonus_comes_once_into_a_wallet_that_pays_for_everything(tmp_path: Path) -> None:
    async def own(world: World) -> None:
        user = (await world.sign_up()).user
        org = await find(world.database, "orgs", Org, id=user.org_id)
        assert org is not None and org.limits == ScopeLimits(wallet=org.id) and user.limits is None
        wallet = await world.wallets.get(org.id)
        assert (wallet.balance_nano, wallet.tenant) == (BONUS_NANO, org.id)
        await world.refused(world.sign_up())
        await world.log_in()
        assert [one.balance_nano for one in await world.wallets.all()] == [BONUS_NANO]
        assert await world.wallets.problems() == []

    run(tmp_path / "own", own, PeopleConfig(signup="open", bonus_usd="1.5"))

    async def in_one(world: World) -> None:
        first, second = (await world.sign_up("a@example.test")).user, (await world.sign_up("b@example.test")).user
        assert first.org_id == second.org_id and first.role == "viewer"
        assert first.limits == ScopeLimits(wallet=first.id) and second.limits == ScopeLimits(wallet=second.id)
        assert len(await world.wallets.all()) == 2

    run(tmp_path / "one", in_one, PeopleConfig(signup="open", organisation="Acme", role="viewer", bonus_usd="1.5"))


def test_an_organisation_of_somebody_is_not_taken_for_the_configured_one(tmp_path: Path) -> None:
    config = PeopleConfig(signup="open", organisation="Acme", role="member")

    async def work(world: World) -> None:
        async with world.database.transaction() as inside:
            await insert(inside, "orgs", Org(id="org_evil", name="Acme", created_us=1))
        first, second = (await world.sign_up("a@example.test")).user, (await world.sign_up("b@example.test")).user
        assert first.org_id == second.org_id != "org_evil"

    run(tmp_path, work, config)


def test_a_configured_organisation_by_its_id_has_to_be_there(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert (await world.refused(world.sign_up())).code == "not_found"
        await world.make_user("owner@example.test", "org_here")
        assert (await world.sign_up()).user.org_id == "org_here"

    run(tmp_path, work, PeopleConfig(signup="open", organisation="org_here"))


def test_two_at_once_get_one_account(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        results = await asyncio.gather(*(world.sign_up() for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(one, Entered) for one in results) == 1
        assert {one.code for one in results if isinstance(one, GatewayError)} == {"conflict"}
        for table in ("users", "orgs", "passwords", "wallets"):
            rows = await world.database.query(f"SELECT COUNT(*) AS count FROM {table}")
            assert rows[0]["count"] == 1, table

    run(tmp_path, work, PeopleConfig(signup="open", bonus_usd="1"))


@pytest.mark.parametrize(
    ("email", "password", "param"),
    [
        ("alice", PASSWORD, "email"),
        ("alice@", PASSWORD, "email"),
        ("a b@example.test", PASSWORD, "email"),
        ("a@example.test\nbcc: b@example.test", PASSWORD, "email"),
        ("<script>@example.test", PASSWORD, "email"),
        (EMAIL, "short", "password"),
        (EMAIL, "alice@example.test", "password"),
    ],
)
def test_what_nobody_can_sign_up_with(tmp_path: Path, email: str, password: str, param: str) -> None:
    async def work(world: World) -> None:
        error = await world.refused(world.sign_up(email, password))
        assert (error.code, error.param) == ("invalid_value", param)

    run(tmp_path, work)


def test_signing_up_takes_an_invitation_unless_it_is_open(tmp_path: Path) -> None:
    async def off(world: World) -> None:
        await world.make_user("owner@example.test", role="owner")
        _, token = await world.invitations.create(EMAIL, "org_a", "member", "user_owner")
        assert (await world.refused(world.sign_up(token=token))).code == "permission_denied"

    async def invited(world: World) -> None:
        await world.make_user("owner@example.test", role="owner")
        assert (await world.refused(world.sign_up())).code == "permission_denied"
        invitation, token = await world.invitations.create("Alice@example.test", "org_a", "admin", "user_owner")
        assert await world.invitations.list("org_a") == [invitation]
        for email, given in (("mallory@example.test", token), (EMAIL, token + "x"), (EMAIL, "invite_" + "a" * 43)):
            assert (await world.refused(world.sign_up(email, token=given))).param == "invitation"
        assert token not in str(await world.database.query("SELECT * FROM invitations"))
        user = (await world.sign_up(token=token)).user
        assert (user.org_id, user.role) == ("org_a", "admin")
        assert await world.invitations.list("org_a") == []
        assert (await world.refused(world.sign_up(token=token))).param == "invitation"

    run(tmp_path / "off", off, PeopleConfig())
    run(tmp_path / "invited", invited, PeopleConfig(signup="invited"))


def test_an_invitation_ends(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.make_user("owner@example.test", role="owner")
        _, late = await world.invitations.create(EMAIL, "org_a", "member", "user_owner")
        world.clock.seconds += LIFETIME_S
        assert (await world.refused(world.sign_up(token=late))).param == "invitation"
        _, first = await world.invitations.create(EMAIL, "org_a", "member", "user_owner")
        second, token = await world.invitations.create(EMAIL, "org_a", "viewer", "user_owner")
        assert (await world.refused(world.sign_up(token=first))).param == "invitation"
        assert await world.invitations.withdraw(second.id) and not await world.invitations.withdraw(second.id)
        assert (await world.refused(world.sign_up(token=token))).param == "invitation"

    run(tmp_path, work, PeopleConfig(signup="invited"))


def test_an_invitation_stands_while_its_inviter_could_give_it(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        boss = await world.make_user("boss@example.test", role="owner")
        for change in ({"disabled_us": 5}, {"role": "member"}, {"org_id": "org_b"}):
            _, token = await world.invitations.create(EMAIL, "org_a", "admin", boss.id)
            await world.change(boss, "users", **change)
            assert (await world.refused(world.sign_up(token=token))).param == "invitation"
            await world.change(boss, "users")
            world.clock.seconds += 3600
        org = await find(world.database, "orgs", Org, id="org_a")
        assert org is not None
        _, token = await world.invitations.create(EMAIL, "org_a", "admin", boss.id)
        await world.change(org, "orgs", archived_us=5)
        assert (await world.refused(world.sign_up(token=token))).code == "permission_denied"
        await world.change(org, "orgs")
        assert (await world.sign_up(token=token)).user.role == "admin"

    run(tmp_path, work, PeopleConfig(signup="invited"))


def test_nobody_learns_who_has_an_account(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user = (await world.sign_up()).user
        await world.make_user("bob@example.test")
        wrong = [
            await world.refused(world.log_in(EMAIL, "wrong")),
            await world.refused(world.log_in("nobody@example.test", "wrong")),
            await world.refused(world.log_in("bob@example.test", "wrong")),
            await world.refused(world.log_in("", PASSWORD)),
            await world.refused(world.log_in("x" * 300, PASSWORD)),
        ]
        assert {(error.status, error.code, error.message) for error in wrong} == {
            (401, "invalid_credentials", "The e-mail address or the password is wrong.")
        }
        assert [error.user and error.user.id for error in wrong if isinstance(error, Rejected)] == [
            user.id,
            None,
            "user_bob",
            None,
            None,
        ]

    run(tmp_path, work)


def test_who_is_disabled_stays_out(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        entered = await world.sign_up()
        await world.change(entered.user, "users", disabled_us=5)
        world.clock.seconds += 5
        assert await world.sessions.find(entered.token) is None
        assert (await world.refused(world.log_in())).code == "permission_denied"
        assert (await world.refused(world.log_in(EMAIL, "wrong"))).code == "invalid_credentials"
        await world.change(entered.user, "users", disabled_us=None)
        org = await find(world.database, "orgs", Org, id=entered.user.org_id)
        assert org is not None
        await world.change(org, "orgs", archived_us=5)
        world.clock.seconds += 5
        assert await world.sessions.find(entered.token) is None
        assert (await world.refused(world.log_in())).code == "permission_denied"

    run(tmp_path, work)


def test_a_thousand_wrong_passwords(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.sign_up()
        codes = []
        for i in range(1000):
            visit = Visit(f"192.0.2.{i % 250}", "")
            error = await world.refused(world.accounts.log_in(EMAIL, f"wrong {i}", visit))
            codes.append(error.code)
            if error.code == "rate_limit_exceeded":
                assert error.retry_after_s
        assert codes.count("invalid_credentials") == LOG_IN_ACCOUNT.burst
        assert codes.count("rate_limit_exceeded") == 1000 - LOG_IN_ACCOUNT.burst
        assert (await world.refused(world.log_in())).code == "rate_limit_exceeded"
        world.clock.seconds += LOG_IN_ACCOUNT.every_s
        await world.log_in()

    run(tmp_path, work)


def test_right_passwords_are_not_counted_and_signing_up_is(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.sign_up()
        for _ in range(LOG_IN_ACCOUNT.burst + 5):
            await world.log_in()
        for i in range(SIGN_UP_ADDRESS.burst - 1):
            await world.sign_up(f"user{i}@example.test")
        assert (await world.refused(world.sign_up("more@example.test"))).code == "rate_limit_exceeded"

    run(tmp_path, work)


def test_an_outdated_hash_is_renewed_at_the_next_log_in(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.sign_up()
        old = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1).hash(PASSWORD)
        await world.database.execute("UPDATE passwords SET hash = $1", old)
        await world.log_in()
        rows = await world.database.query("SELECT hash FROM passwords")
        assert rows[0]["hash"] != old
        await world.log_in()

    run(tmp_path, work)


def test_a_log_in_is_a_session_of_its_own(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        before = await world.sign_up()
        assert (await world.sessions.find(before.token)) is not None
        visit = Visit("192.0.2.1", "browser", before.session)
        after = await world.accounts.log_in(EMAIL, PASSWORD, visit)
        assert after.token != before.token
        assert await world.sessions.find(before.token) is None
        assert await world.sessions.find(after.token) is not None

    run(tmp_path, work)


def test_a_new_password_ends_all_other_log_ins(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        first, second = await world.sign_up(), await world.log_in()
        for token in (first.token, second.token):
            assert await world.sessions.find(token) is not None
        change = world.accounts.change_password
        for current in ("wrong", None, ""):
            error = await world.refused(change(second.session, current, "another horse battery", world.visit))
            assert error.code == "permission_denied"
        error = await world.refused(change(second.session, PASSWORD, "short", world.visit))
        assert error.param == "password"
        entered = await change(second.session, PASSWORD, "another horse battery", world.visit)
        assert [await world.sessions.find(token) for token in (first.token, second.token)] == [None, None]
        assert await world.sessions.find(entered.token) is not None
        assert (await world.refused(world.log_in())).code == "invalid_credentials"
        await world.log_in(EMAIL, "another horse battery")

    run(tmp_path, work)


def test_a_password_that_is_changed_meanwhile_lets_nobody_in(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user = (await world.sign_up()).user
        verify, hashed = world.passwords.verify, await world.passwords.hash("another horse battery", EMAIL)

        async def slow(kept: Kept | None, password: str) -> Verdict:
            verdict = await verify(kept, password)
            async with world.database.transaction() as inside:
                await world.passwords.write(inside, user.id, hashed, claimed=True)
            return verdict

        world.passwords.verify = slow  # type: ignore[method-assign]
        assert (await world.refused(world.log_in())).code == "invalid_credentials"

    run(tmp_path, work)


def test_a_first_password_takes_a_fresh_log_in(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user = await world.make_user(EMAIL)
        async with world.database.transaction() as inside:
            session, _ = await world.sessions.begin(inside, user.id)
        world.clock.seconds += RECENT_US / 1e6 + 1
        error = await world.refused(world.accounts.change_password(session, None, PASSWORD, world.visit))
        assert error.code == "permission_denied"
        async with world.database.transaction() as inside:
            session, _ = await world.sessions.begin(inside, user.id)
        await world.accounts.change_password(session, None, PASSWORD, world.visit)
        await world.log_in()

    run(tmp_path, work)


def test_administrators_set_and_take_passwords(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        user = await world.make_user(EMAIL)
        await world.passwords.set(world.sessions, user, PASSWORD)
        entered = await world.log_in()
        await world.passwords.set(world.sessions, user, None)
        assert await world.sessions.find(entered.token) is None
        assert (await world.refused(world.log_in())).code == "invalid_credentials"

    run(tmp_path, work)
