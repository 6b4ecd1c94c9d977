"""Cookies: their attributes, who may send them, and where a log-in may lead."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.cookies import Cookies, local_path
from gateway.errors import GatewayError

PUBLIC = "https://gw.example"


def scope(method: str = "POST", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"method": method, "headers": pairs}


def test_attributes() -> None:
    here = scope(host="127.0.0.1:8000")
    assert Cookies(None).put(here, "s", "v", 9)[1] == b"s=v; Path=/; Max-Age=9; HttpOnly; SameSite=Lax"
    for cookies, host in ((Cookies(PUBLIC), "127.0.0.1"), (Cookies(None), "gw.example"), (Cookies(None), "")):
        value = cookies.put(scope(host=host), "s", "v", 0)[1]
        assert value == b"__Host-s=v; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure"


@pytest.mark.parametrize(
    ("cookie", "value"),
    [
        ("s=1", "1"),
        ("a=b; s=1 ;c", "1"),
        ("s=1; s=2", None),
        ("s=1; s=1", None),
        ("S=1", None),
        ("xs=1", None),
        ("__Host-s=1", None),
        ("s", ""),
        ("", None),
        ("s=" + "x" * 5000, None),
    ],
)
def test_reading(cookie: str, value: str | None) -> None:
    assert Cookies(None).read(scope(host="localhost:1", cookie=cookie), "s") == value


def test_over_tls_only_the_prefixed_cookie_counts() -> None:
    assert Cookies(PUBLIC).read(scope(host="gw.example", cookie="s=evil"), "s") is None
    assert Cookies(PUBLIC).read(scope(host="gw.example", cookie="s=evil; __Host-s=good"), "s") == "good"


def allowed(cookies: Cookies, strict: bool, method: str = "POST", **headers: str) -> bool:
    try:
        cookies.check_origin(scope(method, **headers), strict=strict)
    except GatewayError as error:
        assert error.status == 403
        return False
    return True


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("cookies", [Cookies(None), Cookies(PUBLIC)])
def test_where_changes_come_from(cookies: Cookies, strict: bool) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert allowed(cookies, strict, method, host="gw.example", sec_fetch_site="same-origin")
        for site in ("cross-site", "same-site", "none", "", "SAME-ORIGIN"):
            assert not allowed(cookies, strict, method, host="gw.example", sec_fetch_site=site, origin=PUBLIC)
        assert allowed(cookies, strict, method, host="gw.example", origin=PUBLIC)
        for origin in ("https://evil.example", "https://gw.example.evil", "null", "", "https://gw.example:1", "//["):
            assert not allowed(cookies, strict, method, host="gw.example", origin=origin)
        assert allowed(cookies, strict, method, host="gw.example") is not strict
    for method in ("GET", "HEAD"):
        assert allowed(cookies, strict, method, host="gw.example", sec_fetch_site="cross-site")
        upgrade = {"host": "gw.example", "upgrade": "websocket"}
        assert not allowed(cookies, strict, method, **upgrade, origin="https://evil.example")


def test_a_header_sent_twice_is_not_trusted() -> None:
    twice = scope(host="gw.example", origin=PUBLIC)
    twice["headers"].append((b"origin", b"https://evil.example"))
    with pytest.raises(GatewayError):
        Cookies(PUBLIC).check_origin(twice, strict=False)


@pytest.mark.parametrize("path", ["/", "/ui/", "/ui/?a=b&c=%2F%2Fevil#d", "/@evil.example", "/a//b"])
def test_paths_of_this_origin(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "ui",
        "//evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "/a\r\nset-cookie: x=y",
        " /ui",
        "/\u00e9",
        "/\x00",
        "/" + "a" * 1000,
    ],
)
def test_everything_else_leads_astray(path: str) -> None:
    with pytest.raises(GatewayError) as refused:
        local_path(path)
    assert (refused.value.status, refused.value.param) == (400, "return_to")


def test_where_the_browser_reaches_the_gateway() -> None:
    assert Cookies(None).url(scope(host="localhost:8000")) == "http://localhost:8000"
    assert Cookies(None).url(scope(host="[::1]:8000")) == "http://[::1]:8000"
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost/evil", "[", ""):
        assert Cookies(None).url(scope(host=host)) is None
    assert Cookies("https://gw.example/").url(scope(host="evil.example")) == PUBLIC
