"""The settings of what is kept of the past, and of who is told when money runs out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from gateway.config_limits import Section, Usd
from gateway.secret import Secret

# What is told twice because an answer was lost has to meet what was told first, so a month is kept at least.
Days = Annotated[int, Meta(ge=31, le=36_500)]

Address = Annotated[str, Meta(min_length=3, max_length=320)]
_ADDRESS = re.compile(r"[^\s@<>,]+@[^\s@<>,]+")


class RetentionConfig(Section, frozen=True, kw_only=True):
    """For how many days the ledger's entries and the audit log are kept; null: for ever. Balances and sums stay."""

    ledger_days: Days | None = None
    audit_days: Days | None = None


class WebhookConfig(Section, frozen=True, kw_only=True):
    """Where alerts are posted as JSON, signed with `secret`."""

    url: Annotated[str, Meta(min_length=1, max_length=2000)] | None = None
    secret: Secret | None = None
    private_addresses: bool = False
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10


class SmtpConfig(Section, frozen=True, kw_only=True):
    """The server that mails alerts."""

    host: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    port: Annotated[int, Meta(ge=1, le=65_535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    password: Secret | None = None
    sender: Address | None = None
    recipients: Annotated[tuple[Address, ...], Meta(max_length=50)] = ()
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 10


class AlertsConfig(Section, frozen=True, kw_only=True):
    """Who is told when a budget reaches a threshold, a wallet falls to `wallet_low_usd` or has paused its keys."""

    wallet_low_usd: Usd = "1"
    webhook: WebhookConfig = WebhookConfig()
    smtp: SmtpConfig = SmtpConfig()


def alert_conflicts(alerts: AlertsConfig) -> Iterator[tuple[str, str]]:
    """What no single setting can say, as (path, problem)."""
    webhook, smtp = alerts.webhook, alerts.smtp
    if webhook.url is not None and webhook.secret is None:
        yield (
            "alerts.webhook.secret",
            "a webhook needs a secret, by which its receiver knows our alerts",
        )
    if webhook.url is not None and not _is_web_address(webhook.url):
        yield "alerts.webhook.url", "expected a web address such as https://example.com/alerts"
    if smtp.host is not None and (smtp.sender is None or not smtp.recipients):
        yield "alerts.smtp", "mail needs a sender and recipients"
    for path, address in (
        ("sender", smtp.sender),
        *((f"recipients[{i}]", one) for i, one in enumerate(smtp.recipients)),
    ):
        if address is not None and not _ADDRESS.fullmatch(address):
            yield f"alerts.smtp.{path}", "expected an address such as ops@example.com"
    if (smtp.username is None) != (smtp.password is None):
        yield "alerts.smtp", "username and password belong together"
    if smtp.username is not None and smtp.security == "none":
        yield "alerts.smtp.security", "a password is not sent without TLS"


def _is_web_address(url: str) -> bool:
    """Whether it can be asked as it stands; credentials have no place in it."""
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and parts.hostname is not None
    except ValueError:
        return False
    return usable and parts.scheme in ("http", "https") and "@" not in parts.netloc and not re.search(r"\s", url)
