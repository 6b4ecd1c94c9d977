"""Signatures against botocore's, and event streams as its encoder would write them."""

from __future__ import annotations

import datetime
import struct
import zlib
from unittest.mock import patch

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from adapters.aws import MessageSplitter, signature_headers
from adapters.errors import InvalidRequest, RateLimited, UpstreamInvalid, UpstreamRefused

MOMENT = "20260131T235959Z"


@pytest.mark.parametrize("token", [None, "session-token=="])
@pytest.mark.parametrize(
    "target", ["/model/anthropic.claude-v2%3A1/converse-stream", "/model/arn%3Aaws%3Ax%2Fy/converse", "/a?b=c&a=1"]
)
def test_the_same_signature_as_botocore(target: str, token: str | None) -> None:
    host, body = "bedrock-runtime.us-east-1.amazonaws.com", b'{"messages":[]}'
    request = AWSRequest(method="POST", url=f"https://{host}{target}", data=body)
    moment = datetime.datetime(2026, 1, 31, 23, 59, 59, tzinfo=datetime.UTC)
    with patch("botocore.auth.get_current_datetime", return_value=moment.replace(tzinfo=None)):
        SigV4Auth(Credentials("AKIA", "secret", token), "bedrock", "us-east-1").add_auth(request)
    ours = signature_headers(
        "AKIA",
        "secret",
        token,
        region="us-east-1",
        service="bedrock",
        moment=MOMENT,
        method="POST",
        target=target,
        host=host,
        body=body,
    )
    assert dict(ours)["authorization"] == request.headers["Authorization"]
    assert dict(ours).get("x-amz-security-token") == token


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """After the documented format: prelude, its checksum, headers, payload, checksum."""
    raw = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    raw = b"\x04flag\x00" + raw  # A header of another type, to be skipped.
    prelude = struct.pack(">II", 16 + len(raw) + len(payload), len(raw))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + raw + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


def event(kind: str, payload: bytes) -> bytes:
    return message({":message-type": "event", ":event-type": kind, ":content-type": "application/json"}, payload)


STREAM = event("messageStart", b'{"role":"assistant"}') + event("contentBlockDelta", b"{}") + event("metadata", b"")
MESSAGES = [("messageStart", b'{"role":"assistant"}'), ("contentBlockDelta", b"{}"), ("metadata", b"")]


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_messages_cut_anywhere(cut: int) -> None:
    splitter = MessageSplitter()
    assert splitter.feed(STREAM[:cut]) + splitter.feed(STREAM[cut:]) + splitter.end() == MESSAGES


def test_exceptions_in_the_stream() -> None:
    kinds = {"throttlingException": RateLimited, "validationException": InvalidRequest, "other": UpstreamRefused}
    for kind, expected in kinds.items():
        raw = message({":message-type": "exception", ":exception-type": kind}, b'{"message":"no"}')
        with pytest.raises(expected):
            MessageSplitter().feed(raw)


@pytest.mark.parametrize(
    "raw",
    [
        STREAM[:9] + bytes([STREAM[9] ^ 1]) + STREAM[10:],
        STREAM[:40] + bytes([STREAM[40] ^ 1]) + STREAM[41:],
        struct.pack(">III", 1 << 31, 0, zlib.crc32(struct.pack(">II", 1 << 31, 0))) + b"x" * 20,
        b"<html>not found</html>",
    ],
)
def test_what_is_no_message(raw: bytes) -> None:
    with pytest.raises(UpstreamInvalid):
        MessageSplitter().feed(raw)


def test_an_end_within_a_message() -> None:
    splitter = MessageSplitter()
    splitter.feed(STREAM[:-1])
    with pytest.raises(UpstreamInvalid):
        splitter.end()
