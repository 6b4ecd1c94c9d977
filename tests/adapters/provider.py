"""A provider on a loopback socket, for tests of what speaks to one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from adapters.http1 import Client
from adapters.providers import ProviderKind
from adapters.remote import Remote, RemoteModel
from adapters.types import Caller, Event
from adapters.upstream import Upstream, UpstreamSettings
from tests.adapters.upstream import Script, upstream
from tests.adapters.upstream import Upstream as Peers

CALLER = Caller("req", "tenant")
KEY = "sk-the-gateways-own-key"


class Key:
    """A key that shows where it should not when somebody prints it."""

    def reveal(self) -> str:
        return KEY


def reply(body: bytes, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> bytes:
    """A whole HTTP response."""
    given = {"content-type": content_type, "content-length": str(len(body))} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


def chunks(*payloads: bytes) -> bytes:
    """Payloads as server-sent events."""
    return b"".join(b"data: " + payload + b"\n\n" for payload in payloads)


@asynccontextmanager
async def remote(
    script: Script, kind: ProviderKind = "openai", model: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Remote, Peers]]:
    """A model of a provider that answers as `script` does."""
    async with upstream(script) as peers:
        url = f"http://127.0.0.1:{peers.port}/v1"
        given = {"name": "p", "kind": kind, "base_url": url, "api_key": Key()} | settings
        provider = Upstream(UpstreamSettings(**given), client=Client(proxies={}))
        try:
            yield Remote(RemoteModel(**({"name": "public", "model": "theirs"} | (model or {}))), provider), peers
        finally:
            await provider.close()


async def drained(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]
