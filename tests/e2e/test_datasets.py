"""Datasets of a hub through a real server and the command line beside it: pulled, made into requests, counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.hub import Hub

QUESTIONS = [{"question": f"What is {number} and {number}?"} for number in range(30)]
FILES = {
    "data/train.jsonl": b"\n".join(json.dumps(row).encode() for row in [*QUESTIONS, {"other": 1}]),
    "test.csv": b"id,text\n1,one\n2,two\n",
}
PRICE = {"input": "1", "output": "2"}
CONFIG = {
    "models": [{"name": "demo", "path": str(ROOT / "adapters/llama_cpp/demo/demo.gguf"), "price": PRICE}],
    "providers": [{"name": "house", "kind": "vllm", "base_url": "http://127.0.0.1:9/v1"}],
    "routes": [{"name": "far", "groups": [[{"provider": "house", "model": "m", "price": PRICE}]]}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("datasets")
    with Hub(FILES) as hub:
        config = CONFIG | {"library": {"endpoint": hub.endpoint, "dir": str(folder / "hub")}}
        with Server(folder, config=json.dumps(config)) as server:
            yield server


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def gateway(server: Server, *arguments: str, here: bool = True) -> subprocess.CompletedProcess[str]:
    place = ["--data-dir", str(server.data_dir / "state"), "--config", str(server.data_dir / "config.yaml")]
    environ = {"PATH": os.environ["PATH"], "HOME": str(server.data_dir), "GATEWAY_API_KEY": ADMIN_KEY}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments, *(place if here else ["--url", server.url])],
        cwd=ROOT,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_pulled_dataset_becomes_requests_with_a_forecast(server: Server, admin: httpx.Client) -> None:
    asked = {"name": "org/model/data/train.jsonl", "dataset": True, "model": "demo", "max_tokens": 10, "wait": True}
    pull = admin.post("/admin/v1/pulls", json=asked).json()
    assert (pull["status"], pull["kind"], pull["files"]) == ("succeeded", "dataset", ["data/train.jsonl"])
    assert "datasets--org--model" in pull["path"]
    (dataset,) = admin.get("/admin/v1/datasets?q=train").json()["data"]
    assert (dataset["status"], dataset["source"]) == ("ready", "hf:org/model/data/train.jsonl")
    made = dataset["requests"]
    assert (made["rows"], made["skipped"], made["column"]) == (30, 1, "question")
    assert (made["problems"][0]["file"], made["problems"][0]["line"]) == ("train.jsonl", 31)
    lines = [json.loads(line) for line in Path(dataset["path"]).read_text().splitlines()]
    assert lines[1]["body"]["messages"] == [{"role": "user", "content": "What is 1 and 1?"}]
    files = admin.get("/admin/v1/library/files?kind=dataset&status=ready&q=train").json()["data"]
    assert sorted(file["how"] for file in files) == ["made", "pull"]

    one = f"/admin/v1/datasets/{dataset['id']}"
    forecast = admin.get(f"{one}/forecast").json()
    counted = [
        admin.post("/v1/count_tokens", json={"model": "demo", "messages": line["body"]["messages"]}).json()
        for line in lines
    ]
    tokens = sum(count["input_tokens"] for count in counted)
    assert (forecast["input_tokens"], forecast["output_tokens"], forecast["exact"]) == (tokens, 300, True)
    assert float(forecast["cost_usd"]) == pytest.approx((tokens + 2 * 300) / 1e6)
    told = gateway(server, "datasets", "forecast", dataset["id"], here=False)
    assert f"{tokens}, counted by the model" in told.stdout, told.stderr
    told = gateway(server, "datasets", "forecast", dataset["id"], "--model", "far", here=False)
    assert "estimated from bytes" in told.stdout, told.stderr
    assert not admin.get(f"{one}/forecast?model=far").json()["tokenised"]
    assert admin.get(f"{one}/forecast?model=none").status_code == 404
    assert gateway(server, "datasets", "show", dataset["id"]).stdout.count("question") == 2

    assert admin.delete(one).status_code == 204
    assert admin.get(one).status_code == 404
    deadline = time.monotonic() + 20
    while Path(dataset["path"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_command_line_pulls_and_makes_them(server: Server, tmp_path: Path) -> None:
    done = gateway(server, "pull", "--dataset", "org/model/test.csv", "--model", "demo", "--request", "completion")
    assert (done.returncode, "requests: 2, rows left out: 0" in done.stderr) == (0, True), done.stderr
    lines = [json.loads(line) for line in Path(done.stdout.strip()).read_text().splitlines()]
    assert [line["body"] for line in lines] == [{"model": "demo", "prompt": text} for text in ("one", "two")]
    nameless = gateway(server, "pull", "--dataset", "org/model/test.csv")
    assert (nameless.returncode, nameless.stdout) == (1, "")
    assert "test.csv, line 2: no model is named for it" in nameless.stderr
    (tmp_path / "mine.csv").write_text("prompt\nhello\n")
    assert gateway(server, "datasets", "make", str(tmp_path / "mine.csv"), "--model", "demo").returncode == 0
    listed = gateway(server, "datasets", "list", "mine").stdout.splitlines()
    assert len(listed) == 2 and "ready" in listed[1]
    identity = listed[1].split()[0]
    assert gateway(server, "datasets", "delete", identity).returncode == 0
    assert "has no file" in gateway(server, "datasets", "show", identity).stderr
