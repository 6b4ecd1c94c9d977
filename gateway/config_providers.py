"""The settings of remote providers, and of the routes that lead to their models."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from msgspec import Meta

from adapters.providers import DIALECTS_OF, PROVIDERS, Capability, ProviderKind
from adapters.types import DialectName, Kind
from gateway.config_cache import CacheTtl
from gateway.config_limits import PriceConfig, Section, words
from gateway.config_models import LocalPath, ModelName
from gateway.config_routing import HealthConfig, HedgeConfig
from gateway.secret import ProviderKey, SecretUrl, ServiceAccount

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Text = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[!-~]+\Z")]
Words = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"^[ -~]+\Z")]

Policy = Literal["weighted", "random", "priority", "least_busy", "fastest", "cheapest", "sticky", "overflow"]
FallsThrough = Literal["context_length_exceeded", "content_filter"]
LOCAL = "local"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"([A-Za-z0-9._:%-]|\{region\}|\{project\})+")
# Headers that only say who asks or switch a feature on. Whatever authorises or frames a request is set by us.
_HEADER = re.compile(r"http-referer|user-agent|(anthropic|openai)-beta|openai-(organization|project)|x-[a-z0-9-]{1,60}")
_OWN_HEADER = re.compile(r"x-(api-key|goog-.*|amz-.*|forwarded-.*|request-id)")


class ProviderSettings(Section, frozen=True, kw_only=True):
    """A provider and how it is reached, without what is secret and what lies on this machine.

    `oauth`: Anthropic's key is an OAuth token. `aws_access_key_id` is for Bedrock without a key. `organization` and
    `project` are OpenAI's, `project` Vertex's as well, `api_version` is Azure's. `passthrough` opens
    `/v1/providers/{name}/...`. With `health` it is asked whether it is well, and left alone while it is not.
    `addresses` each: its name stands for several replicas, each of which becomes a target; it is resolved every
    `resolve_every_s`.
    """

    name: str
    kind: ProviderKind
    base_url: Text | None = None
    oauth: bool = False
    aws_access_key_id: Text | None = None
    organization: Text | None = None
    project: Text | None = None
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,40}\Z", extra=words("a region such as eu-west-1"))] | None = None
    api_version: (
        Annotated[str, Meta(pattern=r"^[a-z0-9.-]{1,40}\Z", extra=words("a version such as 2024-10-21"))] | None
    ) = None
    headers: dict[str, Words] = {}
    connect_timeout_s: Seconds = 10
    first_byte_timeout_s: Seconds = 600
    idle_timeout_s: Seconds = 300
    total_timeout_s: Seconds = 3600
    connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    verify: bool = True
    passthrough: bool = False
    health: HealthConfig | None = None
    addresses: Literal["any", "each"] = "any"
    resolve_every_s: Annotated[float, Meta(ge=0.1, le=3600)] = 10


class ProviderConfig(ProviderSettings, frozen=True, kw_only=True):
    """A provider of the configuration.

    `api_key` is its key or token, or is in `api_key_file`, read anew when it changes. `aws_*` are for Bedrock without a
    key, `google_file` is a service account for Vertex, or `google_account` its text.
    """

    api_key: ProviderKey | None = None
    api_key_file: LocalPath | None = None
    aws_secret_access_key: ProviderKey | None = None
    aws_session_token: ProviderKey | None = None
    google_file: LocalPath | None = None
    google_account: ServiceAccount | None = None
    proxy: SecretUrl | None = None
    ca_file: LocalPath | None = None


class TargetConfig(Section, frozen=True, kw_only=True):
    """A model of a provider as a route uses it. `capabilities` null: all that the provider has. `dialect` is how chats
    with it are held; null: as its provider's row says, or as the request came where it can be passed on.

    With the provider `local` it is one of `models` by its name, which has its own price, context and kinds.
    """

    provider: str
    model: Text
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1
    price: PriceConfig | None = None
    context_tokens: Annotated[int, Meta(ge=64, le=1 << 26)] | None = None
    kinds: Annotated[tuple[Kind, ...], Meta(min_length=1)] = ("chat",)
    capabilities: tuple[Capability, ...] | None = None
    dialect: DialectName | None = None

    @property
    def identity(self) -> str:
        """What it is called on all replicas."""
        return f"{self.provider}/{self.model}"


class MirrorConfig(Section, frozen=True, kw_only=True):
    """A shadow target that gets copies of a `share` of a route's requests, and whose answers nobody sees. At most
    `running_max` copies run and `waiting_max` wait; further ones are dropped."""

    provider: str
    model: Text
    share: Annotated[float, Meta(gt=0, le=1)] = 1
    running_max: Annotated[int, Meta(ge=1, le=1000)] = 4
    waiting_max: Annotated[int, Meta(ge=0, le=1000)] = 16
    timeout_s: Seconds = 60

    @property
    def target(self) -> TargetConfig:
        """The shadow, which is sent whatever the route is."""
        return TargetConfig(provider=self.provider, model=self.model, kinds=get_args(Kind))


class RouteConfig(Section, frozen=True, kw_only=True):
    """A public name, and the groups of targets behind it: `policy` balances inside a group, the next group is for when
    one has failed. `attempts_max` bounds all tries of a request, `eta_s_max` the wait before it overflows. `hedge`
    asks a second target beside a slow one, `mirror` a shadow target beside all."""

    name: ModelName
    aliases: tuple[ModelName, ...] = ()
    description: Annotated[str, Meta(max_length=500)] = ""
    policy: Policy = "weighted"
    attempts_max: Annotated[int, Meta(ge=1, le=10)] = 3
    eta_s_max: Annotated[float, Meta(ge=0, le=3600)] = 5
    falls_through: tuple[FallsThrough, ...] = ("context_length_exceeded",)
    cache_ttl_s: CacheTtl = None
    hedge: HedgeConfig | None = None
    mirror: MirrorConfig | None = None
    groups: Annotated[
        tuple[Annotated[tuple[TargetConfig, ...], Meta(min_length=1, max_length=64)], ...],
        Meta(min_length=1, max_length=16),
    ]

    @property
    def ways(self) -> str:
        """Its targets in words, group after group, and how one of a group is chosen where there are several."""
        told = (", ".join(f"{one.model} of {one.provider}" for one in group) for group in self.groups)
        chosen = f" ({self.policy})" if max(map(len, self.groups)) > 1 else ""
        return "; then ".join(told) + chosen


def provider_conflicts(providers: tuple[ProviderConfig, ...]) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    for i, one in enumerate(providers):
        where, row = f"providers[{i}]", PROVIDERS[one.kind]
        if not _NAME.fullmatch(one.name):
            yield f"{where}.name", "a name has 1 to 64 letters, digits and ._-, and starts with a letter or digit"
        if one.name == "local" or one.name in [other.name for other in providers[:i]]:
            yield f"{where}.name", f'"{one.name}" is already taken'
        if one.base_url is None and row.base_url is None:
            yield where, f"base_url is missing: a provider of kind {one.kind} has no address of its own"
        if one.base_url is not None and (problem := _url_problem(one.base_url)) is not None:
            yield f"{where}.base_url", problem
        for name in row.requires:
            if getattr(one, name) is None:
                yield where, f"{name} is missing for a provider of kind {one.kind}"
        yield from _credential_conflicts(one, where)
        yield from _header_conflicts(one, where)
        if one.addresses == "each" and one.proxy is not None:
            yield f"{where}.addresses", "each address of a name is reached directly, so there can be no proxy"
        if one.health is not None and one.health.path is None and row.health_path is row.models_path is None:
            yield f"{where}.health", f"path is missing: a provider of kind {one.kind} has nothing to ask for"
        if one.proxy is not None and not one.proxy.reveal().startswith(("http://", "https://")):
            yield f"{where}.proxy", "expected a URL that starts with http:// or https:// (the value is not shown)"


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "not a URL"
    if not _HOST.fullmatch(host or "-") or re.search(r"[{}]", url.replace("{region}", "").replace("{project}", "")):
        return "not a URL, in which only {region} and {project} may be in braces"
    if parts.scheme not in ("http", "https") or not host:
        return "expected a URL that starts with https:// or http://"
    if parts.username is not None or parts.query or parts.fragment:
        return "expected a URL with neither a user, nor a query, nor a fragment"
    return None


def _credential_conflicts(one: ProviderConfig, where: str) -> Iterator[tuple[str, str]]:
    if one.api_key is not None and one.api_key_file is not None:
        yield f"{where}.api_key_file", "api_key is set already"
    has_key = one.api_key is not None or one.api_key_file is not None
    match PROVIDERS[one.kind].auth:
        case "sigv4":
            aws = (one.aws_access_key_id, one.aws_secret_access_key)
            if not has_key and None in aws:
                yield where, "api_key is missing, or else aws_access_key_id and aws_secret_access_key"
            if has_key and any(aws):
                yield where, "either api_key or aws_access_key_id and aws_secret_access_key are possible, not both"
        case "google":
            if [has_key, one.google_file is not None, one.google_account is not None].count(True) != 1:
                yield where, "either api_key, api_key_file, google_file or google_account is needed"
        case _:
            if PROVIDERS[one.kind].key_needed and not has_key:
                yield where, "api_key is missing; take it from the environment with ${NAME}, or name an api_key_file"
    if one.oauth and one.kind != "anthropic":
        yield f"{where}.oauth", "only a provider of kind anthropic has OAuth tokens"


def _header_conflicts(one: ProviderConfig, where: str) -> Iterator[tuple[str, str]]:
    for name in one.headers:
        if not _HEADER.fullmatch(name.lower()) or _OWN_HEADER.fullmatch(name.lower()):
            yield (
                f"{where}.headers",
                f"{name!r} cannot be set; possible are user-agent, http-referer, x-... and such",
            )


def route_conflicts(
    routes: tuple[RouteConfig, ...], providers: Iterable[ProviderConfig], models: Container[str]
) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    kinds = {one.name: one.kind for one in providers}
    for i, route in enumerate(routes):
        seen: set[str] = set()
        for g, group in enumerate(route.groups):
            for t, target in enumerate(group):
                where = f"routes[{i}].groups[{g}][{t}]"
                if target.identity in seen:
                    yield where, f"the route has {target.identity} already"
                seen.add(target.identity)
                yield from _target_conflicts(target, where, kinds, models)
                if target.provider in kinds:
                    possible = PROVIDERS[kinds[target.provider]].kinds
                    for kind in target.kinds:
                        if kind not in possible:
                            yield f"{where}.kinds", f"a provider of kind {kinds[target.provider]} has no {kind}"
        if route.mirror is not None:
            yield from _target_conflicts(route.mirror.target, f"routes[{i}].mirror", kinds, models)


def _target_conflicts(
    target: TargetConfig, where: str, kinds: Mapping[str, ProviderKind], models: Container[str]
) -> Iterator[tuple[str, str]]:
    if target.provider == LOCAL:
        yield from _local_conflicts(target, where, models)
    elif target.provider not in kinds:
        known = ", ".join((*kinds, LOCAL))
        yield f"{where}.provider", f"there is no provider {target.provider!r}; known: {known}"
    elif target.dialect is not None:
        paths = PROVIDERS[kinds[target.provider]].paths
        spoken = [dialect for dialect in DIALECTS_OF["chat"] if dialect in paths]
        if target.dialect not in spoken:
            yield f"{where}.dialect", f"a provider of kind {kinds[target.provider]} holds chats in {', '.join(spoken)}"


def _local_conflicts(target: TargetConfig, where: str, models: Container[str]) -> Iterator[tuple[str, str]]:
    if target.model not in models:
        yield f"{where}.model", f"none of models is called {target.model!r}"
    if target.price is not None:
        yield f"{where}.price", f"the price of {target.model!r} is set where it is configured"
