"""How secrets of providers are kept: AES-256-GCM (NIST SP 800-38D), bound to their provider and to where it is.

A key comes from the configuration or lies in the data directory. What was encrypted with the one before can be read
until everything has been encrypted anew (`gateway rotate-secrets`).
"""

from __future__ import annotations

import binascii
import hashlib
import logging
import os
import re
from base64 import b64decode, b64encode
from pathlib import Path

import msgspec

from adapters.disk import sync_folder
from gateway import errors
from gateway.auth.key_text import make_secret
from gateway.config import Config, Secret
from gateway.served import ProviderSecret, Sealed

KEY_NAME = "secrets.key"
KEYS_MAX = 3
NONCE_BYTES = 12

log = logging.getLogger(__name__)


class Sealing:
    """Encrypts with the newest key and decrypts with any. Reading and making its file is all that it does outside."""

    def __init__(self, config: Config) -> None:
        self._path = Path(config.data_dir) / KEY_NAME
        auth = config.auth
        self._configured = [one for one in (auth.secrets_key, auth.secrets_key_before) if one is not None]
        self._alone = config.state.replicas == 1
        self._keys: dict[str, bytes] = {}

    def seal(self, provider: str, origin: str, secret: ProviderSecret, set_us: int, set_by: str) -> Sealed:
        """The secret for the database. Raises `conflict` where other replicas could not read it."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not self._configured:
            if not self._alone:
                message = "Several replicas need one key for secrets: set auth.secrets_key for all of them."
                raise errors.error("conflict", message)
            if not self._path.exists():
                make_secret(self._path)
        self._load()
        key_id, key = next(iter(self._keys.items()))
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, msgspec.json.encode(secret), _bound_to(provider, origin))
        return Sealed(
            provider=provider,
            sealed=b64encode(sealed).decode(),
            key_id=key_id,
            origin=origin,
            set_us=set_us,
            set_by=set_by,
        )

    def open(self, sealed: Sealed) -> ProviderSecret | None:
        """The secret; None, with a warning, when it cannot be read here."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if sealed.key_id not in self._keys:
            self._load()
        key = self._keys.get(sealed.key_id)
        if key is None:
            log.warning("the secret of the provider %s needs the key %s, not here", sealed.provider, sealed.key_id)
            return None
        try:
            raw = b64decode(sealed.sealed, validate=True)
            text = AESGCM(key).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _bound_to(sealed.provider, sealed.origin))
            return msgspec.json.decode(text, type=ProviderSecret)
        except (InvalidTag, binascii.Error, ValueError):
            log.warning("the secret of the provider %s is damaged, or another provider's", sealed.provider)
            return None

    def renew(self) -> None:
        """Make a new key, if the keys are ours to make. The one before stays for what it encrypted."""
        if self._configured:
            self._load()
            return
        before = self._path.read_text(encoding="ascii").split() if self._path.exists() else []
        draft = self._path.with_name(f"{KEY_NAME}.{os.getpid()}")
        make_secret(draft)
        fresh = draft.read_text(encoding="ascii").split()
        with draft.open("w", encoding="ascii") as file:
            file.write("\n".join([*fresh, *before][:KEYS_MAX]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        sync_folder(self._path.parent)
        self._load()

    def _load(self) -> None:
        """All keys by their ids, the newest first."""
        if self._configured:
            keys = [_stretched(secret) for secret in self._configured] if not self._keys else list(self._keys.values())
        else:
            keys = [bytes.fromhex(line) for line in _lines(self._path)]
        self._keys = {hashlib.sha256(b"id of the key " + key).hexdigest()[:12]: key for key in keys}


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        log.warning("the keys of secrets cannot be read from %s: %s", path, error)
        return []
    return [line for line in lines if re.fullmatch(r"[0-9a-f]{64}", line)]


def _stretched(secret: Secret) -> bytes:
    """A key from the operator's text by scrypt (RFC 7914), so that a passphrase is as good as random bytes."""
    return hashlib.scrypt(secret.reveal().encode(), salt=b"gateway provider secrets", n=1 << 14, r=8, p=1, dklen=32)


def _bound_to(provider: str, origin: str) -> bytes:
    """What a secret cannot be decrypted without: another provider's row, or another host, does not fit."""
    return f"{provider}\n{origin}".encode()
