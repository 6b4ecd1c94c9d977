"""The addresses behind a name, for those who want each of them."""

from __future__ import annotations

import asyncio
import logging
import socket

from adapters.errors import Unreachable
from adapters.http1 import Origin

log = logging.getLogger(__name__)


async def addresses_of(origin: Origin) -> tuple[str, ...]:
    """All addresses of an origin's host, in order; asked for in a thread. Raises `Unreachable` when there are none.

    They are of one family, the one that the system prefers: a host that has both is there once, not twice.
    """
    try:
        found = await asyncio.to_thread(socket.getaddrinfo, origin.host, origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        log.warning("the name %s has no address: %s", origin.host, exc)
        raise Unreachable("The upstream's name has no address.") from None
    return tuple(sorted({str(one[4][0]) for one in found if one[0] == found[0][0]}))
