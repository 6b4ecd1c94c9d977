"""The settings of guardrails: what is looked for in requests and answers, and what is done about it."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from gateway.config_limits import Section, words
from gateway.secret import Secret

GuardrailKind = Literal["regex", "pii", "moderation", "webhook", "presidio"]
Action = Literal["block", "mask", "log"]
Stage = Literal["before", "during", "after"]
PiiType = Literal["email", "card", "phone", "iban", "secret"]

GUARDRAILS_MAX = 100
PATTERNS_MAX = 200
PATTERN_CHARS_MAX = 2000

Url = Annotated[str, Meta(min_length=1, max_length=2000)]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class GuardrailConfig(Section, frozen=True, kw_only=True):
    """A guardrail: what it looks for (`kind`), when (`stages`), what is done about it (`action`), and for whom.

    It applies to every request (`always`), to those for certain `models` and routes (`a*` for many), and to those of
    keys, teams and organisations that are given it by name. `patterns` are those of kind regex by name, `types` what
    kind pii looks for. `provider`, `model`, `categories` and `threshold` are of kind moderation; `url`, `secret` and
    `private_addresses` of webhook and presidio, `language`, `entities`, `threshold` and `anonymizer_url` of presidio.
    """

    name: str
    kind: GuardrailKind
    action: Action = "block"
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=3)] = ("before", "during")
    always: bool = False
    models: Annotated[tuple[Word, ...], Meta(max_length=1000)] = ()
    on_failure: Literal["closed", "open"] = "closed"
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5
    window_chars: Annotated[int, Meta(ge=16, le=65_536)] = 200
    patterns: dict[str, str] = {}
    types: Annotated[tuple[PiiType, ...], Meta(min_length=1)] = ("email", "card", "phone", "iban", "secret")
    provider: str | None = None
    model: Word | None = None
    categories: Annotated[tuple[Word, ...], Meta(max_length=100)] = ()
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    url: Url | None = None
    secret: Secret | None = None
    private_addresses: bool = False
    language: Annotated[
        str, Meta(min_length=2, max_length=10, pattern=r"^[a-zA-Z-]+\Z", extra=words("a language such as en"))
    ] = "en"
    entities: Annotated[tuple[Word, ...], Meta(max_length=100)] = ()
    anonymizer_url: Url | None = None


# What each kind has for itself; another kind that sets one of these was meant to be something else.
_OWN: dict[str, tuple[str, ...]] = {
    "regex": ("patterns",),
    "pii": ("types",),
    "moderation": ("provider", "model", "categories", "threshold"),
    "webhook": ("url", "secret", "private_addresses"),
    "presidio": ("url", "private_addresses", "language", "entities", "threshold", "anonymizer_url"),
}
_NEEDED = {"regex": ("patterns",), "moderation": ("provider",), "webhook": ("url", "secret"), "presidio": ("url",)}
_DEFAULT = GuardrailConfig(name="-", kind="pii")


def guardrail_conflicts(
    guardrails: tuple[GuardrailConfig, ...], providers: Container[str]
) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    for i, one in enumerate(guardrails):
        where = f"guardrails[{i}]"
        if not _NAME.fullmatch(one.name):
            yield f"{where}.name", "a name has 1 to 64 letters, digits and ._-, and starts with a letter or digit"
        if one.name in [other.name for other in guardrails[:i]]:
            yield f"{where}.name", f'"{one.name}" is already taken'
        if len(set(one.stages)) < len(one.stages):
            yield f"{where}.stages", "each stage is named once"
        foreign = {name for names in _OWN.values() for name in names} - set(_OWN[one.kind])
        for name in sorted(foreign):
            if getattr(one, name) != getattr(_DEFAULT, name):
                yield f"{where}.{name}", f"a guardrail of kind {one.kind} has no such setting"
        for name in _NEEDED.get(one.kind, ()):
            if not getattr(one, name):
                yield where, f"{name} is missing for a guardrail of kind {one.kind}"
        yield from _details(one, where, providers)


def _details(one: GuardrailConfig, where: str, providers: Container[str]) -> Iterator[tuple[str, str]]:
    if one.kind == "moderation" and one.action == "mask":
        yield f"{where}.action", "moderation judges a text as a whole: block or log it"
    if one.provider is not None and one.provider not in providers:
        yield f"{where}.provider", f"there is no provider {one.provider!r}"
    for name in ("url", "anonymizer_url"):
        url = getattr(one, name)
        if url is not None and not _is_web_address(url):
            yield f"{where}.{name}", "expected a web address such as https://example.com/check"
    if len(one.patterns) > PATTERNS_MAX:
        yield f"{where}.patterns", f"at most {PATTERNS_MAX} patterns are possible"
    for name, pattern in one.patterns.items():
        if not _NAME.fullmatch(name):
            yield f"{where}.patterns", f"{name[:80]!r} is no name of 1 to 64 letters, digits and ._-"
        elif problem := pattern_problem(pattern):
            yield f"{where}.patterns.{name}", problem


def pattern_problem(pattern: str) -> str | None:
    """Why a regular expression cannot be used, by RE2's rules; None when it can."""
    import re2

    if len(pattern) > PATTERN_CHARS_MAX:
        return f"a pattern has at most {PATTERN_CHARS_MAX} characters"
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        (reason,) = error.args
        return f"not a regular expression of RE2: {reason.decode('utf-8', 'replace') if reason else 'unknown'}"
    except UnicodeEncodeError:
        return "not a text"
    if r"\C" in pattern:
        return r"\C is not possible, as it cuts characters apart"
    return "it matches nothing at all, in any text" if compiled.fullmatch(b"") else None


def _is_web_address(url: str) -> bool:
    """Whether it can be asked as it stands; credentials have no place in it."""
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and bool(parts.hostname)
    except ValueError:
        return False
    return usable and parts.scheme in ("http", "https") and "@" not in parts.netloc and not re.search(r"\s", url)
