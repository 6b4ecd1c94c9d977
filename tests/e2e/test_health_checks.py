"""Health checks of providers, through a real server: who is ill is passed over, and comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, free_port
from tests.e2e.upstreams import Fleet, Replica, until

KEY = "sk-of-the-provider-0123456789"
CONFIG = """
providers:
  - {{name: one, kind: vllm, base_url: "http://127.0.0.2:{port}/v1", api_key: {key}, health: &health
      {{interval_s: 0.1, timeout_s: 1, unhealthy_after: 2, healthy_after: 2}}}}
  - {{name: two, kind: openai-compatible, base_url: "http://127.0.0.3:{port}/v1", health: *health}}
routes:
  - name: both
    groups: [[{{provider: one, model: m}}, {{provider: two, model: m}}]]
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(Replica("127.0.0.2", "I am one"), Replica("127.0.0.3", "I am two"), port=free_port()) as running:
        yield running


@pytest.fixture(scope="module")
def server(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("front")
    with Server(folder, config=CONFIG.format(port=fleet.port, key=KEY)) as running:
        yield running


def served_by(server: Server, count: int) -> Counter[str]:
    with server.client() as client:
        body = {"model": "both", "messages": [{"role": "user", "content": "hi"}]}
        answers = [client.post("/v1/chat/completions", json=body) for _ in range(count)]
    return Counter(one.headers["x-gateway-target"] for one in answers if one.status_code == 200)


def test_who_is_ill_is_passed_over_and_comes_back(server: Server, fleet: Fleet) -> None:
    one, two = fleet.replicas
    until(lambda: one.checks > 2 and two.checks > 2)
    assert served_by(server, 10) == {"one/m": 5, "two/m": 5}
    one.well = False
    until(lambda: server.metric("gateway_target_healthy", target="one/m") == 0)
    assert served_by(server, 6) == {"two/m": 6}
    with server.client() as client:
        body = {"model": "both", "messages": [{"role": "user", "content": "hi"}]}
        request_id = client.post("/v1/chat/completions", json=body).headers["x-request-id"]
        decision = client.get(f"/v1/decisions/{request_id}").json()
        assert decision["passed_over"] == {"one/m": "its health check was answered with 503"}
        shown = {row["id"]: row for row in client.get("/admin/v1/targets").json()["data"]}
        assert shown["one/m"]["health"]["healthy"] is False
        assert shown["one/m"]["health"]["reason"] == "its health check was answered with 503"
        assert shown["two/m"]["health"]["healthy"] is True
        assert client.get("/health").status_code == 200
    fleet.shut(two)
    two.well = False
    one.well = True
    until(lambda: server.metric("gateway_target_healthy", target="one/m") == 1)
    until(lambda: server.metric("gateway_target_healthy", target="two/m") == 0)
    assert served_by(server, 6) == {"one/m": 6}
    fleet.open(two)
    two.well = True
    until(lambda: server.metric("gateway_target_healthy", target="two/m") == 1)
    assert served_by(server, 8)["two/m"] >= 3
    log = server.log.read_text()
    assert "the provider one is left alone: its health check was answered with 503" in log
    assert "the provider one is well again" in log
    assert KEY not in log


def test_checks_ask_for_what_the_kind_has(server: Server, fleet: Fleet) -> None:
    one, two = fleet.replicas
    assert one.paths == {"/health"} and two.paths == {"/v1/models"}
    assert all(f"authorization: Bearer {KEY}" in head for head in one.heads)
