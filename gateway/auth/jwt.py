"""JWT bearer tokens of configured issuers, beside API keys. The rules follow RFC 8725."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
from jwt import PyJWS
from jwt.exceptions import PyJWTError
from jwt.utils import base64url_decode

from gateway import errors
from gateway.auth import Authenticator, Principal
from gateway.auth.jwks import FETCH_TIMEOUT_S, IssuerKeys
from gateway.auth.remembered import Remembered
from gateway.auth.standing import Standing, of_address, token_principal
from gateway.auth.users import check_email
from gateway.config_auth import TENANT, IssuerConfig
from gateway.state.database import Database

TOKEN_BYTES_MAX = 8192
KEY_NAME_LENGTH_MAX = 200
CACHE_MAX = 10_000
SUBJECT_LENGTH_MAX = 63

# Headers that ask for rules of the token's own, or bring the key to check it with.
_REFUSED_HEADERS = frozenset({"crit", "b64", "jku", "jwk", "x5u", "x5c"})
# Other types are signed by the same keys for other purposes.
_TYPES = ("jwt", "at+jwt", "application/at+jwt")

_MALFORMED = "The token is malformed."
_UNVERIFIED = "The token cannot be verified."
_UNTIMELY = "The token has expired, is not valid yet, or is valid for too long."
_MISFIT = "The token is not meant for this gateway."


class _Header(msgspec.Struct):
    alg: str
    kid: str
    typ: str = "JWT"


class _Claims(msgspec.Struct):
    """The registered claims (RFC 7519 section 4.1) that are looked at; times are seconds since 1970."""

    iss: str
    aud: str | list[str]
    sub: str
    exp: float
    nbf: float = 0
    iat: float | None = None


class _Verified(msgspec.Struct, frozen=True):
    """A token whose signature was checked with its issuer's keys of that generation. No principal: it lacks a role."""

    keys: IssuerKeys
    generation: int
    until_s: float
    principal: Principal | None
    email: str = ""


class Issuers:
    """`Authenticator` of tokens; any credential without exactly two dots goes on to `others`.

    A token is checked once and then known by its digest until it expires or its issuer's keys change. `clock` is
    monotonic seconds, `now_s` the wall clock.
    """

    def __init__(
        self,
        issuers: Iterable[IssuerConfig],
        others: Authenticator,
        *,
        database: Database | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._client = httpx.AsyncClient(transport=transport, timeout=FETCH_TIMEOUT_S)
        self._issuers = {config.issuer: IssuerKeys(config, self._client, clock) for config in issuers}
        self._others = others
        self._now_s = now_s
        self._database = database
        self._standings: Remembered[Standing] = Remembered("organisations", clock)
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    @property
    def key_sets(self) -> tuple[IssuerKeys, ...]:
        """What each issuer's tokens are checked with."""
        return tuple(self._issuers.values())

    async def close(self) -> None:
        """End fetches and connections."""
        for keys in self._issuers.values():
            await keys.close()
        await self._client.aclose()

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        """The principal behind `Bearer <token>`; raises GatewayError as `Authenticator` says."""
        scheme, _, token = (authorization or "").strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or token.count(".") != 2:
            return await self._others.authenticate(authorization, address)
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise _refusal(_MALFORMED)
        digest = hashlib.sha256(token.encode()).digest()
        seen = self._verified.get(digest)
        if seen is not None:
            await seen.keys.ready()
        if seen is None or seen.generation != seen.keys.generation:
            self._verified.pop(digest, None)
            seen = await self._verify(token)
            self._verified[digest] = seen
            if len(self._verified) > CACHE_MAX:
                self._verified.popitem(last=False)
        if self._now_s() >= seen.until_s:
            self._verified.pop(digest, None)
            raise _refusal(_UNTIMELY)
        if digest in self._verified:
            self._verified.move_to_end(digest)
        if seen.principal is None:
            raise errors.error(
                "permission_denied",
                "The token lacks a role or scope that is needed here.",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
            )
        org_id = seen.keys.config.org
        return seen.principal if org_id is None else await self._in_org(seen.principal, org_id, seen.email)

    async def _in_org(self, principal: Principal, org_id: str, email: str) -> Principal:
        """The principal with what the organisation and its user of that address have now."""
        assert self._database is not None
        standing = await self._standings.get(f"{org_id} {email}", partial(of_address, self._database, org_id, email))
        if standing is None:
            raise _refusal("The organisation of this issuer is not known here.")
        standing.check()
        return token_principal(principal, standing)

    async def _verify(self, token: str) -> _Verified:
        """The header and the issuer decide which key is right; nothing else is believed before the signature is."""
        head, body, _ = token.split(".")
        header = _header(_mapping(head))
        issuer = _mapping(body).get("iss")
        keys = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise _refusal(_UNVERIFIED)
        generation, known, claims = await _signed(token, header, keys)
        until_s = _check(known, keys.config, self._now_s())
        email = _email(claims, keys.config)
        return _Verified(keys, generation, until_s, _principal(known.sub, claims, keys.config), email)


async def verify(token: str, keys: IssuerKeys, now_s: float) -> dict[str, Any]:
    """The claims of a token that has to be of this issuer and for its audience; raises `invalid_token`, or a 503."""
    if token.count(".") != 2 or not token.isascii():
        raise _refusal(_MALFORMED)
    _, known, claims = await _signed(token, _header(_mapping(token.partition(".")[0])), keys)
    _check(known, keys.config, now_s)
    return claims


async def _signed(token: str, header: _Header, keys: IssuerKeys) -> tuple[int, _Claims, dict[str, Any]]:
    """What a token says whose signature is good, and the generation of the keys that it was checked with."""
    key = await keys.find(header.kid, header.alg) if header.alg in keys.config.algorithms else None
    if key is None:
        raise _refusal(_UNVERIFIED)
    generation = keys.generation
    try:
        payload = PyJWS().decode(token, key, algorithms=[header.alg])
        claims = msgspec.json.decode(payload)
        return generation, msgspec.convert(claims, _Claims), claims
    except PyJWTError:
        raise _refusal(_UNVERIFIED) from None
    except (msgspec.MsgspecError, RecursionError):
        raise _refusal(_MISFIT) from None


def _mapping(part: str) -> dict[str, Any]:
    """A part of a token, which is not verified yet."""
    try:
        return msgspec.json.decode(base64url_decode(part), type=dict[str, Any])
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise _refusal(_MALFORMED) from None


def _header(fields: dict[str, Any]) -> _Header:
    try:
        header = msgspec.convert(fields, _Header)
    except msgspec.ValidationError:
        raise _refusal(_MALFORMED) from None
    if _REFUSED_HEADERS & fields.keys() or header.typ.lower() not in _TYPES or len(header.kid) > KEY_NAME_LENGTH_MAX:
        raise _refusal(_UNVERIFIED)
    return header


def _check(claims: _Claims, config: IssuerConfig, now_s: float) -> float:
    """Refuse a token that is for others or for another time; the moment from which it is no longer good."""
    audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if claims.iss != config.issuer or config.audience not in audiences or not claims.sub:
        raise _refusal(_MISFIT)
    begin_s = max(claims.nbf, now_s if claims.iat is None else claims.iat)
    until_s = claims.exp + config.leeway_s
    lifetime_s = claims.exp - (now_s if claims.iat is None else min(claims.iat, now_s))
    if begin_s > now_s + config.leeway_s or until_s <= now_s or lifetime_s > config.max_lifetime_s:
        raise _refusal(_UNTIMELY)
    return until_s


def _principal(subject: str, claims: dict[str, Any], config: IssuerConfig) -> Principal | None:
    """Who the token is for; None without the roles that are required.

    A subject is unique only at its issuer, so the issuer's name is part of the user and of everything made of it.
    """
    roles = _roles(claim(claims, config.roles_claim))
    if not roles.issuperset(config.required_roles):
        return None
    user = f"{config.name}:{escape(subject)}"
    tenant = config.tenant or f"jwt:{user}"
    if config.tenant_claim is not None:
        prefix = f"{config.name}:" if config.tenant_prefix is None else config.tenant_prefix
        tenant = prefix + escape(_identity(claim(claims, config.tenant_claim)))
        if not TENANT.fullmatch(tenant):
            raise _refusal(_MISFIT)
    return Principal(
        tenant=tenant,
        key_id=f"jwt:{user}",
        name=user,
        admin=not roles.isdisjoint(config.admin_roles),
        kind="user",
        user_id=user,
        team_id=_scope(claims, config.team_claim, config.name),
        org_id=_scope(claims, config.org_claim, config.name),
    )


def _scope(claims: dict[str, Any], name: str | None, issuer: str) -> str | None:
    """The team or organisation that a claim names, if it is there."""
    value = None if name is None else claim(claims, name)
    return None if value is None else f"{issuer}:{escape(_identity(value))}"


def _email(claims: dict[str, Any], config: IssuerConfig) -> str:
    """The address that the issuer vouches for; empty where there is none."""
    found = claim(claims, config.email_claim)
    if not isinstance(found, str) or claims.get("email_verified", True) is not True:
        return ""
    try:
        return check_email(found)
    except errors.GatewayError:
        return ""


def _identity(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _refusal(_MISFIT)
    return value


def escape(text: str) -> str:
    """`text` as at most SUBJECT_LENGTH_MAX letters, digits and `._@-`, other bytes as `:` and two hex digits.

    Two texts never become the same: a longer one is cut and ends with `::` and 128 bits of its SHA-256.
    """
    escaped = quote(text, safe="@", errors="surrogatepass").replace("~", "%7E").replace("%", ":")
    if len(escaped) <= SUBJECT_LENGTH_MAX:
        return escaped
    mark = "::" + hashlib.sha256(escaped.encode()).hexdigest()[:32]
    return escaped[: SUBJECT_LENGTH_MAX - len(mark)] + mark


def claim(claims: dict[str, Any], name: str) -> Any:
    """The claim of that name, which may hold dots itself, or else the one at the end of that path."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _roles(value: Any) -> set[str]:
    """A list of names, or names between spaces as in `scope` (RFC 8693 section 4.2)."""
    if isinstance(value, str):
        return set(value.split(" ")) - {""}
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()


def _refusal(message: str) -> errors.GatewayError:
    return errors.error("invalid_token", message, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
