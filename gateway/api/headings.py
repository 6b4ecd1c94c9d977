"""Heads of requests in the fast lane, and what follows from them: worked out once for all requests that repeat one.

A client that keeps its connection sends the same head again and again, and only the length of the body in it changes.
The parser has checked such a head once, byte for byte; whoever finds it again knows what it says.
"""

from __future__ import annotations

import re

from gateway.api.edge import Visitor, given_request_id
from gateway.api.http import HeaderList

# A request that has any of these goes the usual way.
UNUSUAL = frozenset((b"cookie", b"idempotency-key", b"content-encoding", b"x-gateway-explain", b"cache-control"))
# Where Anthropic's dialect is spoken; elsewhere its headers are unusual.
ANTHROPIC = "/v1/messages"
# Longer heads are parsed each time: what is kept of one is kept for as long as the connection stands.
HEAD_BYTES_MAX = 4 * 1024
# How often the head of a connection may be another one than before until nobody looks any more.
CHANGES_MAX = 8

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,7})(?=\r\n)", re.IGNORECASE)
_LENGTH_BYTES_MAX = 7


class Heading:
    """The head of a POST to one of the lane's paths."""

    def __init__(self, path: str, headers: HeaderList) -> None:
        self.path = path
        self.headers = headers
        self.fields = dict(reversed(headers))  # Of two headers of a name the first counts.
        self.anthropic = path == ANTHROPIC
        strange = b"anthropic-version" in self.fields and not self.anthropic
        self.unusual = strange or not UNUSUAL.isdisjoint(self.fields)
        self.request_id = given_request_id(headers)
        # As text, where something is said in headers that belongs to the request itself.
        self.named = self.texts() if self.anthropic or b"x-session-id" in self.fields else {}
        given = self.fields.get(b"content-length", b"")
        self.length = int(given) if given.isdigit() and b"transfer-encoding" not in self.fields else 0
        self.is_json = self.fields.get(b"content-type") == b"application/json"
        self.visitor: Visitor | None = None

    def texts(self) -> dict[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.fields.items()}

    @property
    def hostname(self) -> str:
        """The name in the Host header, which is a valid one."""
        text = self.fields[b"host"].decode("latin-1")
        return text[1 : text.index("]")] if text.startswith("[") else text.partition(":")[0]


class Repeating:
    """The bytes of a head around the length in it."""

    def __init__(self, before: bytes, behind: bytes, heading: Heading) -> None:
        self.heading = heading
        self._before = before
        self._behind = behind

    def body_in(self, data: bytes) -> tuple[bytes, int] | None:
        """What there is of a body, and how much is still to come, if `data` is this head with nothing else behind it.
        Many clients write the head first, and then the body."""
        begin = len(self._before)
        end = data.find(b"\r", begin, begin + _LENGTH_BYTES_MAX + 1)
        if end < 0 or not data.startswith(self._before) or not data.startswith(self._behind, end):
            return None
        digits, start = data[begin:end], end + len(self._behind)
        left = int(digits) - len(data) + start if digits.isdigit() else -1
        return (data[start:], left) if left >= 0 else None


def repeating(data: bytes, heading: Heading) -> Repeating | None:
    """What to look for in the requests after `data`, which the parser took for requests that begin with this head; None
    when it is more than one request, less than a head, or one that will hardly come again like this."""
    size = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX) + 4
    if size < 4 or b"transfer-encoding" in heading.fields or b"expect" in heading.fields:
        return None
    lengths = list(_LENGTH.finditer(data, 0, size))
    if len(lengths) != 1 or int(lengths[0][1]) < len(data) - size:
        return None
    begin, end = lengths[0].span(1)
    return Repeating(data[:begin], data[end:size], heading)
