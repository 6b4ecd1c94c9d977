"""Opens who is let in: keys, tokens of issuers, accounts and log-ins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from gateway import gauges
from gateway.api.people import PeopleParts
from gateway.auth import Authenticator, Open, Principal
from gateway.auth.accounts import Accounts
from gateway.auth.attempts import Attempts
from gateway.auth.browser import BrowserSessions
from gateway.auth.identities import Identities
from gateway.auth.invitations import Invitations
from gateway.auth.key_text import load_pepper
from gateway.auth.keys import Keys
from gateway.auth.newcomers import Newcomers
from gateway.auth.orgs import Orgs
from gateway.auth.passwords import Hashing, Passwords
from gateway.auth.records import Directory
from gateway.auth.users import Users
from gateway.catalog import nano_usd
from gateway.config import Config
from gateway.limits.wallets import Wallets
from gateway.state.database import Database, Statements
from gateway.state.shared import SharedState
from gateway.telemetry import Telemetry


async def open_authenticator(
    config: Config, database: Database | None, shared: SharedState, telemetry: Telemetry, stack: AsyncExitStack
) -> tuple[Authenticator, Callable[[Principal], bool], str | None]:
    """Keys over the database, before them the issuers of tokens if there are any, who it is that recognises those that
    were let in, and the text of a first admin key if one had to be made; or the open door."""
    if database is None:
        return Open(), lambda principal: True, None
    pepper = load_pepper(Path(config.data_dir), config.auth.pepper)
    keys = Keys(database, pepper, admin_key=config.auth.admin_key, shared=shared)
    await keys.open()
    stack.push_async_callback(keys.close)
    admin_key = await keys.ensure_admin()
    if not config.auth.issuers:
        return keys, keys.recognises, admin_key
    # Imported by those who use it: the HTTP client and the cryptography it needs take long to load.
    from gateway.auth.jwt import Issuers

    issuers = Issuers(config.auth.issuers, keys, database=database)
    stack.push_async_callback(issuers.close)
    telemetry.gauge_source(lambda: gauges.of_issuers(issuers.key_sets))
    return issuers, keys.recognises, admin_key


async def open_people(
    config: Config, database: Database | None, shared: SharedState, stack: AsyncExitStack
) -> PeopleParts | None:
    """What lets people in; nobody without a database."""
    if database is None:
        return None
    people, pepper = config.auth.people, load_pepper(Path(config.data_dir), config.auth.pepper)
    directory, wallets = Directory(database, shared), Wallets(database)
    bonus_nano = nano_usd(people.bonus_usd or "0")

    async def open_wallet(inside: Statements, name: str, tenant: str, at_us: int) -> None:
        await wallets.open_in(inside, name, tenant, at_us, bonus_nano)

    sessions = BrowserSessions(directory, pepper, people, shared=shared)
    stack.push_async_callback(sessions.close)
    hashing, attempts = Hashing(), Attempts(None if config.state.redis is None else shared, pepper)
    stack.callback(hashing.close)
    passwords = Passwords(directory, hashing, people.password_length_min)
    newcomers, invitations = Newcomers(directory, people, open_wallet), Invitations(database, pepper)
    accounts = Accounts(directory, people, sessions, newcomers, invitations, (passwords, attempts))
    identities = Identities(directory, accounts, newcomers, invitations)
    parts = PeopleParts(accounts, identities, invitations, sessions, Orgs(directory), Users(directory), attempts)
    if not people.logins:
        return parts
    # Imported by those who use it: the HTTP client and the cryptography it needs take long to load.
    from gateway.auth import oidc

    client = oidc.client()
    stack.push_async_callback(client.aclose)
    providers = {one.name: oidc.Provider(one, client) for one in people.logins}
    for provider in providers.values():
        stack.push_async_callback(provider.close)
    return parts._replace(providers=providers, flows=oidc.Flows(pepper, shared))
