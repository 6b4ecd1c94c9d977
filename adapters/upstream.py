"""A configured provider: where it is, the way there, and requests to it that are authorised.

Its key goes to its own host only: no redirect is followed, and nothing a client sends changes host or headers.
"""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from adapters.connection import Timeouts
from adapters.credentials import Credentials, Google, Headers, Keyed, Nobody, Signed, key_in_file
from adapters.dialects.failures import scrubbed
from adapters.errors import AdapterError, InvalidRequest
from adapters.http1 import Client, Keeping, Origin, Wire, parse_url, render_head
from adapters.providers import PROVIDERS, Provider, ProviderKind
from adapters.types import DialectName

# Heads of requests that are kept as they were rendered, which takes as long as everything else about a request.
RENDERED_MAX = 256
# Where an answer that is no stream is asked for elsewhere.
_WHOLE = (
    ("/converse-stream", "/converse"),
    (":streamGenerateContent?alt=sse", ":generateContent"),
    (":streamRawPredict", ":rawPredict"),
)
USER_AGENT = "inference-gateway"


class SecretText(Protocol):
    """Text that shows nowhere by itself."""

    def reveal(self) -> str: ...


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A provider as an operator describes it; `None` is what its row says, or nothing."""

    name: str
    kind: ProviderKind
    base_url: str | None = None
    api_key: SecretText | None = None
    api_key_file: str | None = None
    oauth: bool = False
    aws_access_key_id: str | None = None
    aws_secret_access_key: SecretText | None = None
    aws_session_token: SecretText | None = None
    google_file: str | None = None
    google_account: SecretText | None = None
    organization: str | None = None
    project: str | None = None
    region: str | None = None
    api_version: str | None = None
    headers: dict[str, str] = {}
    timeouts: Timeouts = Timeouts()
    connections_max: int = 256
    proxy: SecretText | None = None
    ca_file: str | None = None
    verify: bool = True


def location(settings: UpstreamSettings) -> tuple[Origin, str]:
    """Where a provider is: its origin, and the path before all others. ValueError when that is no URL."""
    base_url = settings.base_url or PROVIDERS[settings.kind].base_url or ""
    if settings.region == "global":
        base_url = base_url.replace("{region}-", "")
    elif settings.region in ("us", "eu"):
        base_url = base_url.replace("{region}-aiplatform", "aiplatform.{region}.rep")
    return parse_url(base_url.format(region=settings.region, project=settings.project))


class Upstream:
    """One provider of a gateway, whose connections all of its models share.

    With an `address` they lead to that one of its host's; names, keys and certificates stay the host's.
    """

    def __init__(self, settings: UpstreamSettings, *, client: Client | None = None, address: str | None = None) -> None:
        self.name = settings.name
        self.row: Provider = PROVIDERS[settings.kind]
        self._settings = settings
        self._client = client or _client(settings)
        self._credentials = _credentials(settings, self.row, self._client)
        origin, self._base_path = location(settings)
        self.origin = msgspec.structs.replace(origin, address=address)
        self._authority = self.origin.authority
        self._headers: Headers = [*self.row.headers, *_own_headers(settings)]
        self._rendered: dict[tuple[str, str], tuple[Headers, bytes]] = {}

    @property
    def dialects(self) -> frozenset[DialectName]:
        """What it speaks."""
        return frozenset(self.row.paths)

    @functools.cached_property
    def wire(self) -> Wire:
        """The way there."""
        return self._client.wire(self.origin)

    def target(self, dialect: DialectName, model: str, *, stream: bool = True) -> str:
        """The path and query at which a model is asked in a dialect."""
        settings, path = self._settings, self.row.paths[dialect]
        if not stream:
            for streamed, whole in _WHOLE:
                path = path.replace(streamed, whole)
        if settings.api_version is not None and settings.kind == "azure":
            before = (
                "/openai/" if dialect in ("openai_responses", "openai_compaction") else "/openai/deployments/{model}/"
            )
            path = path.replace("/openai/v1/", before) + f"?api-version={settings.api_version}"
        return self.address(path, model)

    def address(self, path: str, model: str) -> str:
        """One of the row's paths with what stands in braces in it."""
        settings = self._settings
        values = {"model": model, "region": settings.region or "", "project": settings.project or ""}
        for name, value in values.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        return self._base_path + path

    def path(self, path: str) -> str:
        """A path below the base URL, percent-encoded already."""
        return f"{self._base_path}/{path}"

    async def head(self, method: str, target: str, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """The head of a request, authorised; `headers` are further ones, which win over the provider's usual ones."""
        more = [*await self._credentials.headers(method, target, self._authority, body), *headers]
        known = self._rendered.get((method, target))
        if known is None or known[0] != more:
            if len(self._rendered) >= RENDERED_MAX:
                self._rendered.clear()
            named = {name for name, _ in more}
            usual = [one for one in self._headers if one[0] not in named]
            known = more, render_head(method, target, self.origin, [*usual, *more])
            self._rendered[method, target] = known
        return known[1]

    def scrubbed(self, text: str) -> str:
        """What this provider said, as a client may read it."""
        return scrubbed(text, (*self._credentials.secrets(), self.origin.host, *filter(None, self._own_names())))

    def own(self, error: AdapterError) -> AdapterError:
        """The error with nothing in it that tells about the account or the network."""
        if isinstance(error, InvalidRequest):
            return InvalidRequest(self.scrubbed(error.message), code=error.code, param=error.param)
        error.words = error.words and self.scrubbed(error.words)
        return error

    def redacted(self, body: bytes) -> bytes:
        """What this provider sent, without the gateway's key and the provider's host."""
        for text in (*self._credentials.secrets(), self.origin.host):
            if text:
                body = body.replace(text.encode(), b"[removed]")
        return body

    def _own_names(self) -> tuple[str | None, ...]:
        return (self._settings.organization, self._settings.project)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return self._client.connections

    def retire(self) -> None:
        """It serves nothing new: each connection is closed when its last request is over."""
        self._client.retire()

    async def close(self) -> None:
        await self._client.close()


def _client(settings: UpstreamSettings) -> Client:
    proxies = None if settings.proxy is None else {"all": settings.proxy.reveal()}
    return Client(
        keeping=Keeping(connections_max=settings.connections_max),
        timeouts=settings.timeouts,
        context=lambda: tls(settings),
        proxies=proxies,
    )


def tls(settings: UpstreamSettings) -> ssl.SSLContext:
    """Whose certificates are trusted."""
    context = ssl.create_default_context(cafile=settings.ca_file)
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _own_headers(settings: UpstreamSettings) -> Headers:
    headers = {"user-agent": USER_AGENT} | {name.lower(): value for name, value in settings.headers.items()}
    if settings.kind == "openai":
        if settings.organization is not None:
            headers["openai-organization"] = settings.organization
        if settings.project is not None:
            headers["openai-project"] = settings.project
    if settings.oauth:
        # What else the operator switches on comes behind it.
        headers["anthropic-beta"] = ",".join(filter(None, ("oauth-2025-04-20", headers.get("anthropic-beta"))))
    return list(headers.items())


def _key(settings: UpstreamSettings) -> Callable[[], str] | None:
    if settings.api_key is not None:
        return settings.api_key.reveal
    return None if settings.api_key_file is None else key_in_file(Path(settings.api_key_file))


def _credentials(settings: UpstreamSettings, row: Provider, client: Client) -> Credentials:
    key = _key(settings)
    if key is None:
        if settings.google_file is not None:
            return Google(Path(settings.google_file).read_bytes, client, time.time)
        if (account := settings.google_account) is not None:
            return Google(lambda: account.reveal().encode(), client, time.time)
        if settings.aws_access_key_id is not None and settings.aws_secret_access_key is not None:
            token = settings.aws_session_token
            return Signed(
                settings.aws_access_key_id,
                settings.aws_secret_access_key.reveal,
                None if token is None else token.reveal(),
                settings.region or "",
            )
        return Nobody()
    match row.auth:
        case "api_key":
            return Keyed("api-key", "", key)
        case "x_api_key" if not settings.oauth:
            return Keyed("x-api-key", "", key)
        case "x_goog_api_key":
            return Keyed("x-goog-api-key", "", key)
        case _:
            return Keyed("authorization", "Bearer ", key)
