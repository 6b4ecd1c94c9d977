"""How requests to a provider are authorised. What is secret here leaves in the headers of these requests only."""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

import msgspec

from adapters.answers import fetch
from adapters.aws import signature_headers
from adapters.errors import ModelUnavailable
from adapters.http1 import Client, parse_url, render_head

log = logging.getLogger(__name__)

Headers = list[tuple[str, str]]
KEY_BYTES_MAX = 16 * 1024
TOKEN_BYTES_MAX = 64 * 1024
TOKEN_LIFETIME_S = 3600
TOKEN_MARGIN_S = 300
GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class Credentials(Protocol):
    """Authorises requests."""

    async def headers(self, method: str, target: str, host: str, body: bytes) -> Headers:
        """The headers that authorise a request to `host`. Raises ModelUnavailable when there are none now."""
        ...

    def secrets(self) -> tuple[str, ...]:
        """Texts that nobody may be told, should a provider repeat them."""
        ...


def key_in_file(path: Path) -> Callable[[], str]:
    """A key that is read anew whenever its file changes."""
    known: list[tuple[int, str]] = []

    def read() -> str:
        try:
            changed_ns = path.stat().st_mtime_ns
            if not known or known[0][0] != changed_ns:
                text = path.read_bytes()[:KEY_BYTES_MAX].decode("ascii").strip()
                if not text or not text.isprintable() or " " in text:
                    raise ValueError("it holds no key")
                known[:] = [(changed_ns, text)]
        except (OSError, ValueError) as exc:
            if not known:
                log.warning("the provider's key cannot be read from %s: %s", path, exc)
                raise ModelUnavailable("The gateway has no key for the provider of this model.") from None
        return known[0][1]

    return read


class Keyed:
    """A key in a header, behind a word such as `Bearer`; `also` goes with it."""

    def __init__(self, header: str, prefix: str, key: Callable[[], str], also: Headers | None = None) -> None:
        self._header = header
        self._prefix = prefix
        self._key = key
        self._also = also or []

    async def headers(self, method: str, target: str, host: str, body: bytes) -> Headers:
        return [(self._header, self._prefix + self._key()), *self._also]

    def secrets(self) -> tuple[str, ...]:
        return (self._key(),)


class Nobody:
    """No authorisation, for engines that ask for none."""

    async def headers(self, method: str, target: str, host: str, body: bytes) -> Headers:
        return []

    def secrets(self) -> tuple[str, ...]:
        return ()


class Signed:
    """Signature Version 4 of Amazon. `now_s` is the Unix time."""

    def __init__(
        self,
        access_key_id: str,
        secret: Callable[[], str],
        session_token: str | None,
        region: str,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._access_key_id = access_key_id
        self._secret = secret
        self._session_token = session_token
        self._region = region
        self._now_s = now_s

    async def headers(self, method: str, target: str, host: str, body: bytes) -> Headers:
        return signature_headers(
            self._access_key_id,
            self._secret(),
            self._session_token,
            region=self._region,
            service="bedrock",
            moment=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now_s())),
            method=method,
            target=target,
            host=host,
            body=body,
        )

    def secrets(self) -> tuple[str, ...]:
        return (self._secret(), self._access_key_id, self._session_token or "")


class _Account(msgspec.Struct):
    client_email: str
    private_key: str
    private_key_id: str = ""
    token_uri: str = "https://oauth2.googleapis.com/token"


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float = TOKEN_LIFETIME_S


class Google:
    """Tokens for a service account, each used until shortly before it expires (RFC 7523). `read` gives its JSON."""

    def __init__(self, read: Callable[[], bytes], client: Client, now_s: Callable[[], float] = time.time) -> None:
        self._read = read
        self._client = client
        self._now_s = now_s
        self._token = ""
        self._until_s = 0.0
        self._fetching = asyncio.Lock()

    async def headers(self, method: str, target: str, host: str, body: bytes) -> Headers:
        if self._now_s() > self._until_s - TOKEN_MARGIN_S:
            async with self._fetching:
                if self._now_s() > self._until_s - TOKEN_MARGIN_S:
                    await self._fetch()
        return [("authorization", f"Bearer {self._token}")]

    def secrets(self) -> tuple[str, ...]:
        return (self._token,)

    async def _fetch(self) -> None:
        try:
            account = msgspec.json.decode(self._read(), type=_Account)
            origin, path = parse_url(account.token_uri)
            if origin.scheme != "https" and origin.host != "127.0.0.1":
                raise ValueError("the token's address is not https")
            form = {
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                "assertion": _assertion(account, int(self._now_s())),
            }
            head = render_head("POST", path or "/", origin, [("content-type", "application/x-www-form-urlencoded")])
            body = urlencode(form).encode()
            answer = await fetch(self._client.wire(origin), head, body, bytes_max=TOKEN_BYTES_MAX)
            if answer.status != 200:
                raise ValueError(f"the token was refused with {answer.status}")
            token = msgspec.json.decode(answer.body, type=_Token)
        except (OSError, ValueError) as exc:
            log.warning("no token for a service account: %s", exc)
            raise ModelUnavailable("The gateway has no token for the provider of this model.") from None
        self._token, self._until_s = token.access_token, self._now_s() + token.expires_in


def _assertion(account: _Account, now_s: int) -> str:
    """A signed JWT that asks for a token."""
    # Imported by those who use it, because it takes long to load.
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    claims = {
        "iss": account.client_email,
        "scope": GOOGLE_SCOPE,
        "aud": account.token_uri,
        "iat": now_s,
        "exp": now_s + TOKEN_LIFETIME_S,
    }
    header = {"alg": "RS256", "typ": "JWT", "kid": account.private_key_id}
    unsigned = b".".join(urlsafe_b64encode(msgspec.json.encode(part)).rstrip(b"=") for part in (header, claims))
    key = load_pem_private_key(account.private_key.encode(), None)
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("the service account's key is not an RSA key")
    return (unsigned + b"." + urlsafe_b64encode(key.sign(unsigned, PKCS1v15(), SHA256())).rstrip(b"=")).decode()
