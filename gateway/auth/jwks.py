"""The signing keys of one issuer: fetched rarely, once for all who wait, and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from gateway import errors
from gateway.config_auth import IssuerConfig, url_problem

# However many tokens name keys that are not known, the issuer is asked this seldom.
FETCH_EVERY_S = 30.0
FRESH_S = 600.0
KEEP_S = 6 * 3600.0
FETCH_TIMEOUT_S = 5.0
BODY_BYTES_MAX = 256 << 10
HEADERS = {"accept": "application/json", "accept-encoding": "identity"}
KEYS_MAX = 100

# The type and curve of key that goes with an algorithm: RFC 7518 sections 3.1 and 6.2, RFC 8037 section 3.1.
_KINDS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}

log = logging.getLogger(__name__)


class FetchFailed(Exception):
    """The issuer gave no keys that can be used."""


class _Document(msgspec.Struct):
    """A JWK set (RFC 7517 section 5)."""

    keys: list[Any]


class _Discovery(msgspec.Struct):
    """What is needed of OpenID Connect Discovery 1.0 section 3."""

    issuer: str
    jwks_uri: str


SigningKeys = dict[tuple[str, str], PyJWK]


def usable(document: bytes, algorithms: tuple[str, ...]) -> SigningKeys:
    """The keys of a set by id and algorithm, each under the algorithms of `algorithms` that its type and curve allow.

    Left out are symmetric and private keys, keys without an id or meant for something else, and RSA keys too short to
    be safe. Raises FetchFailed when it is not a set.
    """
    try:
        found = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.MsgspecError, RecursionError):
        raise FetchFailed("the answer is not a JWK set") from None
    keys: SigningKeys = {}
    for data in found[:KEYS_MAX]:
        if not isinstance(data, dict) or not _may_verify(data):
            continue
        for algorithm in algorithms:
            kind, curve = _KINDS[algorithm]
            fits = data.get("kty") == kind and (curve is None or data.get("crv") == curve)
            if fits and data.get("alg", algorithm) == algorithm and (key := _key(data, algorithm)) is not None:
                keys.setdefault((data["kid"], algorithm), key)
    return keys


def _may_verify(data: dict[str, Any]) -> bool:
    """Whether a key is named, public and meant for signatures."""
    identity, operations = data.get("kid"), data.get("key_ops", ["verify"])
    return (
        isinstance(identity, str)
        and "d" not in data
        and data.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _key(data: dict[str, Any], algorithm: str) -> PyJWK | None:
    try:
        key = PyJWK(data, algorithm)
        problem = key.Algorithm.check_key_length(key.key)
    except (PyJWTError, ValueError, TypeError, KeyError) as error:
        problem = str(error)
    if problem:
        log.warning("the key %.100r of an issuer cannot be used: %.200s", data["kid"], problem)
        return None
    return key


class IssuerKeys:
    """What an issuer's tokens are checked with. `generation` changes with the keys. `clock` is monotonic seconds.

    Keys older than FRESH_S are fetched again behind the requests' backs; those older than KEEP_S are not used any more.
    """

    def __init__(self, config: IssuerConfig, client: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self.config = config
        self.generation = 0
        self.fetched = 0
        self.failed = 0
        self._client = client
        self._clock = clock
        self._document = b""
        self._keys: SigningKeys = {}
        self._names: frozenset[str] = frozenset()
        self._at_s = -math.inf
        self._tried_s = -math.inf
        self._away = False
        self._fetching: asyncio.Task[None] | None = None

    @property
    def age_s(self) -> float:
        """How old the keys are; infinite while there are none."""
        return self._clock() - self._at_s

    async def ready(self) -> None:
        """Returns once there are keys that may be used; raises a 503 when they cannot be had."""
        if self.age_s < FRESH_S:
            return
        fetching = self._fetch()
        if self.age_s < KEEP_S:
            return
        if fetching is not None:
            await asyncio.wait([fetching])
        if self.age_s >= KEEP_S:
            raise self._unavailable()

    async def find(self, identity: str, algorithm: str) -> PyJWK | None:
        """The key of that id for that algorithm; None when the issuer has none, 503 when that cannot be known."""
        await self.ready()
        if identity not in self._names:
            fetching = self._fetch()
            if fetching is not None:
                await asyncio.wait([fetching])
            if identity not in self._names and self._away:
                raise self._unavailable()
        return self._keys.get((identity, algorithm))

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._fetching

    def _unavailable(self) -> errors.GatewayError:
        wait_s = max(1.0, self._tried_s + FETCH_EVERY_S - self._clock())
        message = "Tokens cannot be checked right now: their issuer does not answer. Try again shortly."
        return errors.error("overloaded", message, retry_after_s=wait_s)

    def _fetch(self) -> asyncio.Task[None] | None:
        """The fetch under way, or a new one if it is time for one."""
        if self._fetching is None and self._clock() - self._tried_s >= FETCH_EVERY_S:
            self._tried_s = self._clock()
            self._fetching = asyncio.create_task(self._load())
        return self._fetching

    async def _load(self) -> None:
        try:
            document = await self._download()
            keys = usable(document, self.config.algorithms)
            if not keys:
                raise FetchFailed("none of the issuer's keys can be used")
        except Exception as error:
            # Whatever a foreign server can make go wrong, the keys that are there stay, and the next fetch comes later.
            self.failed += 1
            if not self._away:
                log.warning("the keys of issuer %s cannot be fetched: %s", self.config.name, error or repr(error))
            self._away = True
        else:
            self.fetched += 1
            self._away = False
            self._at_s = self._clock()
            if document != self._document:
                self._document, self._keys, self.generation = document, keys, self.generation + 1
                self._names = frozenset(identity for identity, _ in keys)
        finally:
            self._fetching = None

    async def _download(self) -> bytes:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            return await self._get(self.config.jwks_url or await self._discover())

    async def _discover(self) -> str:
        issuer = self.config.issuer
        try:
            answer = await self._get(issuer.rstrip("/") + "/.well-known/openid-configuration")
            found = msgspec.json.decode(answer, type=_Discovery)
        except (msgspec.MsgspecError, RecursionError):
            raise FetchFailed("the answer is not an OpenID configuration") from None
        if found.issuer != issuer:
            raise FetchFailed("the OpenID configuration is that of another issuer")
        if leads_astray(found.jwks_uri, issuer):
            raise FetchFailed("the jwks_uri of the OpenID configuration is not safe")
        return found.jwks_uri

    async def _get(self, url: str) -> bytes:
        async with self._client.stream("GET", url, headers=HEADERS, follow_redirects=False) as response:
            if response.status_code != 200:
                raise FetchFailed(f"the issuer answered with status {response.status_code}")
            return await read_body(response)


async def read_body(response: httpx.Response) -> bytes:
    """The body of an issuer's answer, asked for with HEADERS; neither compression nor more than BODY_BYTES_MAX are
    accepted. Raises FetchFailed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed("the answer is compressed")
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise FetchFailed(f"the answer has more than {BODY_BYTES_MAX} bytes")
    return bytes(body)


def leads_astray(url: str, issuer: str) -> bool:
    """Whether an address that an issuer named must not be used: one elsewhere must not send the gateway to this
    machine."""
    return url_problem(url) is not None or (issuer.startswith("https:") and not url.startswith("https:"))
