"""A gateway's parts, put together for tests of its routes."""

from __future__ import annotations

from gateway.api.health import Health
from gateway.api.mount import Parts
from gateway.api.people import PeopleParts
from gateway.audit import Audit
from gateway.auth.accounts import Accounts
from gateway.auth.attempts import Attempts
from gateway.auth.browser import BrowserSessions
from gateway.auth.identities import Identities
from gateway.auth.invitations import Invitations
from gateway.auth.newcomers import Newcomers
from gateway.auth.orgs import Orgs
from gateway.auth.passwords import Hashing, Passwords
from gateway.auth.records import Directory
from gateway.auth.users import Users
from gateway.catalog import Catalog
from gateway.config import Config
from gateway.config_limits import LimitsConfig
from gateway.config_people import PeopleConfig
from gateway.guardrails.rules import Guardrails
from gateway.inference import Inference
from gateway.limits.limiter import Limiter, LocalCounters, steady_us, wall_us
from gateway.state.database import Database, Statements
from gateway.telemetry import Telemetry
from tests.fakes import no_balances


def parts(catalog: Catalog | None = None) -> Parts:
    """Of a gateway that keeps nothing."""
    telemetry, catalog = Telemetry("test"), catalog or Catalog(())
    limiter = Limiter(LimitsConfig(), LocalCounters(), no_balances, now_us=wall_us, steady_us=steady_us)
    health = Health(telemetry, dict, lambda: False)
    guardrails = Guardrails((), telemetry)
    return Parts(Config(), catalog, Inference(catalog, telemetry), health, Audit(None), limiter, guardrails)


async def no_wallet(inside: Statements, name: str, tenant: str, at_us: int) -> None:
    """Of a gateway that gives no bonus."""


def people(database: Database) -> PeopleParts:
    """What lets people into a gateway with this database."""
    directory, config, pepper = Directory(database), PeopleConfig(), b"p" * 32
    sessions, attempts = BrowserSessions(directory, pepper, config), Attempts(None, pepper)
    newcomers, invitations = Newcomers(directory, config, no_wallet), Invitations(database, pepper)
    passwords = Passwords(directory, Hashing(), 12)
    accounts = Accounts(directory, config, sessions, newcomers, invitations, (passwords, attempts))
    identities = Identities(directory, accounts, newcomers, invitations)
    return PeopleParts(accounts, identities, invitations, sessions, Orgs(directory), Users(directory), attempts)
