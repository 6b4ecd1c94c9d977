"""How each model's engine runs: its own settings, and what the rest of the configuration adds to them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

from msgspec.structs import asdict

from adapters.llama_cpp.messages import ChatPrompt, EngineSettings
from adapters.scripted import Script, ScriptError, read_script
from adapters.types import Message
from gateway.config import SECRET_LENGTH_MIN, Config, ConfigError, ModelConfig, SessionsConfig


def engine_settings(config: Config) -> list[EngineSettings]:
    """The settings of each local model's engine, in order. Raises ConfigError when the encryption key cannot be read.

    Several models take turns by a lock in the data directory, unless the operator names another one, because decoding
    side by side on the same cores is many times slower than one after the other.
    """
    data_dir = Path(config.data_dir)
    sessions = Path(config.sessions.dir) if config.sessions.dir else data_dir / "sessions"
    key = encryption_key(config.sessions)
    local = [model for model in config.models if model.local]
    lease = str(data_dir / "step.lease") if len(local) > 1 else None
    if lease is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
    return [_settings(model, sessions, key, lease) for model in local]


def _settings(model: ModelConfig, sessions: Path, key: bytes | None, lease: str | None) -> EngineSettings:
    engine = model.engine
    own = {
        "lease_path": engine.lease_path or lease,
        # A public name may hold slashes.
        "session_dir": str(sessions / quote(model.name, safe="")) if engine.session_disk_bytes else None,
        "session_key": key,
        "public_prefixes": tuple(ChatPrompt((Message("system", text),)) for text in model.public_prefixes),
    }
    return EngineSettings(**(asdict(engine) | own))


def scripts(config: Config) -> dict[str, Script]:
    """The scripts of the models that play one, by their names. Raises ConfigError when one cannot be read."""
    try:
        return {model.name: read_script(Path(model.script)) for model in config.models if model.script is not None}
    except ScriptError as error:
        raise ConfigError(str(error)) from None


def encryption_key(sessions: SessionsConfig) -> bytes | None:
    """The 32 bytes that sessions on disk are encrypted with; None where they are not.

    They are derived from the operator's secret by scrypt (RFC 7914), so that a passphrase is as good as random bytes.
    """
    secret = sessions.encryption_key.reveal() if sessions.encryption_key is not None else None
    if sessions.encryption_key_file is not None:
        try:
            secret = Path(sessions.encryption_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(f"sessions.encryption_key_file: cannot be read: {reason}") from None
        if len(secret) < SECRET_LENGTH_MIN:
            raise ConfigError(f"sessions.encryption_key_file: a secret has at least {SECRET_LENGTH_MIN} characters")
    if secret is None:
        return None
    return hashlib.scrypt(secret.encode(), salt=b"gateway sessions on disk", n=1 << 14, r=8, p=1, dklen=32)
