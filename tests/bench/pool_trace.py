"""Records who asked which model when, of a real server with three models and memory for two.

    python -m tests.bench.pool_trace [--seconds 240] [--seed 1] [--out tests/recorded/pool_trace.jsonl]

Some people hold conversations with think times, each with one model at a time; now and then somebody sends a burst of
prompts to a model, and a job asks one model after the other. What comes of it is replayed in the tests, where the loads
of the server are compared with the fewest that could have been.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path

import httpx

from tests.e2e.server import ADMIN_KEY, Server
from tests.models import random_gguf

MODELS = ("a", "b", "c")
PEOPLE = 7
# A worker of the tiny model takes about 75 MB.
MEMORY_BYTES = 190_000_000
ENGINE = "{threads: 1, context_tokens: 1024, cache_tokens: 2048}"
TRIES_MAX = 20


class Recorder:
    """Sends requests, and writes down when they were sent, to which model and how long they ran once they began."""

    def __init__(self, client: httpx.AsyncClient, until_s: float) -> None:
        self.requests: list[tuple[float, str, float]] = []
        self.refused = 0
        self._client = client
        self._began_s = time.monotonic()
        self._until_s = until_s

    def over(self) -> bool:
        return time.monotonic() - self._began_s > self._until_s

    async def ask(self, model: str, max_tokens: int) -> None:
        """One request, sent again when it is told to come back."""
        sent_s = time.monotonic() - self._began_s
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": max_tokens, "stream": True}
        for _ in range(TRIES_MAX):
            async with self._client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code == 200:
                    first_s = None
                    async for _ in answer.aiter_lines():
                        first_s = first_s or time.monotonic()
                    ran_s = time.monotonic() - (first_s or time.monotonic())
                    self.requests.append((round(sent_s, 2), model, round(ran_s, 2)))
                    return
                self.refused += 1
            await asyncio.sleep(int(answer.headers.get("retry-after", "1")))

    async def converse(self, draw: random.Random) -> None:
        await asyncio.sleep(draw.uniform(0, 20))
        while not self.over():
            model = draw.choice(MODELS)
            for _ in range(draw.randint(3, 10)):
                await self.ask(model, draw.randint(16, 200))
                await asyncio.sleep(draw.uniform(1, 10))
            await asyncio.sleep(draw.uniform(3, 30))

    async def burst(self, draw: random.Random) -> None:
        while not self.over():
            await asyncio.sleep(draw.uniform(15, 40))
            model = draw.choice(MODELS)
            await asyncio.gather(*(self.ask(model, 32) for _ in range(draw.randint(4, 12))))

    async def survey(self, draw: random.Random) -> None:
        while not self.over():
            await asyncio.sleep(draw.uniform(20, 60))
            for model in MODELS:
                await self.ask(model, 16)


async def record(seconds: float, seed: int) -> list[object]:
    """What is known of the server, and each request as (when it was sent, model, how long it ran)."""
    with tempfile.TemporaryDirectory(prefix="pool-trace-") as name:
        path = random_gguf.llama_tiny(Path(name) / "tiny.gguf")
        models = "\n".join(f"  - {{name: {model}, path: {path}, lazy: true, engine: {ENGINE}}}" for model in MODELS)
        config = f"models:\n{models}\npool: {{memory_bytes: {MEMORY_BYTES}}}\n"
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        with Server(Path(name) / "server", config=config, ready=False) as server:
            async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120, trust_env=False) as client:
                recorder = Recorder(client, seconds)
                people = [recorder.converse(random.Random(f"{seed}-{number}")) for number in range(PEOPLE)]
                others = [recorder.burst(random.Random(f"{seed}-burst")), recorder.survey(random.Random(f"{seed}-all"))]
                await asyncio.gather(*people, *others)
                engines = (await client.get("/admin/v1/pool")).json()["data"]
    loads = {engine["id"]: engine["loads"] for engine in engines}
    load_s = max(engine["load_s"] or 0.0 for engine in engines)
    head = {"seed": seed, "loads": loads, "load_s": load_s, "refused": recorder.refused}
    print(head, len(recorder.requests), "requests")
    return [head, *sorted(recorder.requests)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record a trace of requests to more models than fit.")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("tests/recorded/pool_trace.jsonl"))
    options = parser.parse_args()
    lines = asyncio.run(record(options.seconds, options.seed))
    options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
