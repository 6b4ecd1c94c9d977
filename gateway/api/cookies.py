"""Cookies, and what a browser's request says about the page it comes from."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import Scope

from gateway import errors
from gateway.config import is_loopback

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
VALUE_LENGTH_MAX = 4096


class Cookies:
    """Writes and reads the gateway's cookies. `public_url` is where browsers reach it, None: nowhere but here.

    They are for this host alone and not for scripts. Only where browsers talk plain HTTP to this machine they are not
    `Secure`, as not every browser would keep them.
    """

    def __init__(self, public_url: str | None) -> None:
        self._public_url = None if public_url is None else public_url.rstrip("/")

    def url(self, scope: Scope) -> str | None:
        """Scheme, host and port that the browser reaches the gateway under, as far as it can be trusted."""
        if self._public_url is not None:
            return self._public_url
        host = _header(scope, b"host") or ""
        return f"http://{host}" if is_loopback(_host_name(host)) else None

    def read(self, scope: Scope, name: str) -> str | None:
        """A cookie's value. Two of the same name are none: one of them was put there by somebody else."""
        wanted, found = self._name(scope, name), []
        for key, value in scope["headers"]:
            if key == b"cookie":
                pairs = (pair.strip().partition("=") for pair in value.decode("latin-1").split(";"))
                found += [value for key, _, value in pairs if key == wanted]
        return found[0] if len(found) == 1 and len(found[0]) <= VALUE_LENGTH_MAX else None

    def put(self, scope: Scope, name: str, value: str, max_age_s: int) -> tuple[bytes, bytes]:
        """The header that sets a cookie; `max_age_s` 0 removes it."""
        secure = "; Secure" if self._secure(scope) else ""
        text = f"{self._name(scope, name)}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}"
        return b"set-cookie", text.encode()

    def _name(self, scope: Scope, name: str) -> str:
        """The prefix has browsers refuse such a cookie from a neighbouring host or over plain HTTP."""
        return f"__Host-{name}" if self._secure(scope) else name

    def _secure(self, scope: Scope) -> bool:
        return not (self.url(scope) or "").startswith("http:")

    def check_origin(self, scope: Scope, *, strict: bool) -> None:
        """Refuse a change that another site's page asks for through its visitor's browser.

        Browsers say where a request comes from in Sec-Fetch-Site, older ones in Origin. Without either it is none of a
        browser, or of a very old one: with `strict`, where a cookie is all that it has, it is refused as well.
        """
        if scope["method"] in SAFE_METHODS and _header(scope, b"upgrade") is None:
            return
        site, origin = _header(scope, b"sec-fetch-site"), _header(scope, b"origin")
        if site is not None:
            same = site == "same-origin"
        elif origin is not None:
            same = self._is_own(scope, origin)
        else:
            same = not strict
        if not same:
            message = "This request comes from another site. Send it from the gateway's own pages, or use an API key."
            raise errors.error("permission_denied", message)

    def _is_own(self, scope: Scope, origin: str) -> bool:
        if self._public_url is not None:
            return origin == self._public_url
        try:
            return bool(origin) and urlsplit(origin).netloc == _header(scope, b"host")
        except ValueError:
            return False


def local_path(text: str) -> str:
    """A path of this origin to go on to after a log-in; raises `invalid_value` for what could lead elsewhere."""
    plain = all("!" <= character <= "~" and character != "\\" for character in text)
    if not plain or not text.startswith("/") or text.startswith("//") or len(text) > 1000:
        message = "Invalid value for 'return_to': expected a path of this server, such as /ui/."
        raise errors.error("invalid_value", message, param="return_to")
    return text


def _host_name(host: str) -> str:
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "") if parts.netloc == host else ""
    except ValueError:
        return ""


def _header(scope: Scope, name: bytes) -> str | None:
    """The only value of a header; several are as good as a strange one."""
    found = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return None if not found else found[0] if len(found) == 1 else ""
