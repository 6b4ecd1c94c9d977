"""Routes made, changed and removed on one of two real gateways while clients of both use them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.e2e.test_replicas import until
from tests.stores import Postgres, Valkey

SEEN_S_MAX = 5.0
UPSTREAM = "models: [{name: theirs, script: canned.yaml}]\n"
SECRET = ADMIN_KEY


class World:
    """Two providers, and two gateways that share their state and know nothing else."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.providers = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            (folder / name / "canned.yaml").write_text(f"answers: [{{text: I am {name}}}]\n")
            self.providers.append(stack.enter_context(Server(folder / name, config=UPSTREAM)))
        self.postgres, self.valkey = stack.enter_context(Postgres()), stack.enter_context(Valkey())
        self.environ = {
            "GATEWAY_DATABASE_URL": self.postgres.database(),
            "GATEWAY_REDIS_URL": self.valkey.url,
            "GATEWAY_STATE__REPLICAS": "2",
            "GATEWAY_AUTH__PEPPER": "the-same-pepper-everywhere",
            "GATEWAY_AUTH__SECRETS_KEY": "the-same-key-everywhere",
        }
        self.folder = folder
        self.first, self.second = (stack.enter_context(self.gateway(name)) for name in ("first", "second"))

    def gateway(self, name: str) -> Server:
        return Server(self.folder / name, config="models: []", ready=False, **self.environ)

    def ask(self, server: Server, method: str, path: str, body: object = None) -> httpx.Response:
        with server.client() as client:
            return client.request(method, f"/admin/v1{path}", json=body)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        made = World(tmp_path_factory.mktemp("served"), stack)
        for name, provider in zip(("one", "two"), made.providers, strict=True):
            body = {"name": name, "kind": "gateway", "base_url": f"{provider.url}/v1"}
            assert made.ask(made.first, "POST", "/providers", body).status_code == 201
            secret = {"api_key": SECRET}
            assert made.ask(made.first, "PUT", f"/providers/{name}/secret", secret).status_code == 200
        yield made


def names(server: Server) -> set[str]:
    with server.client() as client:
        return {one["id"] for one in client.get("/v1/models").json()["data"]}


def say(server: Server, model: str) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        return answer.choices[0].message.content or ""


def groups(*weights: int) -> list[list[dict[str, object]]]:
    pairs = zip(("one", "two"), weights, strict=True)
    return [[{"provider": name, "model": "theirs", "weight": weight} for name, weight in pairs if weight]]


def test_a_route_is_served_everywhere_changed_under_load_and_gone_everywhere(world: World) -> None:
    assert world.ask(world.first, "POST", "/routes", {"name": "both", "groups": groups(1, 0)}).status_code == 201
    assert say(world.first, "both") == "I am one", "where it was made it is served at once"
    until(lambda: "both" in names(world.second), SEEN_S_MAX)
    assert say(world.second, "both") == "I am one"

    told: Counter[str] = Counter()
    failures: list[BaseException] = []
    stop = threading.Event()

    def client(server: Server) -> None:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as sdk:
            while not stop.is_set():
                try:
                    messages = [{"role": "user", "content": "hi"}]
                    stream = sdk.chat.completions.create(model="both", messages=messages, stream=True)  # type: ignore[call-overload]
                    told["".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)] += 1
                except Exception as error:
                    failures.append(error)
                    return

    threads = [threading.Thread(target=client, args=(server,)) for server in (world.first, world.second) * 2]
    for thread in threads:
        thread.start()
    try:
        for weights in ((1, 3), (0, 1), (5, 1), (0, 1)):
            before = told.total()
            assert world.ask(world.second, "PATCH", "/routes/both", {"groups": groups(*weights)}).status_code == 200
            until(lambda before=before: told.total() > before + 20 or bool(failures), 30)  # type: ignore[misc]
        until(lambda: {say(server, "both") for server in (world.first, world.second)} == {"I am two"}, SEEN_S_MAX)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert set(told) == {"I am one", "I am two"}

    shown = world.ask(world.first, "GET", "/routes/both").json()
    assert shown["version"] == 5 and shown["targets"][0]["standing"]["requests"] > 0
    assert world.ask(world.first, "DELETE", "/routes/both").status_code == 204
    until(lambda: "both" not in names(world.second), SEEN_S_MAX)
    with pytest.raises(openai.NotFoundError):
        say(world.first, "both")


def test_all_of_it_comes_back_after_a_kill(world: World) -> None:
    world.ask(world.first, "POST", "/routes", {"name": "kept", "groups": groups(1, 0)})
    until(lambda: "kept" in names(world.second), SEEN_S_MAX)
    world.second.process.kill()
    world.second.process.wait()
    world.second.__enter__()
    assert say(world.second, "kept") == "I am one"
    entries = world.ask(world.second, "GET", "/audit?action=provider.secret").json()["data"]
    assert {entry["subject"] for entry in entries} == {"one", "two"}


def test_changes_come_through_without_redis_and_outages_change_nothing(world: World) -> None:
    world.valkey.kill()
    try:
        answer = world.ask(world.first, "POST", "/routes", {"name": "alone", "groups": groups(0, 1)})
        assert answer.status_code == 201
        until(lambda: "alone" in names(world.second), SEEN_S_MAX)
    finally:
        world.valkey.start()
    world.postgres.stop()
    try:
        assert world.ask(world.first, "DELETE", "/routes/alone").status_code == 503
        assert {"alone"} <= names(world.first) & names(world.second)
    finally:
        world.postgres.start()


def test_no_secret_is_in_any_answer_log_or_table(world: World) -> None:
    """The provider's key is the gateways' own admin key here, which is in none of these places either."""
    for server in (world.first, world.second):
        until(lambda server=server: world.ask(server, "GET", "/providers").status_code == 200, 30)  # type: ignore[misc]
        for path in ("/providers", "/providers/one", "/routes", "/settings", "/audit"):
            assert SECRET not in world.ask(server, "GET", path).text
        assert SECRET not in server.log.read_text()
    world.postgres.stop()
    try:
        files = [file for file in world.postgres.directory.rglob("*") if file.is_file()]
        assert len(files) > 100
        assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    finally:
        world.postgres.start()
