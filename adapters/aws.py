"""Amazon's ways on the wire: requests signed with Signature Version 4, and answers as an event stream.

Both after AWS's documentation: "Create a signed AWS API request", and `application/vnd.amazon.eventstream`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Sequence
from urllib.parse import quote

from adapters.dialects.failures import failure
from adapters.errors import AdapterError, UpstreamInvalid

EVENT_STREAM = "application/vnd.amazon.eventstream"
MESSAGE_BYTES_MAX = 24 << 20
_PRELUDE = struct.Struct(">III")
_FIXED_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_STATUS = {
    "validationException": 400,
    "throttlingException": 429,
    "modelTimeoutException": 408,
    "serviceUnavailableException": 503,
}


def signature_headers(
    access_key_id: str,
    secret: str,
    session_token: str | None,
    *,
    region: str,
    service: str,
    moment: str,
    method: str,
    target: str,
    host: str,
    body: bytes,
    headers: Sequence[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """The headers that sign a request at `moment` (`20260131T235959Z`); `headers` are further ones to be signed.

    `target` is the path as it is sent, with its query. Each path of these services is encoded once more.
    """
    path, _, query = target.partition("?")
    added = [("x-amz-date", moment)]
    if session_token is not None:
        added.append(("x-amz-security-token", session_token))
    signed = sorted([("host", host), *added, *((name.lower(), value.strip()) for name, value in headers)])
    names = ";".join(name for name, _ in signed)
    canonical = "\n".join(
        (
            method,
            quote(path, safe="/~"),
            "&".join(sorted(one if "=" in one else one + "=" for one in query.split("&") if one)),
            "".join(f"{name}:{value}\n" for name, value in signed),
            names,
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (moment[:8], region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return [*added, ("authorization", credential)]


class MessageSplitter:
    """The messages of one event stream, whatever the boundaries of the pieces it comes in."""

    def __init__(self, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """The messages that end in this piece, each as its event type and payload.

        Raises what an exception in the stream means, and `UpstreamInvalid` for a message that is none.
        """
        self._rest += piece
        found: list[tuple[str, bytes]] = []
        while len(self._rest) >= _PRELUDE.size:
            total, headers, checksum = _PRELUDE.unpack_from(self._rest)
            if zlib.crc32(self._rest[:8]) != checksum or not headers + 16 <= total <= self._bytes_max:
                raise UpstreamInvalid("The provider sent a message that is none.")
            if len(self._rest) < total:
                break
            found.append(_message(bytes(self._rest[:total]), headers))
            del self._rest[:total]
        return found

    def end(self) -> list[tuple[str, bytes]]:
        """Nothing; raises when the stream ends within a message."""
        if self._rest:
            raise UpstreamInvalid("The provider's answer broke off.")
        return []


def event_message(kind: str, payload: bytes) -> bytes:
    """An event as a message, such as a server sends it."""
    given = ((":event-type", kind), (":content-type", "application/json"), (":message-type", "event"))
    headers = b"".join(
        struct.pack(f">B{len(name)}sBH{len(value)}s", len(name), name.encode(), 7, len(value), value.encode())
        for name, value in given
    )
    start = struct.pack(">II", _PRELUDE.size + len(headers) + len(payload) + 4, len(headers))
    start += zlib.crc32(start).to_bytes(4)
    whole = start + headers + payload
    return whole + zlib.crc32(whole).to_bytes(4)


def _message(raw: bytes, headers_size: int) -> tuple[str, bytes]:
    if zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:]):
        raise UpstreamInvalid("The provider sent a message that was damaged.")
    start = _PRELUDE.size
    headers = _headers(raw[start : start + headers_size])
    payload = raw[start + headers_size : -4]
    if headers.get(":message-type", "event") != "event":
        raise _exception(headers.get(":exception-type") or headers.get(":error-code", ""), payload)
    return headers.get(":event-type", ""), payload


def _exception(kind: str, payload: bytes) -> AdapterError:
    return failure(_STATUS.get(kind, 500), payload, {"x-amzn-errortype": kind}, 0.0)


def _headers(raw: bytes) -> dict[str, str]:
    """The headers that are text; others are skipped."""
    found: dict[str, str] = {}
    at = 0
    try:
        while at < len(raw):
            name_end = at + 1 + raw[at]
            name, kind = raw[at + 1 : name_end].decode(), raw[name_end]
            at = name_end + 1
            if kind in (6, 7):
                size = int.from_bytes(raw[at : at + 2])
                if kind == 7:
                    found[name] = raw[at + 2 : at + 2 + size].decode()
                at += 2 + size
            else:
                at += _FIXED_SIZES[kind]
    except (IndexError, KeyError, UnicodeDecodeError):
        raise UpstreamInvalid("The provider sent a message that is none.") from None
    return found
