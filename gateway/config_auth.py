"""The settings of issuers, whose tokens are accepted beside API keys."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from gateway.config_limits import Section, words

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
Text = Annotated[str, Meta(min_length=1, max_length=2000)]
Role = Annotated[str, Meta(min_length=1, max_length=200)]

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,99}")
# Not "jwt", which begins the tenants of subjects that are tenants of their own.
_NAME = re.compile(r"(?!jwt\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_PREFIX = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:@-]{0,35})?")


class IssuerConfig(Section, frozen=True, kw_only=True):
    """An issuer of tokens, and what its tokens say.

    Its keys are at `jwks_url`, else where `<issuer>/.well-known/openid-configuration` says. The tenant is `tenant`, or
    `tenant_prefix` (None: the name and a colon) and the claim `tenant_claim`, or each subject is one of its own. A
    claim is named as it stands in the token, or by a path with dots. Nobody is an administrator without `admin_roles`.

    With `org`, an organisation of this gateway, its subjects belong to that: they share its models and limits, and one
    whose verified `email_claim` is a user's has that user's roles, teams and limits.
    """

    name: str
    issuer: Text
    audience: Text
    jwks_url: Text | None = None
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256")
    tenant: str | None = None
    tenant_claim: Text | None = None
    tenant_prefix: str | None = None
    team_claim: Text | None = None
    org_claim: Text | None = None
    org: Annotated[str, Meta(pattern=r"^org_[a-z0-9]{1,40}\Z", extra=words("the id of an organisation"))] | None = None
    email_claim: Text = "email"
    roles_claim: Text = "scope"
    required_roles: tuple[Role, ...] = ()
    admin_roles: tuple[Role, ...] = ()
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 30
    max_lifetime_s: Annotated[float, Meta(gt=0, le=31 * 86_400)] = 86_400


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host in ("localhost", "127.0.0.1", "::1"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_problem(url: str) -> str | None:
    """Why keys cannot be trusted that come from `url`; None when they can."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "not a URL"
    if not host or parts.username is not None or parts.fragment:
        return "expected a URL with a host, and neither a user nor a fragment"
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        return "expected https://; http:// is for a loopback address only"
    return None


def issuer_conflicts(issuers: tuple[IssuerConfig, ...]) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    for i, one in enumerate(issuers):
        where, earlier = f"auth.issuers[{i}]", issuers[:i]
        if not _NAME.fullmatch(one.name):
            yield (
                f"{where}.name",
                "a name has 1 to 32 letters, digits and ._-, starts with a letter or digit, and is not jwt",
            )
        if one.name in [other.name for other in earlier]:
            yield f"{where}.name", f'"{one.name}" is already taken'
        if one.issuer in [other.issuer for other in earlier]:
            yield f"{where}.issuer", "this issuer is there already"
        if not one.algorithms:
            yield f"{where}.algorithms", "at least one algorithm is needed"
        at = "issuer" if one.jwks_url is None else "jwks_url"
        if (problem := url_problem(one.jwks_url or one.issuer)) is not None:
            yield f"{where}.{at}", problem
        if one.org is not None and (one.tenant or one.tenant_claim or one.org_claim or one.team_claim):
            yield f"{where}.org", "the organisation is the tenant and has the teams: leave out the other settings"
        if one.tenant is not None and one.tenant_claim is not None:
            yield f"{where}.tenant_claim", "tenant is set already"
        if one.tenant is not None and not TENANT.fullmatch(one.tenant):
            yield f"{where}.tenant", "a tenant has 1 to 100 letters, digits and ._:@- and starts with a letter or digit"
        if one.tenant_prefix is not None and (one.tenant_claim is None or not _PREFIX.fullmatch(one.tenant_prefix)):
            yield (
                f"{where}.tenant_prefix",
                "it goes before a tenant_claim, and has at most 36 letters, digits and ._:@-",
            )
