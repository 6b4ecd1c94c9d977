"""What a scrape reads off the running parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from adapters.llama_cpp import LlamaCpp
from adapters.llama_cpp.messages import GrammarCounters, SessionCounters
from adapters.llama_cpp.pool import Occupied
from adapters.shared.guest import Shared
from gateway.audit import Audit
from gateway.ledger.store import Ledger
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.telemetry import Gauge

if TYPE_CHECKING:
    from gateway.auth.jwks import IssuerKeys

MODEL_STATES = ("loading", "ready", "failed", "restarting", "stopped", "sleeping", "pulling")
SESSION_EVENTS = ("spilled", "restored", "written", "write_failed", "corrupt", "mismatched", "expired", "evicted")
GRAMMAR_OUTCOMES = ("compiled", "reused", "refused")


def of_work(models: Iterable[LlamaCpp | Shared], pool: Occupied, connections: int) -> Iterator[Gauge]:
    """What this process has to do, and with what."""
    yield from of_models(models)
    yield from of_pool(pool)
    yield "gateway_connections", (), connections


def of_models(models: Iterable[LlamaCpp | Shared]) -> Iterator[Gauge]:
    """How busy each model is, and what it keeps."""
    for model in models:
        status, labels = model.status(), (model.name,)
        yield "gateway_queue_depth", labels, status.queue_depth
        yield "gateway_running_requests", labels, status.running
        yield "gateway_engine_restarts", labels, model.counters.restarts
        for state in MODEL_STATES:
            yield "gateway_model_state", (model.name, state), float(status.state == state)
        if status.busyness is not None:
            yield "gateway_kv_cells_used", labels, status.busyness.cells_used
            yield "gateway_kv_cells_max", labels, status.busyness.cells_max
            made, right = status.busyness.guesses_made, status.busyness.guesses_right
            yield "gateway_guesses_total", (model.name, "right"), right
            yield "gateway_guesses_total", (model.name, "wrong"), made - right
            if status.info is not None and status.info.vision:
                yield "gateway_images_encoded_total", labels, status.busyness.images_encoded
                yield "gateway_images_reused_total", labels, status.busyness.images_reused
                yield "gateway_image_cache_bytes", labels, status.busyness.image_cache_bytes
        yield from of_sessions(model.name, model.session_counters)
        yield from of_grammars(model.name, status.grammars)


def of_pool(pool: Occupied) -> Iterator[Gauge]:
    """What is in memory, and who waits for it."""
    for name, place in pool.placements().items():
        yield "gateway_model_memory_bytes", (name,), place.memory_bytes if place.inside else 0
        yield "gateway_model_waiting", (name,), place.waiting
        yield "gateway_model_loads_total", (name,), place.loads
    yield "gateway_pool_memory_bytes", (), pool.taken_bytes
    yield "gateway_pool_memory_max_bytes", (), pool.memory_bytes_max


def of_sessions(model: str, counters: SessionCounters) -> Iterator[Gauge]:
    """What became of a model's kept conversations."""
    yield "gateway_sessions", (model,), counters.sessions
    for tier in ("ram", "disk"):
        yield "gateway_session_bytes", (model, tier), getattr(counters, f"{tier}_bytes")
    yield "gateway_session_lookups_total", (model, "none"), counters.misses
    for tier in ("cells", "ram", "disk"):
        yield "gateway_session_lookups_total", (model, tier), getattr(counters, f"hits_{tier}")
    for event in SESSION_EVENTS:
        yield "gateway_session_events_total", (model, event), getattr(counters, event)


def of_grammars(model: str, counters: GrammarCounters) -> Iterator[Gauge]:
    """What became of the grammars that a model's answers were to keep to."""
    for outcome in GRAMMAR_OUTCOMES:
        yield "gateway_grammars_total", (model, outcome), getattr(counters, outcome)
    yield "gateway_grammar_compile_seconds_total", (model,), counters.compile_us / 1e6


def of_issuers(key_sets: Iterable[IssuerKeys]) -> Iterator[Gauge]:
    """How each issuer's keys are kept up to date."""
    for keys in key_sets:
        name = keys.config.name
        if math.isfinite(keys.age_s):
            yield "gateway_issuer_keys_age_seconds", (name,), keys.age_s
        yield "gateway_issuer_fetches_total", (name, "ok"), keys.fetched
        yield "gateway_issuer_fetches_total", (name, "failed"), keys.failed


def of_audit(audit: Audit) -> Iterator[Gauge]:
    yield "gateway_audit_pending", (), audit.pending
    yield "gateway_audit_entries_total", (), audit.written
    yield "gateway_audit_lost_total", (), audit.lost


def of_ledger(ledger: Ledger) -> Iterator[Gauge]:
    yield "gateway_ledger_pending", (), ledger.pending
    yield "gateway_ledger_entries_total", (), ledger.written
    yield "gateway_outbox_bytes", (), ledger.waiting_bytes
    yield "gateway_ledger_refused", (), ledger.refused


def of_routes(routers: Iterable[Router], standings: Mapping[str, Standing], now_s: float) -> Iterator[Gauge]:
    """How routes and their targets do."""
    yield from of_hedges(routers)
    yield from of_standings(standings, now_s)


def of_hedges(routers: Iterable[Router]) -> Iterator[Gauge]:
    """What became of the second targets of each route."""
    for router in routers:
        if (hedging := router.hedging) is not None:
            lost = hedging.started - hedging.won
            for outcome, count in (("won", hedging.won), ("lost", lost), ("refused", hedging.refused)):
                yield "gateway_hedges_total", (router.name, outcome), count
            yield "gateway_hedge_cost_nano_usd_total", (router.name,), hedging.cost_nano


def of_standings(standings: Mapping[str, Standing], now_s: float) -> Iterator[Gauge]:
    """How the targets of routes do. A breaker that is open counts 1, a half-open one a half."""
    levels = {"closed": 0.0, "half_open": 0.5, "open": 1.0}
    for identity, standing in standings.items():
        labels = (identity,)
        yield "gateway_target_breaker", labels, levels[standing.breaker.state(now_s)]
        yield "gateway_target_running", labels, standing.running
        yield "gateway_target_requests_total", labels, standing.requests
        yield "gateway_target_failures_total", labels, standing.failures
        if standing.condition is not None:
            yield "gateway_target_healthy", labels, float(standing.condition.ill is None)
            yield (
                "gateway_target_checks_total",
                (identity, "ok"),
                standing.condition.checks - standing.condition.failures,
            )
            yield "gateway_target_checks_total", (identity, "failed"), standing.condition.failures
        if standing.first_output_s is not None:
            yield "gateway_target_first_output_seconds", labels, standing.first_output_s
