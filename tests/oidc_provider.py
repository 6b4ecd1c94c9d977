"""A real OpenID provider on a loopback address: idpyoidc behind a small web server, in a process of its own.

It demands PKCE and the client's secret, honours a code once, names itself in its answers (RFC 9207), puts the e-mail
address into the ID token and the groups into UserInfo only. Whoever comes to log in is the `user` of the moment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from tests.stores import free_port

CLIENT = "gateway"
SECRET = "the-secret-of-the-client"
START_S_MAX = 30
SYMMETRIC = [{"type": "OCT", "use": ["enc"], "kid": "enc"}, {"type": "OCT", "use": ["sig"], "kid": "sig"}]


class Provider:
    """`with Provider() as provider:` serves it at `provider.url`, with nobody known yet, for the gateway that is told
    to come back to `redirect_uri`. It keeps its signing keys when it is stopped and started."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.redirect_uri = ""
        self._directory = tempfile.TemporaryDirectory(prefix="gateway-oidc-")

    def __enter__(self) -> Provider:
        self.start()
        return self

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.oidc_provider", str(self.port), self.redirect_uri, self._directory.name]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + START_S_MAX
        while True:
            try:
                httpx.get(f"{self.url}/.well-known/openid-configuration").raise_for_status()
                return
            except httpx.HTTPError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    raise
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.stop()
        self._directory.cleanup()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def sit_down(self, user: str, **claims: Any) -> None:
        """From now on this user is at the browser. The provider knows only these claims of them."""
        httpx.put(f"{self.url}/user/{user}", json=claims).raise_for_status()


def configuration(url: str, directory: str) -> dict[str, Any]:
    """What idpyoidc is told."""
    kind = "idpyoidc.server."
    keys = [{"type": "RSA", "use": ["sig"]}, {"type": "EC", "crv": "P-256", "use": ["sig"]}]
    code = {"crypt_conf": {"kwargs": {"keys": {"key_defs": SYMMETRIC}, "iterations": 1}}}
    cookie_names = {"session": "op", "register": "op_rp", "session_management": "op_sm"}
    return {
        "issuer": url,
        "httpc_params": {"timeout": 1},
        "preference": {"subject_types_supported": ["public"]},
        "key_conf": {
            "key_defs": keys,
            "uri_path": "jwks.json",
            "private_path": f"{directory}/keys.json",
            "read_only": False,
        },
        "token_handler_args": {
            "key_conf": {"key_defs": SYMMETRIC},
            "code": {"lifetime": 600, "kwargs": code},
            "token": {"class": f"{kind}token.jwt_token.JWTToken", "kwargs": {"lifetime": 3600}},
            "id_token": {
                "class": f"{kind}token.id_token.IDToken",
                "kwargs": {"base_claims": {"email": None, "email_verified": None}},
            },
        },
        "endpoint": {
            "provider_config": {
                "path": ".well-known/openid-configuration",
                "class": f"{kind}oidc.provider_config.ProviderConfiguration",
                "kwargs": {"client_authn_method": None},
            },
            "authorization": {
                "path": "authorization",
                "class": f"{kind}oidc.authorization.Authorization",
                "kwargs": {"client_authn_method": None, "response_types_supported": ["code"]},
            },
            "token": {
                "path": "token",
                "class": f"{kind}oidc.token.Token",
                "kwargs": {"client_authn_method": ["client_secret_basic"]},
            },
            "userinfo": {"path": "userinfo", "class": f"{kind}oidc.userinfo.UserInfo", "kwargs": {}},
        },
        "add_ons": {"pkce": {"function": f"{kind}oauth2.add_on.pkce.add_support", "kwargs": {"essential": True}}},
        "authentication": {
            "whoever sits there": {"acr": "test", "class": f"{kind}user_authn.user.NoAuthn", "kwargs": {"user": ""}}
        },
        "userinfo": {"class": f"{kind}user_info.UserInfo", "kwargs": {"db": {}}},
        "scopes_to_claims": {
            "openid": ["sub"],
            "email": ["email", "email_verified"],
            "profile": ["name"],
            "groups": ["groups"],
        },
        "template_dir": directory,
        "cookie_handler": {
            "class": f"{kind}cookie_handler.CookieHandler",
            "kwargs": {"keys": {"key_defs": SYMMETRIC}, "name": cookie_names},
        },
    }


def serve(port: int, redirect_uri: str, directory: str) -> None:
    from idpyoidc.server import Server
    from idpyoidc.server.configure import OPConfiguration
    from idpyoidc.server.exception import UnAuthorizedClient

    url = f"http://127.0.0.1:{port}"
    provider = Server(OPConfiguration(configuration(url, directory), base_path=directory), cwd=directory)
    provider.context.cdb[CLIENT] = {
        "client_secret": SECRET,
        "redirect_uris": [(redirect_uri, {})],
        "token_endpoint_auth_method": "client_secret_basic",
        "response_types_supported": ["code"],
        "allowed_scopes": ["openid", "email", "profile", "groups"],
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/jwks.json":
                self._answer(200, {}, provider.keyjar.export_jwks_as_json())
            else:
                self._endpoint(parts.path, dict(parse_qsl(parts.query)))

        def do_POST(self) -> None:
            self._endpoint(self.path, dict(parse_qsl(self._body())))

        def do_PUT(self) -> None:
            user = self.path.rpartition("/")[2]
            provider.context.userinfo.db[user] = json.loads(self._body())
            provider.context.authn_broker["whoever sits there"]["method"].user = user
            self._answer(204, {}, "")

        def _endpoint(self, path: str, parameters: dict[str, str]) -> None:
            endpoint = next(one for one in provider.endpoint.values() if f"/{one.endpoint_path}" == path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            info = {"headers": headers, "method": self.command, "url": url + self.path, "cookie": []}
            try:
                request = endpoint.parse_request(parameters, http_info=info)
            except UnAuthorizedClient:
                self._answer(401, {}, json.dumps({"error": "invalid_client"}))
                return
            given = request if "error" in request else endpoint.process_request(request, http_info=info)
            if "error" in given:
                self._answer(400, {}, json.dumps({"error": given["error"]}))
                return
            answer = endpoint.do_response(request=request, **given)["response"]
            if path == "/authorization":
                self._answer(302, {"location": answer}, "")
            else:
                self._answer(200, {"content-type": "application/json"}, answer)

        def _body(self) -> str:
            return self.rfile.read(int(self.headers.get("content-length", 0))).decode()

        def _answer(self, status: int, headers: dict[str, str], body: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])
