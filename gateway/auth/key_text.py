"""The text of API keys, `gw_live_<id>_<secret>_<crc>`, and the pepper that keys their digests."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import string
import zlib
from pathlib import Path

from adapters.disk import sync_folder
from gateway.config import Secret

PEPPER_NAME = "pepper"
PEPPER_BYTES = 32
ID_LENGTH = 12
SECRET_LENGTH = 43  # 43 of 62 characters hold 256 bits.

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SHAPE = re.compile(rf"(gw_live_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}})_([0-9A-Za-z]{{6}})")


class PepperError(Exception):
    """The pepper is unusable, or not the one the database's digests were made with; every key would look wrong."""


def load_pepper(data_dir: Path, configured: Secret | None = None) -> bytes:
    """The secret that keys the digests: as configured, else from the data directory, made there at the first start.

    Raises PepperError when the file is damaged or unreadable.
    """
    if configured is not None:
        return configured.reveal().encode()
    path = data_dir / PEPPER_NAME
    try:
        if not path.exists():
            make_secret(path)
        pepper = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise PepperError(f"the pepper of the API keys in {path} cannot be used: {error}") from None
    if len(pepper) < PEPPER_BYTES:
        raise PepperError(f"the pepper of the API keys in {path} is cut short; restore it from a backup")
    return pepper


def make_secret(path: Path) -> None:
    """A file of 256 random bits in hexadecimal, unless there is one already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(PEPPER_BYTES) + "\n")
        file.flush()
        os.fsync(descriptor)
    try:
        # A link fails where a rename would overwrite the pepper that another process made at the same moment.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    sync_folder(path.parent)


def new_key() -> tuple[str, str]:
    """A fresh (id, key) from the system's random generator."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))
    body = f"gw_live_{key_id}_" + "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_LENGTH))
    return key_id, f"{body}_{_checksum(body)}"


def key_id(text: str) -> str | None:
    """The id inside a well-formed key, None for anything else: a typo is seen here, without asking anybody."""
    match = _SHAPE.fullmatch(text)
    return match[2] if match and _checksum(match[1]) == match[3] else None


def _checksum(body: str) -> str:
    """CRC-32 as six characters of the keys' alphabet."""
    rest, text = zlib.crc32(body.encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, len(_ALPHABET))
        text = _ALPHABET[digit] + text
    return text


def digest(pepper: bytes, text: str) -> str:
    """What is kept of a key: SHA-256 keyed with the pepper, in hexadecimal."""
    return hmac.digest(pepper, text.encode("utf-8", "surrogateescape"), "sha256").hex()
