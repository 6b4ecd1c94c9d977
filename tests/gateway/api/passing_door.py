"""A gateway on a loopback socket in front of an upstream that plays a script, in the fast lane or through ASGI."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

from adapters.connection import Timeouts
from adapters.http1 import Client as HttpClient
from adapters.providers import ProviderKind
from adapters.remote import Remote, RemoteModel
from adapters.types import Finished, Timings, Usage
from adapters.upstream import Upstream as Provider
from adapters.upstream import UpstreamSettings
from gateway.api import openai as api
from gateway.api.anthropic import Messages
from gateway.api.passing import Passer
from gateway.api.remote_images import RemoteImages
from gateway.auth import Authenticator
from gateway.cache import Cache
from gateway.catalog import Adapter, Caching, Catalog, Target
from gateway.config import ImagesConfig, ServerConfig
from gateway.guardrails.rules import Guardrails
from gateway.inference import Inference
from gateway.metering import Metering
from gateway.routing.backoff import RetryBudget
from gateway.routing.balance import RouteSettings
from gateway.routing.breaker import Breaker
from gateway.routing.router import Router
from gateway.routing.standing import Standing
from gateway.routing.trip import Target as RouteTarget
from gateway.secret import Secret
from gateway.telemetry import Telemetry
from tests.adapters.upstream import Script, Upstream, upstream
from tests.fakes import HELLO, Scripted
from tests.gateway.api.wire import Served, outcomes, serve

BODY_BYTES_MAX = 3_000_000
PATIENT = Timeouts(connect_s=20, first_byte_s=20, idle_s=20, total_s=20)


TIMED = (*HELLO[:-1], Finished(Usage(7, 2, 3), Timings(1500, 2500, 4000)))


def beside(*adapters: Adapter) -> Router:
    """A route that prefers the first."""
    targets = [RouteTarget(identity=str(i), provider="p", model=str(i), adapter=one) for i, one in enumerate(adapters)]
    standings = {one.identity: Standing(Breaker()) for one in targets}
    return Router("both", [targets], RouteSettings(policy="priority"), standings, RetryBudget())


class Door:
    def __init__(self, served: Served, up: Upstream, telemetry: Telemetry) -> None:
        self.served = served
        self.up = up
        self.telemetry = telemetry

    def outcomes(self) -> dict[str, float]:
        return outcomes(self.telemetry)


@contextlib.asynccontextmanager
async def opened(
    script: Script,
    *,
    lane: bool = True,
    limits: ServerConfig | None = None,
    authenticator: Authenticator | None = None,
    metering: Metering | None = None,
    loopback_only: bool = False,
    kind: ProviderKind = "openai-compatible",
    cache: Cache | None = None,
    guardrails: Guardrails | None = None,
    near: Adapter | None = None,
) -> AsyncIterator[Door]:
    async with upstream(script) as up:
        client = HttpClient(proxies={}, timeouts=PATIENT)
        url = f"http://127.0.0.1:{up.port}" + ("/v1" if kind.startswith("open") else "")
        place = {"region": "eu", "project": "mine"} if kind.startswith("vertex") else {}
        settings = UpstreamSettings(name="p", kind=kind, base_url=url, api_key=Secret("upstream-key"), **place)
        provider = Provider(settings, client=client)
        remote = Remote(
            RemoteModel(name="far", model="their-model", kinds=("chat", "completion", "embedding")), provider
        )
        telemetry = Telemetry("test")
        models = (
            Target("far", remote, aliases=("f",), caching=Caching(100)),
            Target("near", near or Scripted()),
            Target("both", beside(Scripted(TIMED), remote)),
        )
        catalog = Catalog(models)
        inference = Inference(catalog, telemetry, metering, cache, guardrails=guardrails)
        images = RemoteImages(ImagesConfig())
        endpoints = (
            *api.endpoints(inference, catalog, images, BODY_BYTES_MAX),
            *Messages(inference, images, BODY_BYTES_MAX).endpoints(),
        )
        passer = Passer(inference, BODY_BYTES_MAX)
        async with serve(
            endpoints, limits, authenticator, passer=passer, lane=lane, loopback_only=loopback_only
        ) as served:
            yield Door(served, up, telemetry)
        await client.close()


def body_of(**fields: object) -> bytes:
    return json.dumps({"model": "far", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def post(body: bytes, headers: bytes = b"", path: bytes = b"/v1/chat/completions") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%b" % (path, headers)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
