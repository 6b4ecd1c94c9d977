"""What an operator was promised, tried on a real gateway: queues, room, cancellation, crashes, draining."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, Server

WAIT_S = 10.0


def config(model: Path, *, parallel: int = 2, queue: int = 10, context: int = 4096, cache: int = 8192) -> str:
    return f"""
server:
  drain_timeout_s: 5
models:
  - name: tiny
    path: {model}
    queue_depth_max: {queue}
    engine: {{parallel: {parallel}, threads: 1, context_tokens: {context}, cache_tokens: {cache}}}
"""


def body(tokens: int = 3000, prompt: str = "x", **more: object) -> dict[str, object]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def events(lines: Iterator[str]) -> Iterator[dict[str, object]]:
    """The JSON of each data line; `[DONE]` becomes {"done": True}."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield {"done": True} if data == "[DONE]" else json.loads(data)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("promises"), config=config(tiny_model)) as server:
        yield server


def test_a_full_queue_turns_exactly_the_surplus_away_with_a_time(server: Server) -> None:
    gate = threading.Barrier(60)

    def one(number: int) -> httpx.Response:
        with server.client() as client:
            client.get("/health/live")
            gate.wait()
            return client.post("/v1/completions", json=body(300, prompt=f"{number}"))

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(one, range(60)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert 60 - statuses.count(429) >= 12, "two run and ten wait; a place that came free in time may serve one more"
    assert statuses.count(429) >= 40
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
            assert float(answer.headers["retry-after-ms"]) > 0
        else:
            assert answer.json()["usage"]["completion_tokens"] == 300


def test_two_requests_that_outgrow_the_pool_both_finish(tiny_model: Path, tmp_path: Path) -> None:
    with Server(tmp_path, config=config(tiny_model, context=1024, cache=1024)) as server, ThreadPoolExecutor(2) as pool:
        with server.client() as client:
            answers = list(pool.map(lambda text: client.post("/v1/completions", json=body(900, prompt=text)), "ab"))
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [900, 900]
        assert {answer.json()["choices"][0]["finish_reason"] for answer in answers} == {"length"}


@pytest.mark.parametrize("stage", ["decode", "queued", "prefill"])
def test_a_client_that_leaves_frees_its_place(server: Server, stage: str) -> None:
    def running() -> float:
        return server.metric("gateway_running_requests")

    prompt = " ".join(str(number) for number in range(1200)) if stage == "prefill" else "once"
    blockers = 2 if stage == "queued" else 0
    with ThreadPoolExecutor(4) as pool, server.client(timeout_s=600) as client:
        others = [pool.submit(client.post, "/v1/completions", json=body(3500, prompt=f"b{n}")) for n in range(blockers)]
        until(lambda: running() == blockers, "the others run")
        stream = body(3500, prompt=prompt, stream=True, n=1)
        request = client.build_request("POST", "/v1/completions", json=stream, timeout=0.1 if stage != "decode" else 30)
        try:
            answer = client.send(request, stream=True)
            if stage == "decode":
                next(events(answer.iter_lines()))
            answer.close()
        except httpx.TimeoutException:
            pass
        until(lambda: server.metric("gateway_queue_depth") == 0 and running() <= blockers, "the place is free")
        assert all(other.result().status_code == 200 for other in others)
    until(lambda: running() == 0, "nothing runs any more")


def test_a_crashed_worker_fails_its_streams_and_comes_back(server: Server) -> None:
    gateway, (worker,) = server.process.pid, server.workers()
    begun = threading.Barrier(3)

    def stream(number: int) -> list[dict[str, object]]:
        seen: list[dict[str, object]] = []
        with (
            server.client() as client,
            client.stream("POST", "/v1/completions", json=body(3900, prompt=f"{number}", stream=True)) as answer,
        ):
            for event in events(answer.iter_lines()):
                if not seen:
                    begun.wait(WAIT_S)
                seen.append(event)
        return seen

    def wait() -> int:
        with server.client() as client:
            return client.post("/v1/completions", json=body(3)).status_code

    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(stream, number) for number in range(2)]
        begun.wait(WAIT_S)
        waiting = pool.submit(wait)
        until(lambda: server.metric("gateway_queue_depth") == 1, "one more waits in line")
        os.kill(worker, signal.SIGSEGV)
        for ended in streams:
            last = ended.result()[-1]
            assert "error" in last, "a broken stream ends with an error event and without [DONE]"
        assert waiting.result() == 200, "the next worker serves who waited"
    assert server.process.pid == gateway and server.process.poll() is None
    assert server.workers() != [worker]
    assert server.metric("gateway_engine_restarts") == 1


def test_requests_while_a_worker_is_away_wait_for_the_next_one(server: Server) -> None:
    with server.client() as client:
        for _ in range(2):
            for worker in server.workers():
                os.kill(worker, signal.SIGKILL)
            assert client.post("/v1/completions", json=body(3)).status_code == 200


def test_sigterm_lets_streams_finish_and_exits_cleanly(tiny_model: Path, tmp_path: Path) -> None:
    with Server(tmp_path, config=config(tiny_model)) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json=body(400, stream=True)) as answer:
            lines = events(answer.iter_lines())
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert list(lines)[-1] == {"done": True}
        assert server.process.wait(WAIT_S) == 0


def test_the_gateway_process_stays_small(server: Server) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kib < 120 * 1024


def test_workers_see_no_environment_and_die_with_the_gateway(tiny_model: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, config=config(tiny_model), SECRET="do-not-pass-on")
    with server:
        (worker,) = server.workers()
        assert b"do-not-pass-on" not in Path(f"/proc/{worker}/environ").read_bytes()
        assert ADMIN_KEY.encode() not in Path(f"/proc/{worker}/environ").read_bytes()
    until(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")


def test_a_killed_gateway_takes_its_workers_along(tiny_model: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, config=config(tiny_model))
    server.__enter__()
    (worker,) = server.workers()
    server.process.kill()
    server.process.wait(WAIT_S)
    until(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")


def test_a_broken_model_does_not_keep_the_others_from_serving(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:5000])
    models = config(tiny_model) + f"  - {{name: broken, path: {broken}}}\n"
    with Server(tmp_path, config=models) as server, server.client() as client:
        assert client.post("/v1/completions", json=body(3)).status_code == 200
        until(lambda: server.metric("gateway_model_state", model="broken", state="failed") == 1, "it was tried")
        answer = client.post("/v1/completions", json=body(3) | {"model": "broken"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_invalid")
        assert str(broken) not in answer.text
