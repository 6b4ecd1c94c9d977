"""Every route there is, over the parts that it is about."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from adapters.llama_cpp.pool import Occupied
from gateway.api import openai
from gateway.api.admin.audit import AuditRoutes
from gateway.api.admin.cache import CacheRoutes
from gateway.api.admin.datasets import DatasetRoutes
from gateway.api.admin.forecasts import Forecasts
from gateway.api.admin.garbage import GarbageRoutes
from gateway.api.admin.guardrails import GuardrailRoutes
from gateway.api.admin.hub import HubRoutes
from gateway.api.admin.invitations import InvitationRoutes
from gateway.api.admin.keys import KeyRoutes
from gateway.api.admin.ledger import LedgerRoutes
from gateway.api.admin.library import LibraryRoutes
from gateway.api.admin.links import LinkRoutes
from gateway.api.admin.orgs import OrgRoutes
from gateway.api.admin.pool import PoolRoutes
from gateway.api.admin.prices import PriceRoutes
from gateway.api.admin.pulls import PullRoutes
from gateway.api.admin.routes import Admin, Route
from gateway.api.admin.served import ProviderRoutes, RouteRoutes
from gateway.api.admin.server import ServerRoutes
from gateway.api.admin.targets import TargetRoutes
from gateway.api.admin.teams import TeamRoutes
from gateway.api.admin.users import UserRoutes
from gateway.api.admin.wallets import WalletRoutes
from gateway.api.anthropic import Messages
from gateway.api.cookies import Cookies
from gateway.api.decisions import RouteDecisions
from gateway.api.docs import DocsPage
from gateway.api.health import Health, front_page
from gateway.api.http import Endpoint
from gateway.api.openapi import OpenApi
from gateway.api.passthrough import OwnApis
from gateway.api.people import People, PeopleParts
from gateway.api.providers import Providers
from gateway.api.remote_images import RemoteImages
from gateway.api.rerank import Rerank
from gateway.api.sessions import KeptSessions
from gateway.api.tokens import Tokens
from gateway.api.usage import OwnUsage
from gateway.audit import Audit
from gateway.auth.keyring import Keyring
from gateway.auth.records import Directory
from gateway.cache import Cache
from gateway.catalog import Catalog
from gateway.config import Config
from gateway.guardrails.rules import Guardrails
from gateway.inference import Inference
from gateway.ledger.store import Ledger
from gateway.library.datasets import Datasets
from gateway.library.finding import Finding
from gateway.library.garbage import Collector
from gateway.library.importing import Imports
from gateway.library.links import Links
from gateway.library.messages import Ask
from gateway.limits.limiter import Limiter, wall_us
from gateway.limits.wallets import Wallets
from gateway.passthrough import PassThrough
from gateway.routing.decisions import Decisions
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.served.live import Live
from gateway.sessions import Sessions


def version() -> str:
    return importlib.metadata.version("inference-gateway")


class Library(NamedTuple):
    """What the routes of files are about."""

    imports: Imports
    links: Links
    finding: Finding
    collector: Collector
    datasets: Datasets
    folders: tuple[Path, ...] = ()


class Parts(NamedTuple):
    """What routes are about. Without keys there is no database, and nothing of what is kept in one."""

    config: Config
    catalog: Catalog
    inference: Inference
    health: Health
    audit: Audit
    limiter: Limiter
    guardrails: Guardrails
    ledger: Ledger | None = None
    wallets: Wallets | None = None
    people: PeopleParts | None = None
    decisions: Decisions = Decisions(0)
    directory: Directory | None = None
    keyring: Keyring | None = None
    passthrough: PassThrough | None = None
    pool: Occupied | None = None
    pulls: Ask | None = None
    standings: Callable[[], Mapping[str, Standing]] = dict
    live: Live | None = None
    router: Callable[[str], Router | None] = lambda name: None
    library: Library | None = None
    cache: Cache | None = None


def routes(parts: Parts) -> tuple[Endpoint, ...]:
    """Every route there is, each with its permission."""
    config, catalog, inference, audit = parts.config, parts.catalog, parts.inference, parts.audit
    body_bytes_max, images = config.server.body_bytes_max, RemoteImages(config.images)
    own = OwnUsage(catalog, parts.ledger, parts.limiter, audit, body_bytes_max)
    people = People(parts.people, Cookies(config.auth.people.public_url), audit)
    endpoints = (
        *openai.endpoints(inference, catalog, images, body_bytes_max),
        *Messages(inference, images, body_bytes_max).endpoints(),
        *Rerank(inference, catalog, body_bytes_max).endpoints(),
        *Tokens(inference, body_bytes_max).endpoints(),
        *OwnApis(parts.passthrough, body_bytes_max).endpoints(),
        *own.endpoints(),
        *RouteDecisions(parts.decisions).endpoints(),
        *KeptSessions(Sessions(catalog), audit, body_bytes_max).endpoints(),
        *Admin(audit, body_bytes_max).endpoints(admin_routes(parts)),
        *people.endpoints(),
        *Providers(people).endpoints(),
        *parts.health.endpoints(),
        *OpenApi(version(), lambda: everything).endpoints(),
        *DocsPage().endpoints(),
    )
    everything = (front_page(version(), endpoints), *endpoints)
    return everything


def admin_routes(parts: Parts) -> tuple[Route, ...]:
    """The routes of administration."""
    library = parts.library
    local = frozenset(model.name for model in parts.config.models if model.local)
    forecasts = Forecasts(parts.inference, parts.catalog, local)
    return (
        *KeyRoutes(parts.keyring, wall_us).routes(),
        *AuditRoutes(parts.audit).routes(),
        *LedgerRoutes(parts.ledger, parts.catalog.price_of, wall_us).routes(),
        *InvitationRoutes(parts.people).routes(),
        *OrgRoutes(parts.directory).routes(),
        *TeamRoutes(parts.directory).routes(),
        *UserRoutes(parts.directory).routes(),
        *WalletRoutes(parts.wallets, parts.limiter, wall_us).routes(),
        *TargetRoutes(parts.standings, time.monotonic).routes(),
        *PriceRoutes(parts.live).routes(),
        *ProviderRoutes(parts.live).routes(),
        *RouteRoutes(parts.live, parts.router, parts.catalog, time.monotonic).routes(),
        *GuardrailRoutes(parts.guardrails).routes(),
        *CacheRoutes(parts.cache).routes(),
        *LibraryRoutes(library and library.imports).routes(),
        *GarbageRoutes(library and library.collector).routes(),
        *LinkRoutes(library and library.links).routes(),
        *HubRoutes(library and library.finding, library.folders if library else ()).routes(),
        *PullRoutes(parts.pulls, parts.config.library.allow, library and library.datasets).routes(),
        *DatasetRoutes(library and library.datasets, forecasts).routes(),
        *PoolRoutes(parts.config, parts.pool, parts.health.statuses).routes(),
        *ServerRoutes(parts.config, parts.catalog, parts.health.statuses).routes(),
    )
