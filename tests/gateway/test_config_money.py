from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ConfigError, load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alerts:\n  webhook: {url: 'https://example.com/x'}\n", "at alerts.webhook.secret: a webhook needs a secret"),
        (
            "alerts:\n  webhook: {url: 'ftp://example.com', secret: 0123456789abcdef}\n",
            "at alerts.webhook.url: expected",
        ),
        ("alerts:\n  webhook: {url: 'https:///x', secret: 0123456789abcdef}\n", "expected a web address such as"),
        (
            "alerts:\n  webhook: {url: 'https://u:p@example.com', secret: 0123456789abcdef}\n",
            "at alerts.webhook.url: expected",
        ),
        ("alerts:\n  smtp: {host: mail}\n", "at alerts.smtp: mail needs a sender and recipients"),
        ("alerts:\n  smtp: {username: me}\n", "at alerts.smtp: username and password belong together"),
        (
            "alerts:\n  smtp: {username: me, password: 0123456789abcdef, security: none}\n",
            "at alerts.smtp.security: a password is not sent without TLS",
        ),
        (
            "alerts:\n  smtp: {recipients: ['a, b@c'], sender: a@b}\n",
            "at alerts.smtp.recipients[0]: expected",
        ),
        ("state:\n  retention: {ledger_days: 30}\n", ":2: at state.retention.ledger_days: expected"),
        ("limits:\n  rules: [{scope: key, time_zone: Mars}]\n", "no time zone is called 'Mars'"),
        (
            "limits:\n  rules: [{scope: key, rates: [{unit: tokens, limit: 1}]}]\n",
            "a rate has either window_s or period",
        ),
    ],
)
def test_settings_about_money_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")
