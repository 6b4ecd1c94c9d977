"""A name of many addresses, through a real server whose resolver reads a file: each address is a target."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server, free_port
from tests.e2e.upstreams import Fleet, Replica, until

RESOLVER = """
import pathlib
import socket

usual = socket.getaddrinfo


def getaddrinfo(host, port, *args, **kwargs):
    if host != "house.test":
        return usual(host, port, *args, **kwargs)
    found = pathlib.Path(__file__).with_name("addresses").read_text().split()
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


socket.getaddrinfo = getaddrinfo
"""
CONFIG = """
providers:
  - {{name: house, kind: llama-server, base_url: "http://house.test:{port}/v1", addresses: each, resolve_every_s: 0.1,
      health: {{interval_s: 0.1, unhealthy_after: 1, healthy_after: 1}}}}
routes:
  - {{name: house, groups: [[{{provider: house, model: m, price: {{input: "1", output: "1"}}}}]]}}
"""
BODY = {"model": "house", "messages": [{"role": "user", "content": "hi"}]}


class House:
    """The server, the replicas behind the name, and what the resolver says of it."""

    def __init__(self, server: Server, fleet: Fleet, folder: Path) -> None:
        self.server = server
        self.fleet = fleet
        self._file = folder / "addresses"

    def resolve(self, *replicas: Replica) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(" ".join(one.address for one in replicas))
        new.rename(self._file)
        if replicas:
            until(lambda: {one["address"] for one in self.targets()} == {one.address for one in replicas})

    def targets(self) -> list[dict[str, Any]]:
        with self.server.client() as client:
            return list(client.get("/admin/v1/targets").json()["data"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder, port = tmp_path_factory.mktemp("resolver"), free_port()
    (folder / "sitecustomize.py").write_text(RESOLVER)
    (folder / "addresses").write_text("127.0.0.2 127.0.0.3")
    replicas = [Replica(f"127.0.0.{i}", f"I am {i}") for i in (2, 3, 4, 5)]
    with (
        Fleet(*replicas, port=port) as fleet,
        Server(
            tmp_path_factory.mktemp("front"), config=CONFIG.format(port=port), PYTHONPATH=f"{folder}:{ROOT}"
        ) as server,
    ):
        running = House(server, fleet, folder)
        running.resolve(*replicas[:2])
        yield running


def asked(house: House) -> list[int]:
    return [len(one.bodies) for one in house.fleet.replicas]


def test_each_address_is_a_target_and_a_conversation_stays_at_one(house: House) -> None:
    two, three, *_ = house.fleet.replicas
    before = asked(house)
    with house.server.client() as client:
        spread = [client.post("/v1/chat/completions", json=BODY) for _ in range(30)]
        assert {one.status_code for one in spread} == {200}
        names = Counter(one.headers["x-gateway-target"] for one in spread)
        assert len(names) == 2 and min(names.values()) > 3
        assert all(name.startswith("house/m@") and "127.0" not in name for name in names)
        assert {one.headers["x-gateway-cost-usd"] for one in spread} == {"0.000012"}
        talks = {}
        for talk in map(str, range(12)):
            answers = [client.post("/v1/chat/completions", json=BODY | {"prompt_cache_key": talk}) for _ in range(3)]
            (talks[talk],) = {one.headers["x-gateway-target"] for one in answers}
        assert set(talks.values()) == set(names)
    assert [now - then for now, then in zip(asked(house), before, strict=True)][2:] == [0, 0]
    assert all(f"host: house.test:{house.fleet.port}" in head for head in (*two.heads, *three.heads))
    until(lambda: all(one["health"]["checks"] > 0 and one["health"]["healthy"] for one in house.targets()))


def test_replicas_come_and_go_under_load_without_a_failed_request(house: House) -> None:
    two, three, four, five = house.fleet.replicas
    statuses, ended = Counter[int](), threading.Event()

    def load(stream: bool) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=30) as client:
            while not ended.is_set():
                answer = client.post(f"{house.server.url}/v1/chat/completions", json=BODY | {"stream": stream})
                statuses[answer.status_code if "I am" in answer.text else 0] += 1

    loads = [threading.Thread(target=load, args=(i % 2 == 0,)) for i in range(4)]
    for one in (two, three, four, five):
        one.delay_s = 0.02
    for thread in loads:
        thread.start()
    try:
        house.resolve(two, three, four, five)
        until(lambda: min(asked(house)[2:]) > 2)
        house.resolve(three, four, five)
        seen = asked(house)[0]
        house.fleet.shut(two)
        house.resolve(four, five)
        house.fleet.shut(three)
        house.resolve()  # Nobody knows the name any more, which changes nothing.
        now = sum(asked(house))
        until(lambda: sum(asked(house)) > now + 20)
        assert asked(house)[0] <= seen + len(loads)
        house.fleet.open(two)
        house.resolve(two)
        now = asked(house)[0]
        until(lambda: asked(house)[0] > now + 20)
    finally:
        ended.set()
        for thread in loads:
            thread.join()
    assert set(statuses) == {200}
    assert house.server.metric("gateway_target_requests_total") > 0
    with house.server.client() as client:
        assert client.get("/health").status_code == 200


def test_a_replica_that_is_ill_is_passed_over_alone(house: House) -> None:
    two, three, *_ = house.fleet.replicas
    house.fleet.open(three)
    house.resolve(two, three)
    until(lambda: all(one["health"]["checks"] > 0 for one in house.targets()))
    three.well = False
    until(lambda: sorted(one["health"]["healthy"] for one in house.targets()) == [False, True])
    before = asked(house)
    with house.server.client() as client:
        assert {client.post("/v1/chat/completions", json=BODY).status_code for _ in range(6)} == {200}
    assert asked(house)[0] == before[0] + 6
    three.well = True
