"""Several processes behind one port, with one process that has the engines."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.stores import Postgres, Valkey

WORKERS = 3


def until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with ExitStack() as stack:
        postgres, valkey = stack.enter_context(Postgres()), stack.enter_context(Valkey())
        environ = {"GATEWAY_DATABASE_URL": postgres.database(), "GATEWAY_REDIS_URL": valkey.url}
        folder = tmp_path_factory.mktemp("workers")
        yield stack.enter_context(Server(folder, "--workers", str(WORKERS), **environ))


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def engine(server: Server) -> int:
    """The process with the engines: the one that has the worker of a model."""
    (found,) = (pid for pid in children(server.process.pid) if children(pid))
    return found


def answering(server: Server) -> list[int]:
    return [pid for pid in children(server.process.pid) if pid != engine(server)]


def say(server: Server, max_tokens: int = 8) -> str:
    """A streamed answer over a connection of its own."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).text


def works(server: Server) -> bool:
    try:
        return bool(say(server))
    except openai.OpenAIError:
        return False


def test_one_model_for_all_processes(server: Server) -> None:
    until(lambda: len(answering(server)) == WORKERS)
    assert len(children(engine(server))) == 1
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        said = list(threads.map(lambda _: say(server), range(48)))
    assert len(set(said)) == 1
    assert said[0]
    until(lambda: {f'worker="{number}"' in metrics(server) for number in range(WORKERS)} == {True})
    until(lambda: server.metric("gateway_inference_requests_total", outcome="ok") >= 48)
    with server.client() as client:
        (model,) = client.get("/admin/v1/pool").json()["data"]
        assert (model["state"], model["pid"]) == ("ready", children(engine(server))[0])
        assert client.post("/v1/tokenize", json={"model": "demo", "content": "Hello"}).status_code == 200


def test_a_killed_process_is_there_again_and_the_others_go_on(server: Server) -> None:
    until(lambda: len(answering(server)) == WORKERS)
    before = answering(server)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(answering(server)) == WORKERS and before[0] not in answering(server))
    assert set(before[1:]) < set(answering(server))
    until(lambda: works(server))
    assert len(children(engine(server))) == 1


def test_the_engine_process_fails_its_requests_and_is_there_again(server: Server) -> None:
    until(lambda: works(server))
    died = engine(server)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=1500,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        os.kill(died, signal.SIGKILL)
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                pass
    assert caught.value.code == "model_unavailable"
    until(lambda: any(children(pid) and pid != died for pid in children(server.process.pid)))
    until(lambda: works(server))
    assert set(answering(server)) <= set(children(server.process.pid))


def test_it_needs_stores_that_are_shared(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--workers", "2", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "PostgreSQL and Redis" in done.stderr
