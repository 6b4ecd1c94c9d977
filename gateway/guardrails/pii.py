"""What personal data and secrets look like: rows of patterns, each with the check that tells it from mere digits.

Sources: the Luhn check of ISO/IEC 7812, the mod-97 check of ISO 13616 with the lengths of its registry, E.164 for the
length of telephone numbers, and for keys the prefixes that their makers document.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from gateway.config_guardrails import PiiType
from gateway.guardrails.patterns import Detector, Patterns, compiled

_DIGITS = string.digits.encode()
_LETTERS = string.ascii_letters.encode()
_WORD = _LETTERS + _DIGITS
_EMAIL = r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b"
_CARD = r"\b[2-6][0-9](?:[ -]?[0-9]){10,18}"
_CALL_ABROAD = r"\+[1-9](?:[ .()/-]{0,2}[0-9]){7,14}\b"
_CALL_AMERICA = r"(?:\(\b[2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b"
_IBAN_PRINTED = r"\b[A-Z]{2}[0-9]{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?\b"
_IBAN_COMPACT = r"\b[A-Za-z]{2}[0-9]{2}[A-Za-z0-9]{11,30}\b"
_KEYS = (
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic and who follows them.
    r"gw_live_[0-9A-Za-z]{12}_[0-9A-Za-z_]{43,}",  # This gateway.
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[0-9A-Za-z_-]{35}",  # Google
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"(?:npm|pypi)[_-][A-Za-z0-9_-]{36,}",
    r"gsk_[A-Za-z0-9]{40,}",  # Groq
    r"xai-[A-Za-z0-9]{40,}",
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",  # A signed token (RFC 7519).
)
_PEM_BEGINS = b"-----BEGIN "
_PEM = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)?"
_PEM_END_BYTES = 80

IBAN_CHARS: Mapping[str, int] = {
    "NO": 15,
    "BE": 16,
    "DK": 18,
    "FK": 18,
    "FI": 18,
    "FO": 18,
    "GL": 18,
    "NL": 18,
    "SD": 18,
    "MK": 19,
    "SI": 19,
    "AT": 20,
    "BA": 20,
    "EE": 20,
    "KZ": 20,
    "LT": 20,
    "LU": 20,
    "MN": 20,
    "XK": 20,
    "CH": 21,
    "CR": 22,
    "HR": 21,
    "LI": 21,
    "LV": 21,
    "BG": 22,
    "BH": 22,
    "DE": 22,
    "GB": 22,
    "GE": 22,
    "IE": 22,
    "ME": 22,
    "RS": 22,
    "AE": 23,
    "GI": 23,
    "IL": 23,
    "IQ": 23,
    "OM": 23,
    "SO": 23,
    "TL": 23,
    "VA": 22,
    "AD": 24,
    "CZ": 24,
    "ES": 24,
    "MD": 24,
    "PK": 24,
    "RO": 24,
    "SA": 24,
    "SE": 24,
    "SK": 24,
    "TN": 24,
    "VG": 24,
    "LY": 25,
    "PT": 25,
    "ST": 25,
    "IS": 26,
    "TR": 26,
    "BI": 27,
    "DJ": 27,
    "FR": 27,
    "GR": 27,
    "IT": 27,
    "MC": 27,
    "MR": 27,
    "SM": 27,
    "AL": 28,
    "AZ": 28,
    "BY": 28,
    "CY": 28,
    "DO": 28,
    "GT": 28,
    "HN": 28,
    "HU": 28,
    "LB": 28,
    "NI": 28,
    "PL": 28,
    "SV": 28,
    "BR": 29,
    "EG": 29,
    "PS": 29,
    "QA": 29,
    "UA": 29,
    "JO": 30,
    "KW": 30,
    "MU": 30,
    "YE": 30,
    "MT": 31,
    "SC": 31,
    "LC": 32,
    "RU": 33,
}


def luhn(digits: bytes) -> bool:
    """Whether the last digit checks the others."""
    doubled = [(digit - 48) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def card(found: bytes) -> int:
    """How much of a row of up to 20 digits is the number of a card: 12 to 19 digits up to the end of a group. What
    follows one, such as the date it expires, may look like more of it."""
    for end in range(len(found), 11, -1):
        if found[end : end + 1] not in (b"", b" ", b"-") or found[end - 1 : end] in b" -":
            continue
        digits = found[:end].replace(b" ", b"").replace(b"-", b"")
        if 12 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits):
            return end
    return 0


def iban(found: bytes) -> int:
    """How much of what matched is an IBAN: as many characters as its country has, whose checksum is right."""
    wanted = IBAN_CHARS.get(found[:2].decode().upper(), 0)
    end = kept = 0
    while end < len(found) and kept < wanted:
        kept += found[end] != 32
        end += 1
    if kept < wanted or not wanted or found[end : end + 1] not in (b"", b" "):
        return 0
    text = found[:end].replace(b" ", b"").decode().upper()
    number = "".join(str(int(character, 36)) for character in text[4:] + text[:4])
    return end if int(number) % 97 == 1 else 0


def phone(found: bytes) -> int:
    """All of what matched, when it has as many digits as a telephone number."""
    return len(found) if 8 <= sum(48 <= byte <= 57 for byte in found) <= 15 else 0


def pem_opens(pattern: Any, text: bytes, at: int) -> int:
    """Where the first private key may begin that is not all there yet."""
    while (begins := text.find(_PEM_BEGINS, at)) >= 0:
        found = pattern.match(text, begins)
        end = begins + len(_PEM_BEGINS) if found is None else found.end()
        if len(text) - end < _PEM_END_BYTES:
            return begins
        at = end
    for size in range(min(len(_PEM_BEGINS) - 1, len(text) - at), 0, -1):
        if text.endswith(_PEM_BEGINS[:size]):
            return len(text) - size
    return len(text)


def detectors(types: Iterable[PiiType]) -> list[Detector]:
    """What looks for these. Each row's reach is longer than any match, so that the next character is there too."""
    number, pem = _DIGITS + b" +.()/-", compiled(_PEM)
    rows: Mapping[PiiType, list[Detector]] = {
        "email": [Detector("email", compiled(_EMAIL), 600, _WORD + b"._%+@-")],
        "card": [Detector("card", compiled(_CARD), 48, _DIGITS + b" -", card)],
        "phone": [
            Detector("phone", compiled(_CALL_ABROAD), 64, number, phone),
            Detector("phone", compiled(_CALL_AMERICA), 24, number),
        ],
        "iban": [
            Detector("iban", compiled(_IBAN_PRINTED), 60, string.ascii_uppercase.encode() + _DIGITS + b" ", iban),
            Detector("iban", compiled(_IBAN_COMPACT), 40, _WORD, iban),
        ],
        "secret": [
            Detector("secret", compiled(r"\b(?:" + "|".join(_KEYS) + ")"), 4096, _WORD + b"_-."),
            Detector("secret", pem, 8192, opens=partial(pem_opens, pem)),
        ],
    }
    return [detector for name in dict.fromkeys(types) for detector in rows[name]]


def pii(types: Iterable[PiiType]) -> Patterns:
    """A guardrail that looks for these."""
    return Patterns(detectors(types))
