from __future__ import annotations

import json

import pytest
from starlette.requests import Request

from gateway import errors
from gateway.api.edge import REQUEST_ID, Router, choose
from gateway.api.http import Endpoint, Response, json_response
from gateway.auth import Principal
from gateway.config import ServerConfig
from gateway.errors import GatewayError
from tests.gateway.api.wire import run, serve, until

KEYS = {
    "Bearer user": Principal(tenant="t", key_id="k", name="n"),
    "Bearer admin": Principal(tenant="a", key_id="a", name="a", admin=True),
    "Bearer narrow": Principal(tenant="t", key_id="n", name="n", scopes=frozenset({"inference"})),
}


class FakeAuthenticator:
    """Knows some keys; `down` makes it fail as when the database is gone."""

    down = False
    address = ""

    async def authenticate(self, authorization: str | None, address: str = "") -> Principal:
        self.address = address
        if self.down:
            raise errors.error("overloaded", "Cannot check keys.")
        principal = KEYS.get(authorization or "")
        if principal is None:
            raise errors.error("invalid_api_key", "No.", headers={"WWW-Authenticate": "Bearer"})
        return principal


async def show(request: Request) -> Response:
    principal = getattr(request.state, "principal", None)
    request.state.log["model"] = "m\n"
    shown = {"route": request.scope["route_path"], "params": request.path_params, "who": principal and principal.name}
    return json_response(json.dumps(shown).encode())


ENDPOINTS = (
    Endpoint("/", "GET", show, "public"),
    Endpoint("/user", "GET", show, "models.read"),
    Endpoint("/user", "POST", show, "inference"),
    Endpoint("/admin", "GET", show, "settings.read"),
    Endpoint("/admin/keys/{id}", "DELETE", show, "settings.read"),
    Endpoint("/models/{name:path}", "GET", show, "models.read"),
    Endpoint("/texts/{id:text}", "GET", show, "sessions"),
    Endpoint("/texts/{id:text}/pin", "POST", show, "sessions"),
)


def ask(target: str, key: str | None = None, *, method: str = "GET", headers: str = "") -> bytes:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"{method} {target} HTTP/1.1\r\nHost: h\r\n{authorization}{headers}\r\n".encode("latin-1")


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (ask("/"), 200, None),
        (ask("/user"), 401, "invalid_api_key"),
        (ask("/user", "wrong"), 401, "invalid_api_key"),
        (ask("/user", "user"), 200, None),
        (ask("/user", "user", headers="Authorization: Bearer admin\r\n"), 400, "bad_request"),
        (ask("/user", headers="X-Api-Key: user\r\n"), 200, None),
        (ask("/user", headers="X-Api-Key: wrong\r\n"), 401, "invalid_api_key"),
        (ask("/user", headers="X-Api-Key: user\r\nX-Api-Key: user\r\n"), 400, "bad_request"),
        (ask("/user", "wrong", headers="X-Api-Key: user\r\n"), 401, "invalid_api_key"),
        (ask("/admin"), 401, "invalid_api_key"),
        (ask("/admin", "user"), 403, "permission_denied"),
        (ask("/admin", "admin"), 200, None),
        (ask("/admin/keys/1", "user", method="DELETE"), 403, "permission_denied"),
        (ask("/nothing"), 404, "not_found"),
        (ask("/user", "user", method="DELETE"), 405, "method_not_allowed"),
        (ask("/user", method="DELETE"), 405, "method_not_allowed"),
        (ask("/user", method="HEAD"), 401, None),
        (ask("/user", "user", method="HEAD"), 200, None),
        (ask("/user", method="OPTIONS"), 200, None),
    ],
)
def test_access_belongs_to_the_route(request_bytes: bytes, status: int, code: str | None) -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            reply = await served.ask(request_bytes)
            assert reply.status == status
            if code is not None:
                assert reply.error["code"] == code

    run(main())


def test_who_may_not_is_told_whether_it_is_his_key_or_his_rights() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            narrow = (await served.ask(ask("/user", "narrow"))).error["message"]
            assert narrow == "This needs the permission models.read, which the scopes of this key leave out."
            other = (await served.ask(ask("/admin", "user"))).error["message"]
            assert other == "This needs the permission settings.read."

    run(main())


@pytest.mark.parametrize(
    "path",
    [
        "/admin/",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/%61dmin",
        "/admin%00",
        "/admin%2f",
        "/admin;x=1",
        "/admin%3b",
        "/ADMIN",
        "/admin%20",
        "/admin\\",
        "/user/..%2fadmin",
        "/models/",
        "/models/../admin",
        "/models/%2e%2e/admin",
        "/models/..%2fadmin",
        "/models/a//b",
        "/models/a%00b",
        "/models/%ff",
        "/admin/keys/",
        "/admin/keys/a/b",
        "/admin/keys/%2e%2e",
    ],
)
@pytest.mark.parametrize("key", [None, "user", "admin"])
def test_no_spelling_of_a_path_reaches_another_handler(path: str, key: str | None) -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            reply = await served.ask(ask(path, key))
            assert reply.status in (400, 404)
            assert reply.error["code"] in ("bad_request", "not_found")

    run(main())


def test_parameters_are_decoded_and_may_hold_slashes_where_declared() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            for path in ("/models/a/b:c", "/models/a%2Fb:c", "/models/a%2fb%3Ac"):
                assert json.loads((await served.ask(ask(path, "user"))).body) == {
                    "route": "/models/{name}",
                    "params": {"name": "a/b:c"},
                    "who": "n",
                }

    run(main())


def test_allow_names_every_method() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            assert (await served.ask(ask("/user", method="PUT"))).headers["allow"] == "GET, POST, HEAD, OPTIONS"
            assert (await served.ask(ask("/user", method="OPTIONS"))).headers["allow"] == "GET, POST, HEAD, OPTIONS"

    run(main())


def test_an_outage_of_the_authenticator_is_no_401() -> None:
    async def main() -> None:
        authenticator = FakeAuthenticator()
        authenticator.down = True
        async with serve(ENDPOINTS, authenticator=authenticator) as served:
            reply = await served.ask(ask("/user", "user"))
            assert (reply.status, reply.error["code"]) == (503, "overloaded")

    run(main())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.1:8000", 403),
    ],
)
def test_without_keys_a_foreign_host_name_is_refused(host: str, status: int) -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, loopback_only=True) as served:
            reply = await served.ask(f"GET /user HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert reply.status == status
            assert status == 200 or reply.error["code"] == "permission_denied"

    run(main())


def test_while_draining_only_public_routes_answer() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            served.edge.draining = True
            reply = await served.ask(ask("/user", "user"))
            assert (reply.status, reply.error["code"]) == (503, "shutting_down")
            assert reply.headers["connection"] == "close"
            assert (await served.ask(ask("/"))).status == 200

    run(main())


def test_a_safe_request_id_is_kept_and_any_other_replaced() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served:
            reply = await served.ask(ask("/", headers="X-Request-Id: my-id_1.2\r\n"))
            assert reply.headers["x-request-id"] == "my-id_1.2"
            for bad in ("x" * 65, "a b", "a\xff", 'a"b', ""):
                reply = await served.ask(ask("/", headers=f"X-Request-Id: {bad}\r\n"))
                assert len(reply.headers["x-request-id"]) == 24
                assert REQUEST_ID.fullmatch(reply.headers["x-request-id"].encode())

    run(main())


def test_the_access_log_has_one_line_without_secrets() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS, authenticator=FakeAuthenticator()) as served:
            await served.ask(ask("/user?api_key=secret", "user", headers="X-Request-Id: id1\r\n"))
            await until(lambda: "request_id" in served.log.getvalue())
            line = served.log.getvalue()
            assert "method=GET path=/user status=200 ms=" in line
            assert line.endswith(" key=k model=m\\n request_id=id1\n")
            assert line.count("\n") == 1
            assert "secret" not in line and "Bearer" not in line
            metrics = served.telemetry.render().decode()
            assert 'gateway_requests_total{route="/user",method="GET",status="200"} 1' in metrics

    run(main())


def test_unknown_paths_share_one_label() -> None:
    async def main() -> None:
        async with serve(ENDPOINTS) as served:
            await served.ask(ask("/a"))
            await served.ask(ask("/b"))
            metrics = served.telemetry.render().decode()
            assert 'gateway_requests_total{route="other",method="GET",status="404"} 2' in metrics

    run(main())


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat", "/v1/chat"),
        ("/v1/v1/chat", "/v1/chat"),
        ("/v1/v1/v1/chat", None),
        ("/v1/user", None),
        ("/v1/", None),
        ("/v1/v1/", None),
        ("/chat/x", None),
    ],
)
def test_a_base_url_without_v1_or_with_two_is_told(path: str, meant: str | None) -> None:
    router = Router([*ENDPOINTS, Endpoint("/v1/chat", "POST", show, "inference")])
    with pytest.raises(errors.GatewayError) as caught:
        router.match(path.encode())
    hint = "." if meant is None else f"; did you mean {meant}? Look at the client's base URL."
    assert (caught.value.code, caught.value.message) == ("not_found", f"There is nothing at this path{hint}")


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/v1/images/generations", "images"),
        ("/v1/files", "files"),
        ("/v1/filesystem", None),
        ("/images", None),
    ],
)
def test_what_only_providers_have_is_told(path: str, where: str | None) -> None:
    with pytest.raises(errors.GatewayError) as caught:
        Router(ENDPOINTS).match(path.encode())
    assert (caught.value.code, caught.value.status) == ("not_found", 404)
    hint = f" Of providers that are open for their own (passthrough) it is /v1/providers/<name>/{where}."
    assert caught.value.message.endswith("path." if where is None else hint)


def test_two_endpoints_for_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="two endpoints for GET /"):
        Router([ENDPOINTS[0], ENDPOINTS[0]])


def test_patterns_of_one_path_share_their_methods() -> None:
    router = Router(
        [
            Endpoint("/a/{id}", "GET", show, "settings.read"),
            Endpoint("/a/{id}", "DELETE", show, "settings.read"),
            *ENDPOINTS,
        ]
    )
    methods, parameters = router.match(b"/a/1")
    assert (sorted(methods), parameters) == (["DELETE", "GET"], {"id": "1"})
    with pytest.raises(GatewayError, match="Use GET, DELETE"):
        choose(methods, "POST")


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("a", "a"),
        ("a%2F..%2f%2Fb", "a/..//b"),
        ("%2E%2E", ".."),
        ("%0A%00", "\n\0"),
        ("%F0%9F%97%BC", "🗼"),
        ("%25", "%"),
    ],
)
def test_a_parameter_that_is_a_text_may_hold_any(target: str, value: str) -> None:
    router = Router(ENDPOINTS)
    methods, found = router.match(f"/texts/{target}".encode())
    assert (set(methods), found) == ({"GET"}, {"id": value})
    assert router.match(f"/texts/{target}/pin".encode())[1] == {"id": value}
    for path in ("/texts/", "/texts/a/b", "/texts/%FF", f"/models/{target}" if value != "a" else "/texts//pin"):
        if value in ("🗼", "%") and path.startswith("/models"):
            continue
        with pytest.raises(GatewayError):
            router.match(path.encode())


@pytest.mark.parametrize(
    ("proxies", "address"), [((), "127.0.0.1"), (("10.0.0.0/8",), "127.0.0.1"), (("127.0.0.0/8",), "203.0.113.9")]
)
def test_only_a_trusted_proxy_says_where_a_request_comes_from(proxies: tuple[str, ...], address: str) -> None:
    async def main() -> None:
        authenticator = FakeAuthenticator()
        async with serve(ENDPOINTS, ServerConfig(trusted_proxies=proxies), authenticator) as served:
            forwarded = "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 203.0.113.9\r\n"
            assert (await served.ask(ask("/user", "user", headers=forwarded))).status == 200
        assert authenticator.address == address

    run(main())
