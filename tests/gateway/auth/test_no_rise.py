"""No sequence of calls by somebody who is no administrator of the gateway brings him a right that he did not have.

One person acts, with every credential that comes into his hands. Whatever he does, each of them has to stay within one
of those that he began with: what it may do to everything there was at the beginning, as whom, on which models, for how
long and from where.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.auth import Principal, Role
from gateway.auth.key_rules import KeyChange
from gateway.auth.keyring import Place
from gateway.auth.keys import ADMIN
from gateway.auth.orgs import OrgChange
from gateway.auth.records import Key, find
from gateway.auth.roles import RANKS, TABLE, Resource, may, outranks
from gateway.auth.standing import key_principal, of_key, of_user, user_principal
from gateway.auth.teams import MemberChange, TeamChange
from gateway.auth.users import UserChange
from gateway.config_limits import ScopeLimits
from gateway.errors import GatewayError
from gateway.networks import Networks
from tests.databases import open_migrated
from tests.house import House

EXAMPLES = int(os.environ.get("RIGHTS_EXAMPLES", "0"))
DAY_US = 86_400 * 1_000_000
ENDS: tuple[int | None, ...] = (DAY_US, 2 * DAY_US, None)
MODELS = ("small", "small-2", "large")
ADDRESSES = ("10.0.0.1", "10.1.0.1", "192.0.2.1")
SCOPES = ("inference", "keys.write", "teams.write", "users.write", "account.write")
LIMITS = ScopeLimits(requests_per_minute=1)

roles = st.sampled_from(tuple(RANKS))
numbers = st.integers(0, 5)
# Himself more often than others.
people = st.sampled_from((0, 0, 0, 0, 1, 2, 3, 4, 5))
asked: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "scopes": st.one_of(st.none(), st.sets(st.sampled_from(SCOPES), min_size=1).map(tuple)),
        "models": st.sampled_from((None, (), ("small",), ("small*",), ("*",), ("large", "small"))),
        "addresses": st.sampled_from(((), ("10.0.0.0/8",), ("10.0.0.0/16",), ("0.0.0.0/0",))),
        "tags": st.sampled_from(((), ("a",), ("a", "b"))),
        "guardrails": st.sampled_from(((), ("g",), ("g", "h"))),
        "expires_us": st.sampled_from(ENDS),
        "limits": st.sampled_from((None, LIMITS)),
        "weight": st.sampled_from((1.0, 2.0)),
        "priority": st.sampled_from((0, 1)),
    },
)
changes = asked.map(lambda given: KeyChange(**given))


class Reach(msgspec.Struct, frozen=True):
    """All that a credential opens."""

    rights: frozenset[tuple[str, str]]
    grants: frozenset[tuple[str, str]]
    models: frozenset[str]
    addresses: frozenset[str]
    tags: frozenset[str]
    guardrails: frozenset[str]
    expires_us: int | None
    admin: bool
    weight: float
    tenant: str

    def within(self, other: Reach) -> bool:
        return (
            self.rights <= other.rights
            and self.grants <= other.grants
            and self.models <= other.models
            and self.addresses <= other.addresses
            and self.tags >= other.tags
            and self.guardrails >= other.guardrails
            and (other.expires_us is None or (self.expires_us is not None and self.expires_us <= other.expires_us))
            and self.admin <= other.admin
            and self.weight <= other.weight
            and self.tenant == other.tenant
        )


def models_of(principal: Principal) -> frozenset[str]:
    def listed(model: str, entries: tuple[str, ...]) -> bool:
        return any(model == entry or (entry[-1:] == "*" and model.startswith(entry[:-1])) for entry in entries)

    return frozenset(model for model in MODELS if all(listed(model, entries) for entries in principal.models))


class Person(RuleBasedStateMachine):
    """He acts; a gateway with two organisations is what he acts on."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = contextlib.ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        self.house = self.run(self._house(folder))
        self.me = ""
        self.login = False
        self.key_ids: list[str] = []
        self.start: list[Reach] = []

    async def _house(self, folder: Path) -> House:
        database = await open_migrated(folder, serve=False)
        await database.execute("PRAGMA synchronous=OFF")
        return House(database)

    def run(self, work: Awaitable[Any]) -> Any:
        async def await_it() -> Any:
            return await work

        return self.runner.run(await_it())

    def teardown(self) -> None:
        self.run(self.house.database.close())
        self.runner.close()
        self.stack.close()

    @initialize(
        role=roles,
        teams=st.lists(st.one_of(st.none(), roles), min_size=2, max_size=2),
        login=st.booleans(),
        keys=st.lists(st.tuples(changes, st.booleans()), max_size=2),
    )
    def begin(self, role: Role, teams: list[Role | None], login: bool, keys: list[tuple[KeyChange, bool]]) -> None:
        self.login = login or not keys
        self.run(self._begin(role, teams, keys))

    async def _begin(self, role: Role, team_roles: list[Role | None], keys: list[tuple[KeyChange, bool]]) -> None:
        house = self.house
        orgs = [await house.org(name) for name in ("a", "b")]
        teams = [await house.team(orgs[0], "one", models=("small*",)), await house.team(orgs[0], "two")]
        teams.append(await house.team(orgs[1], "three"))
        me = await house.user(orgs[0], "me", role)
        users = [me, *[await house.user(orgs[0], name, name) for name in RANKS]]
        users.append(await house.user(orgs[1], "x", "owner"))
        for team, own in zip(teams, team_roles, strict=False):
            await house.teams.add(ADMIN, team.id, users[4].id, "owner")
            await house.teams.add(ADMIN, team.id, users[2].id, "viewer")
            if own is not None:
                await house.teams.add(ADMIN, team.id, me.id, own)
        self.me, self.orgs = me.id, [org.id for org in orgs]
        self.teams, self.users = [team.id for team in teams], [user.id for user in users]
        others = [Place(), Place(org_id=orgs[0].id), Place(user_id=users[4].id), Place(org_id=orgs[1].id)]
        made = [(await house.key(ADMIN, place))[0] for place in (*others, Place(tenant="x", admin=True))]
        of_team = team_roles[0] is not None or role in ("admin", "owner")
        for change, bound in keys:
            place = Place(user_id=me.id, team_id=self.teams[0] if bound and of_team else None)
            key, _ = await house.key(ADMIN, place, change)
            self.key_ids.append(key.id)
        self.all_keys = [key.id for key in made] + self.key_ids
        named = [*orgs, *teams, *users, *made, *[await self._key(key_id) for key_id in self.key_ids]]
        self.universe: Mapping[str, Resource] = {record.id: record.resource for record in named}
        self.start = [self._reach(*credential) for credential in await self._credentials()]

    async def _key(self, key_id: str) -> Key:
        key = await find(self.house.database, "keys", Key, id=key_id)
        assert key is not None
        return key

    async def _credentials(self) -> list[tuple[Principal, Key | None]]:
        """Everything that he can act with now."""
        found: list[tuple[Principal, Key | None]] = []
        user = await of_user(self.house.database, self.me)
        assert user is not None
        if self.login and user.user is not None and user.user.disabled_us is None:
            found.append((user_principal(user, "login"), None))
        for key_id in self.key_ids:
            behind = await of_key(self.house.database, key_id)
            assert behind is not None
            key, standing, _ = behind
            with contextlib.suppress(GatewayError):
                standing.check()
                if key.status(self.house.now_us()) == "active":
                    found.append((key_principal(key, standing), key))
        return found

    def _reach(self, principal: Principal, key: Key | None) -> Reach:
        networks = Networks(() if key is None else key.addresses)
        named = [*self.universe.items(), ("anything", None)]
        return Reach(
            rights=frozenset(
                (permission, name)
                for permission in TABLE
                for name, resource in named
                if may(principal, permission, resource) == "allowed"
            ),
            grants=frozenset(
                (role, name)
                for role in RANKS
                for name, resource in self.universe.items()
                if resource.key_id is None and outranks(principal, role, resource)
            ),
            models=models_of(principal),
            addresses=frozenset(address for address in ADDRESSES if not networks or address in networks),
            tags=frozenset(principal.tags),
            guardrails=frozenset(principal.guardrails),
            expires_us=None if key is None else key.expires_us,
            admin=principal.admin,
            weight=principal.weight,
            tenant=principal.tenant,
        )

    def act(self, number: int, what: Callable[[Principal], Awaitable[Any]]) -> None:
        """Do something with one of the credentials; what is refused changes nothing."""
        self.run(self._act(number, what))

    async def _act(self, number: int, what: Callable[[Principal], Awaitable[Any]]) -> None:
        credentials = await self._credentials()
        if credentials:
            with contextlib.suppress(GatewayError):
                made = await what(credentials[number % len(credentials)][0])
                if isinstance(made, tuple) and isinstance(made[0], Key):
                    self.key_ids.append(made[0].id)
                    self.all_keys.append(made[0].id)

    @rule(by=numbers, org=numbers, team=numbers, user=people, shape=st.integers(0, 7), settings=changes)
    def make_key(self, by: int, org: int, team: int, user: int, shape: int, settings: KeyChange) -> None:
        place = Place(
            org_id=self.orgs[org % 2] if shape & 1 else None,
            team_id=self.teams[team % 3] if shape & 2 else None,
            user_id=self.users[user] if shape & 4 else None,
        )
        self.act(by, lambda me: self.house.keyring.create(me, "new", place, settings))

    @rule(by=numbers, key=st.integers(0, 9), settings=changes)
    def change_key(self, by: int, key: int, settings: KeyChange) -> None:
        key_id = self.all_keys[key % len(self.all_keys)]
        self.act(by, lambda me: self.house.keyring.change(me, key_id, settings))

    @rule(by=numbers, key=st.integers(0, 9), end=st.sampled_from(ENDS))
    def rotate_key(self, by: int, key: int, end: int | None) -> None:
        key_id = self.all_keys[key % len(self.all_keys)]
        self.act(by, lambda me: self.house.keyring.rotate(me, key_id, overlap_s=60, expires_us=end))

    @rule(by=numbers, user=people, role=roles, what=st.sampled_from(("role", "role", "name", "admin", "disabled")))
    def change_user(self, by: int, user: int, role: Role, what: str) -> None:
        asked: dict[str, Any] = {what: {"role": role, "name": "new"}.get(what, True)}
        change = UserChange(**asked)
        self.act(by, lambda me: self.house.users.change(me, self.users[user], change))

    @rule(by=numbers, team=numbers, user=people, role=roles)
    def add_member(self, by: int, team: int, user: int, role: Role) -> None:
        self.act(by, lambda me: self.house.teams.add(me, self.teams[team % 3], self.users[user], role))

    @rule(by=numbers, team=numbers, user=people, role=roles)
    def change_member(self, by: int, team: int, user: int, role: Role) -> None:
        change = MemberChange(role=role)
        self.act(by, lambda me: self.house.teams.set_member(me, self.teams[team % 3], self.users[user], change))

    @rule(by=numbers, team=numbers, user=people)
    def remove_member(self, by: int, team: int, user: int) -> None:
        self.act(by, lambda me: self.house.teams.remove(me, self.teams[team % 3], self.users[user]))

    @rule(by=numbers, team=numbers, lists=st.sampled_from((None, ("*",), ("large",))), archived=st.booleans())
    def change_team(self, by: int, team: int, lists: tuple[str, ...] | None, archived: bool) -> None:
        change = TeamChange(archived=False) if archived else TeamChange(models=lists)
        self.act(by, lambda me: self.house.teams.change(me, self.teams[team % 3], change))

    @rule(by=numbers, org=numbers, lists=st.sampled_from((None, ("*",), ("large",))))
    def change_org(self, by: int, org: int, lists: tuple[str, ...] | None) -> None:
        self.act(by, lambda me: self.house.orgs.change(me, self.orgs[org % 2], OrgChange(models=lists)))

    @rule(by=numbers, org=numbers, role=roles, admin=st.booleans())
    def make_user(self, by: int, org: int, role: Role, admin: bool) -> None:
        email = f"{len(self.key_ids)}{role}@example.com"
        self.act(by, lambda me: self.house.users.create(me, self.orgs[org % 2], email, role=role, admin=admin))

    @invariant()
    def nothing_rises(self) -> None:
        for credential in self.run(self._credentials()) if self.me else []:
            now = self._reach(*credential)
            assert any(now.within(start) for start in self.start), (now, self.start)


# The same histories each time, unless more are asked for. Not shrunk: a history is short enough to be read.
Person.TestCase.settings = settings(
    max_examples=EXAMPLES or 25,
    stateful_step_count=20,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
TestPerson = Person.TestCase
