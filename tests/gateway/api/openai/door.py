"""A server on a loopback socket over one scripted model, with an HTTP client and the official SDK in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

import httpx
import openai

from adapters.types import ModelCard
from gateway.api import openai as api
from gateway.api.anthropic import Messages
from gateway.api.passing import Passer
from gateway.api.remote_images import RemoteImages
from gateway.api.rerank import Rerank
from gateway.api.tokens import Tokens
from gateway.catalog import Catalog, Target
from gateway.config import ImagesConfig
from gateway.inference import Inference
from gateway.telemetry import Telemetry
from tests.fakes import HELLO, Scripted, Step
from tests.gateway.api.wire import Served, outcomes, serve

BODY_BYTES_MAX = 1_000_000


class Door:
    """What a test needs to ask and to look at."""

    def __init__(
        self,
        adapter: Scripted,
        served: Served,
        http: httpx.AsyncClient,
        sdk: openai.AsyncOpenAI,
        telemetry: Telemetry,
    ) -> None:
        self.adapter = adapter
        self.served = served
        self.http = http
        self.telemetry = telemetry
        self.sdk = sdk

    def outcomes(self) -> dict[str, float]:
        return outcomes(self.telemetry)


@contextlib.asynccontextmanager
async def opened(
    script: Sequence[Step] = HELLO, *, card: ModelCard | None = None, strict: bool = False
) -> AsyncIterator[Door]:
    """`strict` makes the SDK refuse answers that are not exactly of its types, which OpenAI's own are not always."""
    adapter = Scripted(script, card=card)
    telemetry = Telemetry("test")
    catalog = Catalog([Target("org/model", adapter, aliases=("m",), created_s=1700000000)])
    inference = Inference(catalog, telemetry)
    images = RemoteImages(ImagesConfig())
    endpoints = (
        *api.endpoints(inference, catalog, images, BODY_BYTES_MAX),
        *Messages(inference, images, BODY_BYTES_MAX).endpoints(),
        *Rerank(inference, catalog, BODY_BYTES_MAX).endpoints(),
        *Tokens(inference, BODY_BYTES_MAX).endpoints(),
    )
    async with (
        serve(endpoints, passer=Passer(inference, BODY_BYTES_MAX)) as served,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as http,
        openai.AsyncOpenAI(
            api_key="k", base_url=f"{http.base_url}/v1", max_retries=0, _strict_response_validation=strict
        ) as sdk,
    ):
        yield Door(adapter, served, http, sdk, telemetry)
