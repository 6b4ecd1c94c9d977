"""The ways in which alerts leave the house: a signed webhook, and mail."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import time
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import formatdate

import httpcore

from gateway.config_money import SmtpConfig, WebhookConfig
from gateway.public_network import FAILURES, Resolve, network_to, resolve
from gateway.secret import signature


class NotDelivered(Exception):
    """It was not taken; the message says why, without secrets."""


class Webhook:
    """Posts alerts to an address. The receiver answers 2xx; a redirect is a failure."""

    def __init__(
        self,
        config: WebhookConfig,
        *,
        now_s: Callable[[], float] = time.time,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        assert config.url is not None and config.secret is not None
        self._url = config.url
        self._secret = config.secret
        self._timeout_s = config.timeout_s
        self._now_s = now_s
        self._ssl_context: ssl.SSLContext | None = None
        self._network = network_to(private_addresses=config.private_addresses, resolve=resolve, network=network)

    async def send(self, id: str, subject: str, payload: bytes) -> None:
        """Raises NotDelivered."""
        headers = {
            "content-type": "application/json",
            "user-agent": "inference-gateway",
            "x-gateway-alert-id": id,
            "x-gateway-signature": signature(self._secret, round(self._now_s()), payload),
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(headers, payload)
        except (TimeoutError, OSError, *FAILURES) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise NotDelivered(f"it answered with status {status}")

    async def _post(self, headers: dict[str, str], payload: bytes) -> int:
        # Reading the system's certificates takes tens of milliseconds.
        self._ssl_context = self._ssl_context or await asyncio.to_thread(ssl.create_default_context)
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._ssl_context, network_backend=self._network, retries=0
            ) as pool,
            pool.stream("POST", self._url, headers=list(headers.items()), content=payload) as response,
        ):
            return response.status


class Mail:
    """Mails alerts through one server. The library is a blocking one, so each mail has a thread for its time."""

    def __init__(self, config: SmtpConfig, *, ssl_context: ssl.SSLContext | None = None) -> None:
        assert config.host is not None and config.sender is not None
        self._config = config
        self._ssl_context = ssl_context

    async def send(self, id: str, subject: str, payload: bytes) -> None:
        """Raises NotDelivered."""
        message = EmailMessage()
        message["From"] = self._config.sender
        message["To"] = ", ".join(self._config.recipients)
        message["Subject"] = " ".join(subject.split())
        message["Date"] = formatdate()
        message["X-Gateway-Alert-Id"] = id
        message.set_content(f"{subject}\n\n{payload.decode()}\n")
        try:
            await asyncio.to_thread(self._deliver, message)
        except (smtplib.SMTPException, OSError) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}") from error

    def _deliver(self, message: EmailMessage) -> None:
        config, context = self._config, self._ssl_context or ssl.create_default_context()
        host = config.host or ""
        if config.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, config.port, timeout=config.timeout_s, context=context)
        else:
            server = smtplib.SMTP(host, config.port, timeout=config.timeout_s)
        with server:
            if config.security == "starttls":
                server.starttls(context=context)
            if config.username is not None and config.password is not None:
                server.login(config.username, config.password.reveal())
            server.send_message(message)
