"""Logging in at an OpenID provider: the authorisation code flow with PKCE, and what its ID token says.

After OpenID Connect Core 1.0 section 3.1, RFC 7636 (S256 only), RFC 9207 and RP-Initiated Logout 1.0. Nothing is kept
on the server between the two halves of a log-in: a signed cookie holds a secret of which state, nonce and verifier are
derived, so any replica can finish what another has begun, and only in the browser that began it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
import msgspec

from gateway import errors
from gateway.auth import jwt
from gateway.auth.jwks import (
    FETCH_EVERY_S,
    FETCH_TIMEOUT_S,
    FRESH_S,
    HEADERS,
    KEEP_S,
    FetchFailed,
    IssuerKeys,
    leads_astray,
    read_body,
)
from gateway.config_auth import IssuerConfig
from gateway.config_people import LoginConfig
from gateway.state.shared import SharedState

FLOW_S = 600
SECRET_BYTES = 32
CODE_LENGTH_MAX = 2048
SUBJECT_LENGTH_MAX = 255  # Core 1.0 section 2.

log = logging.getLogger(__name__)


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A log-in that has begun. `link` is the user whom the identity is to be added to, who was logged in already."""

    provider: str
    secret: str
    return_to: str
    expires_s: int
    link: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody as the provider knows them. `email` is in lower case, and only there when the provider verified it."""

    issuer: str
    subject: str
    name: str = ""
    email: str | None = None
    groups: frozenset[str] = frozenset()
    organisation: str | None = None


class Metadata(msgspec.Struct, frozen=True):
    """What is needed of OpenID Connect Discovery 1.0 section 3."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class _Tokens(msgspec.Struct):
    """A successful token response (Core 1.0 section 3.1.3.3)."""

    id_token: str
    access_token: str = ""


class _Problem(msgspec.Struct):
    """RFC 6749 section 5.2."""

    error: str


class Flows:
    """Writes and reads the cookie of a log-in that has begun. `now_s` is the wall clock."""

    def __init__(self, pepper: bytes, shared: SharedState, now_s: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(pepper, b"oidc-flow", "sha256")
        self._shared = shared
        self._now_s = now_s

    @property
    def lifetime_s(self) -> int:
        return FLOW_S

    def begin(self, provider: str, return_to: str, link: str = "") -> Flow:
        return Flow(
            provider=provider,
            secret=secrets.token_urlsafe(SECRET_BYTES),
            return_to=return_to,
            expires_s=int(self._now_s()) + FLOW_S,
            link=link,
        )

    def seal(self, flow: Flow) -> str:
        body = urlsafe_b64encode(msgspec.json.encode(flow)).decode()
        return f"{body}.{self._mark('cookie', body)}"

    def open(self, sealed: str, provider: str, state: str) -> Flow:
        """The flow that this state belongs to; raises `invalid_value` for any other, and when it was long ago."""
        body, _, mark = sealed.partition(".")
        if hmac.compare_digest(mark.encode(), self._mark("cookie", body).encode()):
            flow = msgspec.json.decode(urlsafe_b64decode(body), type=Flow)
            known = hmac.compare_digest(self.state(flow).encode(), state.encode(errors="replace"))
            if known and flow.provider == provider and flow.expires_s > self._now_s():
                return flow
        message = "This log-in was not begun in this browser, or too long ago. Begin it again."
        raise errors.error("invalid_value", message, param="state")

    async def spend(self, flow: Flow) -> None:
        """Use a flow up: a second answer to it is refused on every replica, and the provider refuses its code too."""
        if not await self._shared.set(f"oidc-flow:{self.state(flow)}", b"spent", FLOW_S, only_new=True):
            raise _refusal("The log-in was used before. Begin it again.")

    def state(self, flow: Flow) -> str:
        return self._mark("state", flow.secret)

    def nonce(self, flow: Flow) -> str:
        return self._mark("nonce", flow.secret)

    def verifier(self, flow: Flow) -> str:
        return self._mark("verifier", flow.secret)

    def _mark(self, purpose: str, text: str) -> str:
        digest = hmac.digest(self._key, f"{purpose}:{text}".encode(), "sha256")
        return urlsafe_b64encode(digest).rstrip(b"=").decode()


class Provider:
    """One provider. `clock` is monotonic seconds, `now_s` the wall clock; the client belongs to the caller.

    What the provider says of itself is kept while it is away, as its keys are.
    """

    def __init__(
        self,
        config: LoginConfig,
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        issuer = IssuerConfig(
            name=config.name,
            issuer=config.issuer,
            audience=config.client_id,
            algorithms=config.algorithms,
            leeway_s=config.leeway_s,
        )
        self.keys = IssuerKeys(issuer, client, clock)
        self._client = client
        self._clock = clock
        self._now_s = now_s
        self._metadata: Metadata | None = None
        self._at_s = -math.inf
        self._tried_s = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    async def close(self) -> None:
        await self.keys.close()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def authorization_url(self, flow: Flow, flows: Flows, redirect_uri: str) -> str:
        """Where the browser goes to log in; 503 when the provider does not answer."""
        challenge = hashlib.sha256(flows.verifier(flow).encode()).digest()
        parameters = {
            "response_type": "code",
            "client_id": self.config.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.config.scopes),
            "state": flows.state(flow),
            "nonce": flows.nonce(flow),
            "code_challenge": urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        return _with_query((await self._ready()).authorization_endpoint, parameters)

    async def logout_url(self, return_url: str) -> str | None:
        """Where the browser goes to log out at the provider too; None where that cannot be done or known."""
        try:
            endpoint = (await self._ready()).end_session_endpoint
        except errors.GatewayError:
            return None
        if endpoint is None:
            return None
        named = {"client_id": self.config.client_id, "post_logout_redirect_uri": return_url}
        return _with_query(endpoint, named)

    async def redeem(self, query: Mapping[str, str], flow: Flow, flows: Flows, redirect_uri: str) -> Identity:
        """Who has come back from the provider with this query.

        Raises `permission_denied` when the provider or its user refused, `invalid_token` for what proves to be wrong,
        and 502 or 503 when it could not be found out.
        """
        metadata = await self._ready()
        named = query.get("iss")
        if (named is None and metadata.authorization_response_iss_parameter_supported) or (
            named is not None and named != self.config.issuer
        ):
            raise _refusal("The answer is another provider's.")
        if (problem := query.get("error")) is not None:
            raise self._refused(problem)
        code = query.get("code", "")
        if not code or len(code) > CODE_LENGTH_MAX or not code.isprintable():
            raise errors.error(
                "invalid_value", "Invalid value for 'code': expected what the provider gave.", param="code"
            )
        tokens = await self._exchange(metadata, code, flows.verifier(flow), redirect_uri)
        claims = await self._verified(tokens.id_token, flows.nonce(flow))
        if metadata.userinfo_endpoint is not None and self._lacks(claims):
            claims = await self._user_info(metadata.userinfo_endpoint, tokens.access_token, claims)
        return self._identity(claims)

    def _refused(self, problem: str) -> errors.GatewayError:
        if problem in ("server_error", "temporarily_unavailable"):
            return self._away(f"it answered {problem}")
        log.info("log-in at %s was refused: %.100r", self.config.name, problem)
        return errors.error("permission_denied", "The log-in was refused at the provider.")

    async def _exchange(self, metadata: Metadata, code: str, verifier: str, redirect_uri: str) -> _Tokens:
        config = self.config
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers = dict(HEADERS)
        secret = None if config.client_secret is None else config.client_secret.reveal()
        if secret is not None and "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote_plus(config.client_id)}:{quote_plus(secret)}"  # Encoded first: RFC 6749 section 2.3.1.
            headers["authorization"] = "Basic " + b64encode(pair.encode()).decode()
        else:
            form["client_id"] = config.client_id
            form |= {} if secret is None else {"client_secret": secret}
        status, body = await self._send("POST", metadata.token_endpoint, headers, form)
        try:
            if status == 200:
                return msgspec.json.decode(body, type=_Tokens)
            problem = msgspec.json.decode(body, type=_Problem).error
        except (msgspec.MsgspecError, RecursionError):
            problem = f"status {status} without a known answer"
        if problem == "invalid_grant":
            raise _refusal("The log-in has expired or was used before. Begin it again.")
        log.error("%s does not give tokens to this gateway: %.100r", config.name, problem)
        raise errors.error("upstream_error", "The provider refuses to work with this gateway.")

    async def _verified(self, token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token after Core 1.0 section 3.1.3.7."""
        claims = await jwt.verify(token, self.keys, self._now_s())
        client, audience = self.config.client_id, claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and "azp" not in claims:
            raise _refusal("The token is not meant for this gateway.")
        if claims.get("azp", client) != client:
            raise _refusal("The token is not meant for this gateway.")
        if len(claims["sub"]) > SUBJECT_LENGTH_MAX or not claims["sub"].isprintable():
            raise _refusal("The token is of nobody who can be told apart.")
        given = claims.get("nonce")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(errors="replace"), nonce.encode()):
            raise _refusal("The token belongs to another log-in.")
        return claims

    def _lacks(self, claims: dict[str, Any]) -> bool:
        """Whether something that this provider's users are told apart by is not in the ID token."""
        config = self.config
        wanted = ["email", config.organisation_claim, config.groups_claim if config.groups else None]
        return any(name is not None and jwt.claim(claims, name) is None for name in wanted)

    async def _user_info(self, url: str, access_token: str, claims: dict[str, Any]) -> dict[str, Any]:
        """The claims with those of the UserInfo endpoint, as far as they are not there (Core 1.0 section 5.3)."""
        if not access_token:
            return claims
        status, body = await self._send("GET", url, HEADERS | {"authorization": f"Bearer {access_token}"}, None)
        try:
            more = msgspec.json.decode(body, type=dict[str, Any]) if status == 200 else {}
        except (msgspec.MsgspecError, RecursionError):
            more = {}
        if more.get("sub") != claims["sub"]:
            raise errors.error("upstream_invalid", "The provider's answer about the user cannot be used.")
        return more | claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        config = self.config
        email, verified = claims.get("email"), claims.get("email_verified")
        # Some providers send the truth value as text.
        trusted = verified is True or verified == "true"
        name = claims.get("name") or claims.get("preferred_username")
        organisation = None if config.organisation_claim is None else jwt.claim(claims, config.organisation_claim)
        return Identity(
            issuer=config.issuer,
            subject=claims["sub"],
            name=name if isinstance(name, str) else "",
            email=email.lower() if trusted and isinstance(email, str) else None,
            groups=_groups(jwt.claim(claims, config.groups_claim)),
            organisation=organisation if isinstance(organisation, str) else None,
        )

    async def _ready(self) -> Metadata:
        """What the provider said of itself; 503 when nothing that may be used is there."""
        age_s = self._clock() - self._at_s
        if age_s >= FRESH_S and self._fetching is None and self._clock() - self._tried_s >= FETCH_EVERY_S:
            self._tried_s = self._clock()
            self._fetching = asyncio.create_task(self._discover())
        if age_s >= KEEP_S and self._fetching is not None:
            await asyncio.wait([self._fetching])
        if self._metadata is None or self._clock() - self._at_s >= KEEP_S:
            raise self._away("its configuration cannot be read")
        return self._metadata

    async def _discover(self) -> None:
        issuer = self.config.issuer
        try:
            status, body = await self._send(
                "GET", issuer.rstrip("/") + "/.well-known/openid-configuration", HEADERS, None
            )
            found = msgspec.json.decode(body, type=Metadata)
            urls = (
                found.authorization_endpoint,
                found.token_endpoint,
                found.userinfo_endpoint,
                found.end_session_endpoint,
            )
            if status != 200 or found.issuer != issuer or any(url and leads_astray(url, issuer) for url in urls):
                raise FetchFailed("it is another issuer's, or names addresses that are not safe")
        except (FetchFailed, errors.GatewayError, msgspec.MsgspecError, RecursionError) as error:
            log.warning("the configuration of %s cannot be used: %s", self.config.name, error or repr(error))
        else:
            self._metadata, self._at_s = found, self._clock()
        finally:
            self._fetching = None

    async def _send(
        self, method: str, url: str, headers: dict[str, str], form: dict[str, str] | None
    ) -> tuple[int, bytes]:
        """Status and body. No redirect is followed, and size and time are bounded; 503 for anything that goes wrong."""
        try:
            async with (
                asyncio.timeout(FETCH_TIMEOUT_S),
                self._client.stream(method, url, headers=headers, data=form, follow_redirects=False) as response,
            ):
                body = await read_body(response)
        except (httpx.HTTPError, httpx.InvalidURL, FetchFailed, TimeoutError) as error:
            raise self._away(str(error) or repr(error)) from None
        if response.status_code >= 500 or response.status_code == 429:
            raise self._away(f"it answered with status {response.status_code}")
        return response.status_code, body

    def _away(self, reason: str) -> errors.GatewayError:
        log.warning("the provider %s cannot be used: %s", self.config.name, reason)
        message = "The provider does not answer. Try again shortly."
        wait_s = max(1.0, self._tried_s + FETCH_EVERY_S - self._clock()) if self._metadata is None else 5.0
        return errors.error("overloaded", message, retry_after_s=wait_s)


def client() -> httpx.AsyncClient:
    """What asks providers, all of them."""
    return httpx.AsyncClient(timeout=FETCH_TIMEOUT_S)


def _groups(value: Any) -> frozenset[str]:
    """A list of names, or a single one."""
    named = value if isinstance(value, list) else [value]
    return frozenset(name for name in named if isinstance(name, str))


def _refusal(message: str) -> errors.GatewayError:
    return errors.error("invalid_token", message)


def _with_query(url: str, parameters: dict[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(parameters)}"
