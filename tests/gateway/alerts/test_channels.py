"""Alerts to real servers on the loopback address: HTTP from the standard library, SMTP from aiosmtpd."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.alerts.channels import Mail, NotDelivered, Webhook
from gateway.config_money import SmtpConfig, WebhookConfig
from gateway.secret import Secret
from tests.stores import free_port
from tests.threads import answering

SECRET = "a-secret-of-the-webhook"


class Receiver(ThreadingHTTPServer):
    """Answers every POST with `status` and keeps it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 204
        self.got: list[tuple[dict[str, str], bytes]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.status)
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with answering(Receiver()) as server:
        yield server


def webhook(receiver: Receiver, **more: Any) -> Webhook:
    url = f"http://127.0.0.1:{receiver.server_port}/alerts?x=1"
    config = WebhookConfig(url=url, secret=Secret(SECRET), private_addresses=True)
    return Webhook(msgspec.structs.replace(config, **more), now_s=lambda: 1_800_000_000.4)


def test_a_webhook_gets_a_body_that_its_signature_belongs_to(receiver: Receiver) -> None:
    asyncio.run(webhook(receiver).send("key:k:80", "subject", b'{"a":1}'))
    ((headers, body),) = receiver.got
    digest = hmac.new(SECRET.encode(), b"1800000000." + body, hashlib.sha256).hexdigest()
    assert body == b'{"a":1}' and headers["content-type"] == "application/json"
    assert headers["x-gateway-signature"] == f"t=1800000000,v1={digest}"
    assert headers["x-gateway-alert-id"] == "key:k:80"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_answers_otherwise_has_not_heard(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(NotDelivered, match=f"status {status}"):
        asyncio.run(webhook(receiver).send("i", "s", b"{}"))
    assert len(receiver.got) == 1, "redirects are not followed"


def test_a_private_address_is_refused_unless_it_is_allowed(receiver: Receiver) -> None:
    with pytest.raises(NotDelivered, match="not a public address"):
        asyncio.run(webhook(receiver, private_addresses=False).send("i", "s", b"{}"))
    assert receiver.got == []


def test_a_webhook_that_is_not_there(receiver: Receiver) -> None:
    hook = webhook(receiver, url="http://127.0.0.1:1/")
    with pytest.raises(NotDelivered):
        asyncio.run(hook.send("i", "s", b"{}"))


class Post:
    """Takes mail from who knows the password."""

    def __init__(self) -> None:
        self.mail: list[Envelope] = []
        self.tls: list[bool] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.mail.append(envelope)
        self.tls.append(session.ssl is not None)
        return "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        return AuthResult(success=data.password == b"mail-password-0123", handled=False)


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's context with a certificate for `localhost`, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=2100))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*private))
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "certificate.pem"))


def mail(port: int, **more: Any) -> SmtpConfig:
    config = SmtpConfig(
        host="localhost", port=port, sender="gateway@example.com", recipients=("a@example.com", "b@x.org")
    )
    return msgspec.structs.replace(config, **more)


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
def test_mail_goes_through_a_real_server(tmp_path: Path, security: str) -> None:
    server_context, client_context = certificate(tmp_path)
    post, login = Post(), security != "none"
    options: dict[str, Any] = {"auth_require_tls": security == "starttls"}
    if login:
        options |= {"authenticator": post.authenticate, "auth_required": True}
    if security == "starttls":
        options |= {"tls_context": server_context, "require_starttls": True}
    implicit: dict[str, Any] = {"ssl_context": server_context} if security == "tls" else {}
    controller = Controller(post, hostname="localhost", port=free_port(), **implicit, **options)
    controller.start()
    try:
        more: dict[str, Any] = {"security": security}
        if login:
            more |= {"username": "gateway", "password": Secret("mail-password-0123")}
        sender = Mail(mail(controller.port, **more), ssl_context=client_context)
        asyncio.run(sender.send("key:k:80", "a budget\nis at 80 %", b'{"percent":80}'))
        ((envelope,), tls) = post.mail, post.tls
        assert (envelope.mail_from, envelope.rcpt_tos) == ("gateway@example.com", ["a@example.com", "b@x.org"])
        assert isinstance(envelope.content, bytes)
        text = envelope.content.decode()
        assert "Subject: a budget is at 80 %" in text and '{"percent":80}' in text
        assert tls == [security == "starttls"], "with TLS from the first byte the server does not see it"
        if login:
            wrong = Mail(
                mail(controller.port, **more | {"password": Secret("another-password-1")}), ssl_context=client_context
            )
            with pytest.raises(NotDelivered, match="Authentication"):
                asyncio.run(wrong.send("i", "s", b"{}"))
            with pytest.raises(NotDelivered, match="certificate"):
                asyncio.run(Mail(mail(controller.port, **more)).send("i", "s", b"{}"))
    finally:
        controller.stop()


def test_reading_certificates_does_not_hold_up_others(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def context() -> ssl.SSLContext:
        made.append(threading.current_thread())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr("gateway.alerts.channels.ssl.create_default_context", context)

    async def send_twice() -> None:
        hook = webhook(receiver)
        await hook.send("i", "s", b"{}")
        await hook.send("j", "s", b"{}")

    asyncio.run(send_twice())
    (thread,) = made
    assert thread is not threading.main_thread()
