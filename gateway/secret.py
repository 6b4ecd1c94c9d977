"""Text that has to stay secret, and what is signed with it."""

from __future__ import annotations

import hashlib
import hmac


class Secret:
    """Text that never shows in a repr, a log line or a serialisation; `reveal()` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class SecretUrl(Secret):
    """The address of a store, which may hold a password."""

    __slots__ = ()


class ProviderKey(Secret):
    """A key that a provider gave out; how long it is, is not ours to say."""

    __slots__ = ()


class ServiceAccount(Secret):
    """A service account of Google, as the JSON that its file holds."""

    __slots__ = ()


def signature(secret: Secret, now_s: int, payload: bytes) -> str:
    """`t=1700000000,v1=...`: HMAC-SHA256 over the time, a dot and the body, so that an old one cannot be replayed."""
    digest = hmac.new(secret.reveal().encode(), f"{now_s}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={now_s},v1={digest}"
