"""A gateway's parts, put together for tests of its routes."""

from __future__ import annotations

from gateway.api.health import Health
from gateway.app import Parts
from gateway.audit import Audit
from gateway.catalog import Catalog
from gateway.config import Config
from gateway.config_limits import LimitsConfig
from gateway.inference import Inference
from gateway.limits.limiter import Limiter, LocalCounters, steady_us, wall_us
from gateway.telemetry import Telemetry
from tests.fakes import no_balances


def parts(catalog: Catalog | None = None) -> Parts:
    """Of a gateway that keeps nothing."""
    telemetry, catalog = Telemetry("test"), catalog or Catalog(())
    limiter = Limiter(LimitsConfig(), LocalCounters(), no_balances, now_us=wall_us, steady_us=steady_us)
    health = Health(telemetry, dict, lambda: False)
    return Parts(Config(), catalog, Inference(catalog, telemetry), health, Audit(None), limiter)
