"""Every setting, strictly typed, and how it is read: YAML file, then environment, then command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, inspect

import adapters
from gateway import yaml_lines
from gateway.config_auth import IssuerConfig, issuer_conflicts
from gateway.config_auth import is_loopback as is_loopback
from gateway.config_cache import CacheConfig as CacheConfig
from gateway.config_guardrails import GUARDRAILS_MAX, guardrail_conflicts
from gateway.config_guardrails import GuardrailConfig as GuardrailConfig
from gateway.config_library import LibraryConfig as LibraryConfig
from gateway.config_library import library_conflicts
from gateway.config_limits import FACTOR, USD, Section, zone_of
from gateway.config_limits import ImagesConfig as ImagesConfig
from gateway.config_limits import LimitsConfig as LimitsConfig
from gateway.config_models import EngineConfig as EngineConfig
from gateway.config_models import LocalPath, engine_conflicts
from gateway.config_models import LoraConfig as LoraConfig
from gateway.config_models import ModelConfig as ModelConfig
from gateway.config_money import AlertsConfig as AlertsConfig
from gateway.config_money import RetentionConfig as RetentionConfig
from gateway.config_money import alert_conflicts
from gateway.config_people import PeopleConfig, people_conflicts
from gateway.config_pool import PoolConfig
from gateway.config_providers import ProviderConfig as ProviderConfig
from gateway.config_providers import RouteConfig as RouteConfig
from gateway.config_providers import TargetConfig as TargetConfig
from gateway.config_providers import provider_conflicts, route_conflicts
from gateway.networks import parse_network
from gateway.schema import describe, leaves, only_empty, show, suggest, unwrap
from gateway.secret import ProviderKey as ProviderKey
from gateway.secret import Secret as Secret
from gateway.secret import SecretUrl as SecretUrl
from gateway.secret import ServiceAccount as ServiceAccount

SECRET_LENGTH_MIN = 16
DATABASE_SCHEMES = ("postgresql://", "postgres://")
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class ServerConfig(Section, frozen=True, kw_only=True):
    """Where to listen, in how many processes, and the limits on every connection."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    body_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 30)] = 10 << 20
    header_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 20)] = 32 << 10
    header_count_max: Annotated[int, Meta(ge=8, le=10_000)] = 100
    url_bytes_max: Annotated[int, Meta(ge=256, le=1 << 16)] = 8 << 10
    header_timeout_s: Seconds = 10
    body_timeout_s: Seconds = 30
    write_stall_timeout_s: Seconds = 30
    keep_alive_timeout_s: Seconds = 75
    drain_timeout_s: Annotated[float, Meta(ge=0, le=86_400)] = 30
    connections_max: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    trusted_proxies: tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...] = ()


class AuthConfig(Section, frozen=True, kw_only=True):
    """Who may call. `admin_key` replaces the generated one, `pepper` the one kept in the data directory.

    `secrets_key` encrypts the secrets of providers that are set at run time, in the place of the key kept in the data
    directory; `secrets_key_before` was the one before, until `gateway rotate-secrets` is done.
    """

    enabled: bool = True
    admin_key: Secret | None = None
    pepper: Secret | None = None
    secrets_key: Secret | None = None
    secrets_key_before: Secret | None = None
    issuers: Annotated[tuple[IssuerConfig, ...], Meta(max_length=64)] = ()
    people: PeopleConfig = PeopleConfig()


class IdempotencyConfig(Section, frozen=True, kw_only=True):
    """Results of requests with an `Idempotency-Key`. `ttl_s` is longer than any request runs."""

    ttl_s: Annotated[int, Meta(ge=7200, le=30 * 86_400)] = 86_400
    wait_timeout_s: Annotated[float, Meta(ge=0, le=600)] = 30
    result_bytes_max: Annotated[int, Meta(ge=0, le=64 << 20)] = 1 << 20
    tenant_bytes_max: Annotated[int, Meta(ge=0, le=1 << 50)] = 64 << 20
    bytes_max: Annotated[int, Meta(ge=0, le=1 << 50)] = 1 << 30


class StateConfig(Section, frozen=True, kw_only=True):
    """Where state is kept. Without URLs: SQLite in the data directory and this process's memory, for one process.

    `replicas` is how many gateway processes share the state; each takes its part of a limit while Redis is away.
    """

    database: SecretUrl | None = None
    database_timeout_s: Seconds = 10
    database_connections_max: Annotated[int, Meta(ge=2, le=1000)] = 10
    redis: SecretUrl | None = None
    redis_timeout_s: Seconds = 1
    replicas: Annotated[int, Meta(ge=1, le=1000)] = 1
    retention: RetentionConfig = RetentionConfig()
    idempotency: IdempotencyConfig = IdempotencyConfig()


class SessionsConfig(Section, frozen=True, kw_only=True):
    """Where kept conversations lie on disk (`dir` None: in the data directory), and what they are encrypted with."""

    dir: LocalPath | None = None
    encryption_key: Secret | None = None
    encryption_key_file: LocalPath | None = None


class LogConfig(Section, frozen=True, kw_only=True):
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section, frozen=True, kw_only=True):
    """Everything an operator can set. `load` makes the paths in it absolute."""

    server: ServerConfig = ServerConfig()
    data_dir: LocalPath = "~/.local/share/gateway"
    models: tuple[ModelConfig, ...] = ()
    providers: Annotated[tuple[ProviderConfig, ...], Meta(max_length=1000)] = ()
    routes: Annotated[tuple[RouteConfig, ...], Meta(max_length=10_000)] = ()
    guardrails: Annotated[tuple[GuardrailConfig, ...], Meta(max_length=GUARDRAILS_MAX)] = ()
    auth: AuthConfig = AuthConfig()
    state: StateConfig = StateConfig()
    limits: LimitsConfig = LimitsConfig()
    alerts: AlertsConfig = AlertsConfig()
    sessions: SessionsConfig = SessionsConfig()
    library: LibraryConfig = LibraryConfig()
    pool: PoolConfig = PoolConfig()
    images: ImagesConfig = ImagesConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()


class ConfigError(ValueError):
    """A setting that cannot be used; the message says where it was set and what is wrong with it."""


SHORT_NAMES: Mapping[str, str] = {
    "GATEWAY_HOST": "server.host",
    "GATEWAY_PORT": "server.port",
    "GATEWAY_ADMIN_KEY": "auth.admin_key",
    "GATEWAY_DATABASE_URL": "state.database",
    "GATEWAY_REDIS_URL": "state.redis",
    "GATEWAY_LOG_LEVEL": "log.level",
    "GATEWAY_LOG_FORMAT": "log.format",
}
# Read elsewhere: by `load` itself, and by the commands that talk to a running server.
OTHER_NAMES = ("GATEWAY_CONFIG", "GATEWAY_NO_AUTH", "GATEWAY_API_KEY", "GATEWAY_URL")
# Kubernetes puts these into every pod beside a Service whose name starts with "gateway"; they are not settings of ours.
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Config:
    """The configuration from the file at `path` (else `GATEWAY_CONFIG`), the `GATEWAY_*` variables, then `overrides`.

    `overrides` maps dotted paths such as `server.port` to values, in the command line's name. Without any model or
    route the packaged demo model is served. Raises ConfigError.
    """
    settings = _Settings(environ)
    if path is None and environ.get("GATEWAY_CONFIG"):
        path = Path(environ["GATEWAY_CONFIG"])
    if path is not None:
        settings.read_file(path)
    settings.read_environment()
    for name, value in overrides.items():
        settings.put(name, value, "command line")
    values = settings.clean(settings.values, _CONFIG, "")
    values.setdefault("data_dir", _default_data_dir(environ))
    if not values.get("routes"):
        values.setdefault("models", [{"name": "demo", "path": demo_model_path()}])
    try:
        config = msgspec.convert(values, Config, dec_hook=_decode_secret)
    except msgspec.ValidationError as error:
        raise settings.explain(error, values) from None
    for where, problem in conflicts(config):
        raise settings.error(where, problem)
    return config


def digest(config: Config) -> str:
    """SHA-256 of all settings, in hexadecimal; secrets are left out, as a digest of a weak one could be guessed."""

    def plain(value: object) -> str:
        return "" if isinstance(value, Secret) else str(value)

    return hashlib.sha256(msgspec.json.encode(config, enc_hook=plain, order="deterministic")).hexdigest()


def demo_model_path() -> str:
    """Where the packaged demo model lies."""
    return str(Path(adapters.__path__[0]) / "llama_cpp" / "demo" / "demo.gguf")


def name_of_file(path: str) -> str:
    """The public name of a model given by its path alone: the file's stem, with `-` for what a name may not hold."""
    return re.sub(r"[^A-Za-z0-9._:@+-]+", "-", Path(path).stem).lstrip("-._:@+") or "model"


def environment_names() -> dict[str, str]:
    """Every environment variable that is a setting, with the path it sets."""
    systematic = {"GATEWAY_" + path.upper().replace(".", "__"): path for path, _ in leaves(_CONFIG, "")}
    return systematic | dict(SHORT_NAMES)


def _default_data_dir(environ: Mapping[str, str]) -> str:
    root = environ.get("XDG_DATA_HOME", "")
    return str(Path(root if root.startswith("/") else "~/.local/share").expanduser() / "gateway")


def conflicts(config: Config) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    yield from _name_conflicts(config)
    yield from engine_conflicts(config.models)
    yield from provider_conflicts(config.providers)
    yield from route_conflicts(config.routes, config.providers, {model.name for model in config.models})
    try:
        zone_of(config.limits.time_zone)
    except ValueError as error:
        yield "limits.time_zone", str(error)
    for i, rule in enumerate(config.limits.rules):
        if (rule.scope, rule.id) in {(earlier.scope, earlier.id) for earlier in config.limits.rules[:i]}:
            yield f"limits.rules[{i}]", f"there is already a rule for the {rule.scope} {rule.id}"
    if not config.auth.enabled and not is_loopback(config.server.host):
        yield "auth.enabled", f"authentication can be off only on a loopback address, not on {config.server.host}"
    if config.auth.issuers and config.auth.admin_key is not None and config.auth.admin_key.reveal().count(".") == 2:
        yield "auth.admin_key", "with issuers, a secret with two dots would be taken for a token"
    if config.auth.secrets_key is None and config.auth.secrets_key_before is not None:
        yield "auth.secrets_key_before", "there is no auth.secrets_key that it was before"
    for i, proxy in enumerate(config.server.trusted_proxies):
        try:
            parse_network(proxy)
        except ValueError as error:
            yield f"server.trusted_proxies[{i}]", str(error)
    yield from issuer_conflicts(config.auth.issuers)
    yield from guardrail_conflicts(config.guardrails, {provider.name for provider in config.providers})
    yield from alert_conflicts(config.alerts)
    yield from people_conflicts(config.auth.people)
    if config.sessions.encryption_key is not None and config.sessions.encryption_key_file is not None:
        yield "sessions.encryption_key_file", "sessions.encryption_key is set already"
    yield from library_conflicts(config.library)
    yield from _state_conflicts(config)


def _name_conflicts(config: Config) -> Iterator[tuple[str, str]]:
    """Public names that are missing what they stand for, or stand for two models; and a second default."""
    for i in [i for i, model in enumerate(config.models) if model.default][1:]:
        yield f"models[{i}].default", "there is a default model already"
    for i, model in enumerate(config.models):
        given = [name for name in ("path", "pull", "script") if getattr(model, name) is not None]
        if not given:
            yield f"models[{i}]", "path is missing (or pull, or a script)"
        for other in given[1:]:
            yield f"models[{i}].{other}", f"the model has a {given[0]} already"
    taken: dict[str, str] = {}
    for where, name in public_names(config):
        if name in taken:
            yield where, f'"{name}" is already taken by {taken[name]}'
        taken[name] = where


def public_names(config: Config) -> list[tuple[str, str]]:
    """What clients may ask for, each name behind the path at which it is given."""
    names: list[tuple[str, str]] = []
    for i, model in enumerate(config.models):
        names.append((f"models[{i}].name", model.name))
        names += [(f"models[{i}].aliases[{j}]", alias) for j, alias in enumerate(model.aliases)]
        names += [
            (f"models[{i}].engine.loras[{j}].name", f"{known}:{lora.name}")
            for j, lora in enumerate(model.engine.loras)
            for known in (model.name, *model.aliases)
        ]
    for i, route in enumerate(config.routes):
        names.append((f"routes[{i}].name", route.name))
        names += [(f"routes[{i}].aliases[{j}]", alias) for j, alias in enumerate(route.aliases)]
    return names


def _state_conflicts(config: Config) -> Iterator[tuple[str, str]]:
    state = config.state
    for name, url, schemes in (
        ("state.database", state.database, DATABASE_SCHEMES),
        ("state.redis", state.redis, REDIS_SCHEMES),
        ("cache.redis", config.cache.redis, REDIS_SCHEMES),
    ):
        if url is not None and not url.reveal().startswith(schemes):
            yield name, f"expected a URL that starts with {' or '.join(schemes)} (the value is a secret and not shown)"
    for where, count in (("state.replicas", state.replicas), ("server.workers", config.server.workers)):
        if count > 1 and (state.database is None or state.redis is None):
            yield (
                where,
                "more than one gateway process needs both PostgreSQL and Redis: set state.database and state.redis",
            )


class _Settings:
    """The values set so far, and for each path who set it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.values: dict[str, Any] = {}
        self._environ = environ
        self._sources: dict[str, str] = {}
        self._file: Path | None = None

    def read_file(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            values, lines = yaml_lines.parse(text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text: byte {error.start}") from None
        except yaml_lines.YamlError as error:
            raise ConfigError(f"{path}:{error.line}: {error.problem}") from None
        if values is not None and not isinstance(values, dict):
            raise ConfigError(f"{path}:1: expected settings as `name: value` lines")
        self._file = path
        self._sources = {where: f"{path}:{line}" for where, line in lines.items()}
        self.values = values or {}

    def read_environment(self) -> None:
        names, types = environment_names(), dict(leaves(_CONFIG, ""))
        for name, text in sorted(self._environ.items()):
            if not name.startswith("GATEWAY_") or _SERVICE_LINK.search(name) or text.startswith(("tcp://", "udp://")):
                continue
            if name == "GATEWAY_NO_AUTH":
                if _TRUTH.get(text.lower(), bool(text)):
                    self.put("auth.enabled", False, name)
            elif name in names:
                self.put(names[name], _from_text(text, types[names[name]], name), name)
            elif name not in OTHER_NAMES:
                raise ConfigError(f"{name}: no such setting{suggest(name, [*names, *OTHER_NAMES])}")

    def put(self, path: str, value: Any, source: str) -> None:
        """Set `path` to `value`, over anything said about it or inside it before."""
        *sections, last = path.split(".")
        target = self.values
        for section in sections:
            inner = target.get(section)
            target[section] = target = inner if isinstance(inner, dict) else {}
        target[last] = value
        self._sources = {
            where: known for where, known in self._sources.items() if not where.startswith((f"{path}.", f"{path}["))
        }
        self._sources[path] = source

    def error(self, path: str, problem: str) -> ConfigError:
        """`problem` with the place where `path`, or else the nearest thing around it, was set."""
        around = path
        while around and around not in self._sources:
            around = around[: max(around.rfind("."), around.rfind("["), 0)]
        source = self._sources.get(around) or str(self._file or "configuration")
        return ConfigError(f"{source}: at {path}: {problem}" if path else f"{source}: {problem}")

    def clean(self, value: Any, kind: inspect.Type, path: str) -> Any:
        """`value` ready for conversion: keys checked, empty sections dropped, secrets filled in, paths absolute,
        amounts of money as text."""
        kind, is_path = unwrap(kind)
        if isinstance(kind, inspect.StructType) and isinstance(value, dict):
            return self._clean_section(value, kind, path)
        if isinstance(kind, inspect.VarTupleType) and isinstance(value, list | tuple):
            return [self.clean(item, kind.item_type, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(kind, inspect.CustomType) and isinstance(value, str):
            return self._fill_secret(value, path)
        if isinstance(kind, inspect.StrType):
            value = amounts_as_text(value, kind)
        if is_path and isinstance(value, str) and value:
            in_file = self._file and self._sources.get(path, "").startswith(f"{self._file}:")
            base = self._file.parent if self._file and in_file else Path()
            return str((base / Path(value).expanduser()).absolute())
        return value

    def _clean_section(self, value: dict[str, Any], kind: inspect.StructType, path: str) -> dict[str, Any]:
        fields = {field.name: field.type for field in kind.fields if not only_empty(field.type)}
        cleaned = {}
        for key, inner in value.items():
            child = f"{path}.{key}" if path else key
            if key not in fields:
                elsewhere = (
                    [] if path else [known for known, _ in leaves(_CONFIG, "") if known.partition(".")[2] == key]
                )
                hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else suggest(key, list(fields))
                raise self.error(child, f"no such setting{hint}")
            section = isinstance(unwrap(fields[key])[0], inspect.StructType | inspect.VarTupleType)
            if not (section and inner is None):
                cleaned[key] = self.clean(inner, fields[key], child)
        return cleaned

    def _fill_secret(self, text: str, path: str) -> str:
        """Only secrets take `${NAME}`, and only when the file says so: a variable's own value is taken as it is."""
        match = re.fullmatch(r"\$\{(\w+)\}", text)
        if match is None or self._sources.get(path) in environment_names():
            return text
        name = match[1]
        if name not in self._environ:
            raise self.error(path, f"the environment has no variable {name}")
        return self._environ[name]

    def explain(self, error: msgspec.ValidationError, values: dict[str, Any]) -> ConfigError:
        """msgspec's complaint in an operator's words."""
        problem, _, path = str(error).removesuffix("`").partition(" - at `$")
        path = path.removeprefix(".")
        if missing := re.match(r"Object missing required field `(\w+)`", problem):
            return self.error(path, f"{missing[1]} is missing")
        if problem.startswith(("Expected", "Invalid enum value")):
            kind, value = _at(path, values)
            return self.error(path, f"expected {describe(kind)}, got {show(value)}")
        return self.error(path, problem)


def amounts_as_text(value: Any, kind: inspect.Type) -> Any:
    """`value` with amounts of money as text, which people may write as numbers."""
    kind, _ = unwrap(kind)
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        types = {field.encode_name: field.type for field in kind.fields}
        return {key: amounts_as_text(inner, types[key]) if key in types else inner for key, inner in value.items()}
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, list | tuple):
        return [amounts_as_text(item, kind.item_type) for item in value]
    if isinstance(kind, inspect.StrType) and kind.pattern in (USD, FACTOR) and type(value) in (int, float):
        # The shortest text that means the number is the one that was written, but for zeros at its end.
        return format(Decimal(repr(value)), "f")
    return value


def _decode_secret(kind: type, value: Any) -> Any:
    if kind not in (Secret, SecretUrl, ProviderKey, ServiceAccount) or not isinstance(value, str):
        raise ValueError("expected text (the value is a secret and not shown)")
    if not value:
        raise ValueError("a secret must not be empty")
    if kind in (SecretUrl, ServiceAccount):
        return kind(value)
    if kind is ProviderKey and re.fullmatch(r"[!-~]+", value):
        return ProviderKey(value)
    if len(value) < SECRET_LENGTH_MIN or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"a secret has at least {SECRET_LENGTH_MIN} visible ASCII characters and no spaces")
    return Secret(value)


def _at(path: str, values: Any) -> tuple[inspect.Type, Any]:
    """The type and the value at `path`."""
    kind: inspect.Type = _CONFIG
    for key, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        kind, _ = unwrap(kind)
        if isinstance(kind, inspect.StructType):
            kind = next(field.type for field in kind.fields if field.name == key)
        elif isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        values = values[int(index) if index else key]
    return kind, values


def _from_text(text: str, kind: inspect.Type, name: str) -> Any:
    """A variable's value: text as it is, a truth value in any usual spelling, anything else as YAML."""
    if isinstance(kind, inspect.StrType | inspect.LiteralType | inspect.CustomType):
        return text
    if isinstance(kind, inspect.BoolType):
        return _TRUTH.get(text.lower(), text)
    try:
        return yaml_lines.scalar(text)
    except yaml_lines.YamlError as error:
        raise ConfigError(f"{name}: {error.problem}") from None


_CONFIG = inspect.type_info(Config)
