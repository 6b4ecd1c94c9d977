"""Asks a provider for its models or whether it is well, to see if it can be reached and takes its key."""

from __future__ import annotations

import time

import msgspec

from adapters.answers import fetch
from adapters.connection import Timeouts
from adapters.dialects.failures import failure
from adapters.errors import UpstreamRefused
from adapters.upstream import Upstream, UpstreamSettings

ANSWER_BYTES_MAX = 16 << 20
TIMEOUTS = Timeouts(connect_s=5, first_byte_s=10, idle_s=10, total_s=20)


class _Model(msgspec.Struct):
    id: str = ""
    name: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []
    models: list[_Model] = []
    has_more: bool | None = None
    next_page: str | None = msgspec.field(default=None, name="nextPageToken")


async def ask(settings: UpstreamSettings) -> frozenset[str] | None:
    """The models that it lists, none where that is not all of them or is told in a way of its own; None where it cannot
    be asked for them. Raises the `AdapterError` that requests would get."""
    upstream = Upstream(settings)
    try:
        if upstream.row.models_path is None:
            return None
        target = upstream.path(upstream.row.models_path.removeprefix("/"))
        head = await upstream.head("GET", target, b"")
        answer = await fetch(upstream.wire, head, b"", bytes_max=ANSWER_BYTES_MAX, timeouts=TIMEOUTS)
        if answer.status in (404, 405, 410):
            message = (
                f"There is nothing at {target} of its host, where its models would be listed; look at its base_url."
            )
            raise UpstreamRefused(message, answer.status)
        if answer.status != 200:
            raise failure(answer.status, answer.body, {}, time.time())
        return _listed(answer.body) if upstream.row.lists_served else frozenset()
    finally:
        await upstream.close()


def _listed(body: bytes) -> frozenset[str]:
    try:
        told = msgspec.json.decode(body, type=_Models)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return frozenset()
    if told.has_more or told.next_page:
        return frozenset()
    return frozenset((one.id or one.name).removeprefix("models/") for one in (*told.data, *told.models))


async def knock(upstream: Upstream, path: str | None, timeout_s: float) -> int:
    """The status with which a provider answers at a path of its host, or (None) where its kind says how it is.

    Authorised like any request, and like any request it follows no redirect.
    """
    row = upstream.row
    target = path or row.health_path or upstream.path((row.models_path or "/").removeprefix("/"))
    head = await upstream.head("GET", target, b"")
    timeouts = Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s, total_s=timeout_s)
    return (await fetch(upstream.wire, head, b"", bytes_max=ANSWER_BYTES_MAX, timeouts=timeouts)).status
