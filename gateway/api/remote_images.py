"""Fetches images that clients name by a web address, without letting them reach anything but the public web.

Connections go through `public_network.py`, and each redirect goes the same way. What went wrong is not told in detail,
since it would tell about our network.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import httpcore
from msgspec.structs import replace
from starlette.requests import Request

from adapters.dialects import openai_wire as wire
from adapters.dialects.openai_parts import MEDIA_TYPES, check_images
from adapters.errors import InvalidRequest
from adapters.types import ChatRequest, ImagePart, ImageUrl
from gateway.api.http import run_until_disconnect
from gateway.config import ImagesConfig
from gateway.inference import Inference
from gateway.public_network import FAILURES, PublicNetwork, Resolve, resolve

REDIRECTS_MAX = 3
CONCURRENT_MAX = 8
PORTS = {"http": 80, "https": 443}

Asked = TypeVar("Asked", bound=wire.Inbound[ChatRequest])

_FAILURES = (*FAILURES, httpcore.UnsupportedProtocol)
_HEADERS = (
    ("accept", ", ".join(MEDIA_TYPES)),
    ("accept-encoding", "identity"),
    ("user-agent", "inference-gateway"),
)


class _FetchError(Exception):
    """Why an image could not be had, in words for the client."""


class RemoteImages:
    """Puts images in the place of their web addresses, where the configuration allows it."""

    def __init__(
        self,
        config: ImagesConfig,
        *,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._network = PublicNetwork(resolve, network or httpcore.AnyIOBackend())
        self._ssl_context = ssl_context
        self._places = asyncio.Semaphore(CONCURRENT_MAX)

    def wanted(self, request: ChatRequest) -> bool:
        """Whether the request names an image by its address."""
        contents = [message.content for message in request.messages if isinstance(message.content, tuple)]
        return any(isinstance(part, ImageUrl) for content in contents for part in content)

    async def fetched(self, request: ChatRequest, field: str | None = None) -> ChatRequest:
        """The request with every image in it. Raises InvalidRequest, naming the part, or the `field` of a dialect whose
        messages are counted otherwise."""
        messages = list(request.messages)
        for i, message in enumerate(request.messages):
            parts = list(message.content) if isinstance(message.content, tuple) else []
            for j, part in enumerate(parts):
                if isinstance(part, ImageUrl):
                    parts[j] = await self._image_of(part, field or f"messages[{i}].content[{j}]")
                    messages[i] = replace(message, content=tuple(parts))
                    # Before the next one is held in memory as well.
                    check_images(messages)
        return replace(request, messages=tuple(messages))

    async def _image_of(self, part: ImageUrl, path: str) -> ImagePart:
        try:
            if not self._config.remote:
                raise _FetchError("send the image in a data: URL; this server does not fetch web addresses")
            async with self._places, asyncio.timeout(self._config.timeout_s):
                return replace(await self._fetch(part.url), cache=part.cache)
        except _FetchError as error:
            reason = str(error)
        except (TimeoutError, OSError, ValueError, *_FAILURES):
            reason = "the image could not be fetched"
        raise InvalidRequest(f"Invalid value for '{path}': {reason}.", param=path)

    async def _fetch(self, url: str) -> ImagePart:
        # Reading the certificates of the system takes tens of milliseconds.
        self._ssl_context = self._ssl_context or await asyncio.to_thread(ssl.create_default_context)
        async with httpcore.AsyncConnectionPool(
            ssl_context=self._ssl_context, network_backend=self._network, retries=0
        ) as pool:
            for _ in range(REDIRECTS_MAX + 1):
                self._check(url)
                async with pool.stream("GET", url, headers=_HEADERS) as response:
                    fields = {name.lower().decode(): value.decode("latin-1") for name, value in response.headers}
                    if response.status in (301, 302, 303, 307, 308) and "location" in fields:
                        url = urljoin(url, fields["location"])
                        continue
                    return await self._image(response, fields)
        raise _FetchError("the image could not be fetched")

    def _check(self, url: str) -> None:
        """Raises for an address that is not asked at all."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".").lower()
        if parts.scheme not in PORTS or not host:
            raise _FetchError("expected a web address")
        if parts.username is not None or parts.password is not None:
            raise _FetchError("a web address must not hold credentials")
        if parts.port not in (None, PORTS[parts.scheme]):
            raise _FetchError("a web address must not name a port")
        hosts = self._config.hosts
        if hosts and not any(host == one or host.endswith(f".{one}") for one in hosts):
            raise _FetchError("images are not fetched from this host")

    async def _image(self, response: httpcore.Response, fields: Mapping[str, str]) -> ImagePart:
        media_type = fields.get("content-type", "").partition(";")[0].strip().lower()
        if response.status != 200 or media_type not in MEDIA_TYPES or "content-encoding" in fields:
            raise _FetchError("there is no image at this address")
        data = bytearray()
        async for piece in response.aiter_stream():
            data += piece
            if len(data) > self._config.bytes_max:
                raise _FetchError(f"the image has more than {self._config.bytes_max} bytes")
        return ImagePart(bytes(data), media_type)


async def with_images(
    request: Request, asked: Asked, images: RemoteImages, inference: Inference, field: str | None = None
) -> Asked:
    """What was asked with its images in the place of their addresses, unless its target's provider fetches them.

    `field` is what `fetched` says.
    """
    chat = asked.request
    if not images.wanted(chat) or inference.takes_image_urls(request.state.principal, chat):
        return asked
    return replace(asked, request=await run_until_disconnect(request, images.fetched(chat, field)))
