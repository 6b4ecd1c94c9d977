"""More models than memory, through the real server: everybody is served or honestly refused, and memory holds."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.llama_cpp.process import resident_bytes
from tests.e2e.server import Server

MODELS = ("one", "two", "three")
# A worker of the tiny model takes about 75 MB.
MEMORY_BYTES = 190_000_000


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    engine = "{threads: 1, context_tokens: 512, cache_tokens: 512}"
    models = "\n".join(f"  - {{name: {name}, path: {tiny_model}, engine: {engine}}}" for name in MODELS)
    config = f"models:\n{models}\npool: {{memory_bytes: {MEMORY_BYTES}, residency_s_min: 0.5}}\n"
    with Server(tmp_path_factory.mktemp("pool"), config=config) as server:
        yield server


def ask(server: Server, model: str, **body: object) -> tuple[int, str | None]:
    """The status of a request, and when to come back."""
    with server.client() as client:
        answer = client.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 8} | body)
    return answer.status_code, answer.headers.get("retry-after")


def states(server: Server) -> dict[str, str]:
    with server.client() as client:
        return {name: model["state"] for name, model in client.get("/health").json()["models"].items()}


def test_as_many_are_loaded_as_fit_and_the_other_is_woken_by_a_request(server: Server) -> None:
    assert sorted(states(server).values()) == ["ready", "ready", "sleeping"]
    sleeper = next(name for name, state in states(server).items() if state == "sleeping")
    assert ask(server, sleeper) == (200, None)
    assert states(server)[sleeper] == "ready"


def test_random_access_to_more_models_than_fit(server: Server) -> None:
    draw, over = random.Random(1), threading.Event()
    taken: list[int] = []

    def watch() -> None:
        while not over.wait(0.05):
            taken.append(sum(map(resident_bytes, server.workers())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began_s = time.monotonic()
    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda name: ask(server, name), [draw.choice(MODELS) for _ in range(160)]))
    over.set()
    watcher.join()
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 503} and statuses[200] > 100, statuses
    assert all(after is not None and int(after) >= 1 for status, after in answers if status == 503)
    assert max(taken) <= MEMORY_BYTES
    assert time.monotonic() - began_s < 120, "nobody waits for ever"


def test_a_conversation_outlives_the_sleep_of_its_model(server: Server) -> None:
    def turn(*texts: str) -> int:
        messages = [
            {"role": "user" if index % 2 == 0 else "assistant", "content": text} for index, text in enumerate(texts)
        ]
        body = {"model": "one", "messages": messages, "max_tokens": 8, "prompt_cache_key": "kept", "temperature": 0}
        with server.client() as client:
            answer = client.post("/v1/chat/completions", json=body).json()
        said.append(answer["choices"][0]["message"]["content"])
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    said: list[str] = []
    history = "The weather in Paris and in London is the same. " * 5
    turn(history)
    while states(server)["one"] == "ready":
        assert {ask(server, "two")[0], ask(server, "three")[0]} <= {200, 503}
    # It is listed while the model is away, and there is one that is deleted without waking it.
    with server.client() as client:
        kept = {one["key"]: one for one in client.get("/v1/sessions", params={"model": "one"}).json()["data"]}
        assert kept["kept"]["tier"] == "disk" and kept["kept"]["tokens"] > 40, kept
        client.post("/admin/v1/pool/one/unload")
        assert client.get("/v1/sessions/kept").json()["tokens"] == kept["kept"]["tokens"]
        assert states(server)["one"] == "stopped"
        client.post("/admin/v1/pool/one/load")
    while states(server)["one"] != "ready":
        time.sleep(0.05)
    assert turn(history, said[0], "And now?") > 40
    with server.client() as client:
        client.post("/admin/v1/pool/one/unload")
        until_gone = time.monotonic() + 30
        while (gone := client.delete("/v1/sessions/kept")).status_code == 503 and time.monotonic() < until_gone:
            time.sleep(0.1)
        assert gone.status_code == 200, gone.text
        assert client.get("/v1/sessions/kept").status_code == 404
        client.post("/admin/v1/pool/one/load")
