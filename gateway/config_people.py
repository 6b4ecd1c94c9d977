"""The settings of people: who may sign up, how long a browser stays logged in, and the providers that log people in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from gateway.config_auth import Algorithm, Text, url_problem
from gateway.config_limits import Section, Usd
from gateway.secret import Secret

OrgRole = Literal["viewer", "member", "admin", "owner"]
Title = Annotated[str, Meta(min_length=1, max_length=100)]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_DOMAIN = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")


class GroupConfig(Section, frozen=True, kw_only=True):
    """What a group at the provider means here: a role in the organisation, or one in a team (made when missing)."""

    group: Text
    role: OrgRole | None = None
    team: Title | None = None
    team_role: OrgRole = "member"


class LoginConfig(Section, frozen=True, kw_only=True):
    """An OpenID provider that logs people in.

    Who is new becomes a user of `organisation`, else of the one that `organisation_claim` names, else of one as
    sign-up gives it. Groups are applied anew at every log-in: whoever leaves a group at the provider loses what it
    meant here. `link_verified_email` lets the provider log in users by an address that it has verified.
    """

    name: str
    title: Title | None = None
    issuer: Text
    client_id: Text
    client_secret: Secret | None = None
    scopes: Annotated[tuple[Text, ...], Meta(max_length=32)] = ("openid", "email", "profile")
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256")
    provision: bool = True
    organisation: Title | None = None
    organisation_claim: Text | None = None
    role: OrgRole = "member"
    email_domains: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()
    link_verified_email: bool = False
    groups_claim: Text = "groups"
    groups: Annotated[tuple[GroupConfig, ...], Meta(max_length=1000)] = ()
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 30


class PeopleConfig(Section, frozen=True, kw_only=True):
    """People beside keys. `public_url` is where browsers reach the gateway (None: only on this machine).

    Who signs up becomes `role` in `organisation`, or owner of an organisation of their own where that is null, and gets
    a wallet with `bonus_usd` that pays for everything they do (None: no wallet).
    """

    signup: Literal["off", "invited", "open"] = "off"
    public_url: Text | None = None
    organisation: Title | None = None
    role: OrgRole = "member"
    bonus_usd: Usd | None = None
    password_length_min: Annotated[int, Meta(ge=8, le=128)] = 12
    idle_timeout_s: Annotated[int, Meta(ge=300, le=90 * 86_400)] = 7 * 86_400
    lifetime_s: Annotated[int, Meta(ge=300, le=366 * 86_400)] = 30 * 86_400
    logins: Annotated[tuple[LoginConfig, ...], Meta(max_length=64)] = ()


def people_conflicts(people: PeopleConfig) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    if people.public_url is not None and (problem := _public_url_problem(people.public_url)) is not None:
        yield "auth.people.public_url", problem
    if people.organisation is not None and people.role in ("owner", "admin") and people.signup == "open":
        yield "auth.people.role", "whoever comes along must not administrate the organisation: use member or viewer"
    if people.lifetime_s < people.idle_timeout_s:
        yield "auth.people.lifetime_s", "it is shorter than idle_timeout_s"
    for i, one in enumerate(people.logins):
        where, earlier = f"auth.people.logins[{i}]", people.logins[:i]
        if not _NAME.fullmatch(one.name):
            yield f"{where}.name", "a name has 1 to 32 small letters, digits and -, and is part of a path"
        if one.name in [other.name for other in earlier]:
            yield f"{where}.name", f'"{one.name}" is already taken'
        if one.issuer in [other.issuer for other in earlier]:
            yield f"{where}.issuer", "this issuer is there already"
        if (problem := url_problem(one.issuer)) is not None:
            yield f"{where}.issuer", problem
        if not one.algorithms:
            yield f"{where}.algorithms", "at least one algorithm is needed"
        if "openid" not in one.scopes:
            yield f"{where}.scopes", "without openid the provider does not say who somebody is"
        if one.organisation is not None and one.organisation_claim is not None:
            yield f"{where}.organisation_claim", "organisation is set already"
        for j, domain in enumerate(one.email_domains):
            if not _DOMAIN.fullmatch(domain):
                yield f"{where}.email_domains[{j}]", "expected a domain in small letters, such as example.com"
        if one.groups and one.organisation is None and one.organisation_claim is None:
            yield f"{where}.groups", "they need organisation or organisation_claim: in whose own one they mean nothing"
        for j, group in enumerate(one.groups):
            if group.role is None and group.team is None:
                yield f"{where}.groups[{j}]", "say what the group means: role, or team"


def _public_url_problem(url: str) -> str | None:
    if (problem := url_problem(url)) is not None:
        return problem
    parts = urlsplit(url)
    plain = parts.path in ("", "/") and not parts.query and parts.netloc == parts.netloc.lower()
    return None if plain else "expected no more than https://, a host in small letters and a port"
