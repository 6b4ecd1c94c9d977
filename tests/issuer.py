"""An issuer of tokens on a loopback address: keys of every kind, tokens that are right and wrong, and a real server."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "gateway"
HEADER = {"alg": "RS256", "kid": "rsa", "typ": "JWT"}
SECRET = b"a symmetric key of at least thirty-two bytes"

Sign = Callable[[bytes], bytes]


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: dict[str, Any] | bytes, claims: dict[str, Any] | bytes, sign: Sign) -> str:
    """A token of any header and claims, checked by nobody."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    text = ".".join(encode(part) for part in parts)
    return f"{text}.{encode(sign(text.encode()))}"


class Keys:
    """An issuer's key pairs by key id: `rsa`, `p256`, `p384`, `ed`, and `weak`, which is too short."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.weak = rsa.generate_private_key(65537, 1024)
        self.p256 = ec.generate_private_key(ec.SECP256R1())
        self.p384 = ec.generate_private_key(ec.SECP384R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()

    def jwks(self) -> list[dict[str, Any]]:
        """The public half, and beside it what must not be used."""
        return [
            {"kid": "rsa", "use": "sig"} | RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True),
            {"kid": "weak"} | RSAAlgorithm.to_jwk(self.weak.public_key(), as_dict=True),
            {"kid": "p256", "alg": "ES256"} | ECAlgorithm.to_jwk(self.p256.public_key(), as_dict=True),
            {"kid": "p384"} | ECAlgorithm.to_jwk(self.p384.public_key(), as_dict=True),
            {"kid": "ed"} | OKPAlgorithm.to_jwk(self.ed.public_key(), as_dict=True),
            {"kid": "private"} | RSAAlgorithm.to_jwk(self.rsa, as_dict=True),
            {"kid": "encryption"} | RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True) | {"use": "enc"},
            {"kid": "symmetric", "kty": "oct", "k": encode(SECRET), "alg": "HS256"},
            {"kid": "broken", "kty": "RSA", "n": 5, "e": None},
            "not even a key",  # type: ignore[list-item]
        ]

    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def by_rsa(self, data: bytes) -> bytes:
        return self.rsa.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def by_weak(self, data: bytes) -> bytes:
        return self.weak.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def by_p256(self, data: bytes) -> bytes:
        return _raw(self.p256.sign(data, ec.ECDSA(hashes.SHA256())), 32)

    def by_p384(self, data: bytes) -> bytes:
        return _raw(self.p384.sign(data, ec.ECDSA(hashes.SHA256())), 48)

    def by_ed(self, data: bytes) -> bytes:
        return self.ed.sign(data)


def _raw(signature: bytes, size: int) -> bytes:
    """The two numbers of an ECDSA signature as RFC 7518 section 3.4 writes them."""
    r, s = decode_dss_signature(signature)
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def by_secret(secret: bytes) -> Sign:
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


def wrong_tokens(keys: Keys, claims: dict[str, Any]) -> dict[str, str]:
    """Every way in which a token of otherwise good `claims` can be wrong."""

    def header(**changes: Any) -> str:
        return signed(HEADER | changes, claims, keys.by_rsa)

    good = header()
    own_key = RSAAlgorithm.to_jwk(keys.rsa.public_key(), as_dict=True)
    return {
        "none": signed({"alg": "none", "kid": "rsa"}, claims, lambda data: b""),
        "None": signed({"alg": "None", "kid": "rsa"}, claims, lambda data: b""),
        "HS256 with the public key": signed(HEADER | {"alg": "HS256"}, claims, by_secret(keys.public_pem())),
        "HS256 with a key of the set": signed({"alg": "HS256", "kid": "symmetric"}, claims, by_secret(SECRET)),
        "wrong curve": signed({"alg": "ES256", "kid": "p384"}, claims, keys.by_p384),
        "another key's curve": signed({"alg": "ES256", "kid": "p256"}, claims, keys.by_p384),
        "algorithm of another type": signed({"alg": "ES256", "kid": "rsa"}, claims, keys.by_rsa),
        "algorithm that is not allowed": header(alg="RS384"),
        "private key in the set": header(kid="private"),
        "key for encryption": header(kid="encryption"),
        "broken key": header(kid="broken"),
        "short RSA key": signed(HEADER | {"kid": "weak"}, claims, keys.by_weak),
        "crit": header(crit=["exp"]),
        "b64": header(crit=["b64"], b64=False),
        "jku": header(jku="https://evil.example/jwks"),
        "jwk": header(jwk=own_key),
        "x5u": header(x5u="https://evil.example/cert"),
        "x5c": header(x5c=["MIIB"]),
        "another type of token": header(typ="logout+jwt"),
        "no kid": signed({"alg": "RS256"}, claims, keys.by_rsa),
        "kid of another type": header(kid=["rsa"]),
        "long kid": header(kid="k" * 1000),
        "no alg": signed({"kid": "rsa"}, claims, keys.by_rsa),
        "signed by another key": signed(HEADER, claims, Keys().by_rsa),
        "changed claims": good.replace(good.split(".")[1], encode(json.dumps(claims | {"sub": "root"}).encode())),
        "no signature": good[: good.rindex(".") + 1],
        "not base64": "!!.??.**",
        "only dots": "..",
        "header is no object": signed(b"[1]", claims, keys.by_rsa),
        "header is not UTF-8": signed(b'{"alg": "\xff"}', claims, keys.by_rsa),
        "deep header": signed(b'{"a":' * 700, claims, keys.by_rsa),
        "deep claims": signed(HEADER, b'{"a":' * 700, keys.by_rsa),
        "claims are no object": signed(HEADER, b'"text"', keys.by_rsa),
    } | _wrong_claims(keys, claims)


def _wrong_claims(keys: Keys, claims: dict[str, Any]) -> dict[str, str]:
    now_s = claims["exp"] - 60

    def claim(**changes: Any) -> str:
        changed = {name: value for name, value in (claims | changes).items() if value is not None}
        return signed(HEADER, changed, keys.by_rsa)

    return {
        "no exp": claim(exp=None),
        "exp as text": claim(exp="9999999999"),
        "exp true": claim(exp=True),
        "expired": claim(exp=now_s - 3600),
        "far exp": claim(exp=now_s + 40 * 86_400),
        "huge exp": claim(exp=10**400),
        "long ago issued": claim(iat=now_s - 40 * 86_400),
        "issued in the future": claim(iat=now_s + 3000),
        "not valid yet": claim(nbf=now_s + 3000),
        "wrong iss": claim(iss="https://evil.example"),
        "iss with a slash": claim(iss=claims["iss"] + "/"),
        "iss as list": claim(iss=[claims["iss"]]),
        "no iss": claim(iss=None),
        "wrong aud": claim(aud="other"),
        "aud that contains ours": claim(aud=AUDIENCE + "2"),
        "no aud": claim(aud=None),
        "aud of other types": claim(aud=[AUDIENCE, 1]),
        "empty aud": claim(aud=[]),
        "no sub": claim(sub=None),
        "empty sub": claim(sub=""),
        "sub of another type": claim(sub=7),
        "too long": claim(padding="x" * 8192),
    }


class Issuer:
    """`with Issuer(keys) as issuer:` serves its configuration and keys at `issuer.url` and counts who asks for keys."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.key_requests = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Issuer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def claims(self, now_s: float, **changes: Any) -> dict[str, Any]:
        """Claims that are good for a minute."""
        times = {"exp": int(now_s) + 60, "iat": int(now_s), "nbf": int(now_s)}
        return {"iss": self.url, "aud": AUDIENCE, "sub": "alice"} | times | changes

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document: dict[str, Any] = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                if self.path == "/keys":
                    issuer.key_requests += 1
                    document = {"keys": issuer.keys.jwks()}
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
