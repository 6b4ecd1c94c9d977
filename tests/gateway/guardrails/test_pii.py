from __future__ import annotations

import asyncio

import pytest

from gateway.guardrails import masked
from gateway.guardrails.pii import pii

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("mail bob.smith+x@mail.example.co.uk now", "mail [EMAIL] now"),
        ("<a@b.io>,c@d.museum.", "<[EMAIL]>,[EMAIL]."),
        ("not.an@address and @handle and a@b", None),
        ("4111 1111 1111 1111 12/27", "[CARD] 12/27"),
        ("4111-1111-1111-1111", "[CARD]"),
        ("22 5555555555554444", "22 [CARD]"),
        ("amex 378282246310005.", "amex [CARD]."),
        ("4111111111111111x", "[CARD]x"),
        ("4111111111111112", None),
        ("4111111111111111000000000000", None),
        ("0000 0000 0000 0000 and 3.14159265358979", None),
        ("DE89 3704 0044 0532 0130 00 is it", "[IBAN] is it"),
        ("de89370400440532013000", "[IBAN]"),
        ("GB82WEST12345698765432,", "[IBAN],"),
        ("NO93 8601 1117 947", "[IBAN]"),
        ("DE88 3704 0044 0532 0130 00", None),
        ("XX89370400440532013000", None),
        ("call +49 (30) 901820 or (212) 555-0123 or 212-555-0123", "call [PHONE] or [PHONE] or [PHONE]"),
        ("1999-2001, 10.0.0.1 and 12345678", None),
        ("key sk-proj-abcdefghijklmnopqrstuv", "key [SECRET]"),
        ("AKIAIOSFODNN7EXAMPLE ghp_" + "a1" * 18, "[SECRET] [SECRET]"),
        ("gw_live_" + "a" * 12 + "_" + "b" * 43 + "_123456", "[SECRET]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl!", "[SECRET]!"),
        ("desk-abcdefghijklmnopqrstuvwxyz", None),
        (f"here: {PEM}\nthat was it", "here: [SECRET]\nthat was it"),
        ("-----BEGIN CERTIFICATE-----", None),
    ],
)
def test_what_is_found_and_what_is_not(text: str, left: str | None) -> None:
    (found,) = asyncio.run(pii(("email", "card", "phone", "iban", "secret")).find([text]))
    assert masked(text, found) == (text if left is None else left)


def test_only_what_is_asked_for() -> None:
    text = "a@b.io 4111111111111111"
    (found,) = asyncio.run(pii(("email",)).find([text]))
    assert masked(text, found) == "[EMAIL] 4111111111111111"
