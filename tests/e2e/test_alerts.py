"""Alerts of the real server at a real webhook: signed, once each, also after a restart."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.state.sqlite import FILE_NAME
from tests.e2e.server import ROOT, Server
from tests.e2e.test_money import gateway, key, until
from tests.e2e.test_scopes import ask
from tests.gateway.alerts.test_channels import SECRET, Receiver
from tests.threads import answering


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with answering(Receiver()) as server:
        yield server


def failed(server: Server) -> int:
    """How many alerts wait for another try. Who is stopped before it says so leaves them alone for a while."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "state" / FILE_NAME)) as database:
        return int(database.execute("SELECT COUNT(*) FROM alerts WHERE outcome = 'failed'").fetchone()[0])


def test_a_budget_and_a_wallet_are_told_of_once(tmp_path: Path, receiver: Receiver) -> None:
    url = f"http://127.0.0.1:{receiver.server_port}/"
    model = {"name": "demo", "path": f"{ROOT}/adapters/llama_cpp/demo/demo.gguf", "engine": {"threads": 1}}
    config = {
        "models": [model | {"price": {"input": "10", "output": "100"}}],
        "alerts": {"wallet_low_usd": "0.001", "webhook": {"url": url, "secret": SECRET, "private_addresses": True}},
    }
    server = Server(tmp_path, config=json.dumps(config))
    receiver.status = 503
    with server:
        gateway(server, "wallets", "open", "purse", "0.0015")
        text = key(server, "--budget", "0.001/day", "--wallet", "purse")
        while ask(server, text).status_code == 200:
            pass
        until(lambda: failed(server) == 2, "both were tried")
        told = {json.loads(body)["type"]: json.loads(body) for _, body in receiver.got}
        assert set(told) == {"budget.threshold", "wallet.low"}
        assert told["budget.threshold"]["percent"] == 80 and told["wallet.low"]["subject"] == "wallet:purse"
        assert all(headers["x-gateway-signature"].startswith("t=") for headers, _ in receiver.got)
    receiver.got.clear()
    receiver.status = 204
    with server:
        assert ask(server, text).status_code == 429
        until(lambda: len(receiver.got) == 2, "what waited was told after the restart")
        assert server.metric("gateway_alert_deliveries_total", channel="webhook", outcome="sent") == 2
        assert server.metric("gateway_alerts_total") == 0, "the alerts themselves are old"
