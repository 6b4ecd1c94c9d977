"""When two requests that are passed on ask for the same, and which of their answers are worth keeping."""

from __future__ import annotations

import msgspec

from adapters.relay import PASSING
from adapters.types import Inbound

# Larger bodies are compared as they came.
NORMALISED_BYTES_MAX = 256 * 1024

_sorted = msgspec.json.Encoder(order="deterministic")


def identity(inbound: Inbound) -> bytes:
    """What is the same for two bodies only if they ask for the same, whatever they call the model.

    The order of members and the space between them make no difference, nor do the members that only say for whom an
    answer is. A body that is spelled in another way than usual, or has a member twice, only equals itself: which of
    the two counts would be up to the provider.
    """
    body = inbound.body
    if len(body) > NORMALISED_BYTES_MAX:
        return body
    try:
        compact = msgspec.json.format(body, indent=-1)
        members = msgspec.json.decode(body)
        if not isinstance(members, dict) or msgspec.json.encode(members) != compact:
            return compact
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    for name in PASSING[inbound.dialect].neutral:
        members.pop(name, None)
    return _sorted.encode(members)


def keepable(inbound: Inbound, answer: bytes) -> bool:
    """Whether an answer ended as its model meant it to."""
    return PASSING[inbound.dialect].spoilt.search(answer) is None
