"""Mutated GGUF files through the import of a real server, and every one that it takes through a load and a request.

    python -m tests.faults.ggufs [--count 20000] [--seed 1] [--load-s 1e9] [--outcomes FILE]

Sound files of several architectures are changed (`mutations.py`). Those that are imported as ready are loaded by the
adapter, which supervises workers that are real but forked (`nursery.py`), with bounds of memory and time; a model that
came up is asked for a few tokens, a vector or a score. What may come of a file: it is quarantined, it is refused with
a reason, the worker dies and the model is unavailable after three failures, or it serves. Nothing may end the gateway
or the adapter's process, and nothing may take longer than its time.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from adapters.errors import AdapterError
from adapters.llama_cpp import LlamaCpp
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.process import Timing
from adapters.types import Caller, CompletionRequest, EmbeddingRequest, Generation, RerankRequest
from tests.e2e.server import ADMIN_KEY, Server
from tests.faults import mutations, nursery
from tests.models import random_gguf, random_shapes

AT_ONCE = 6
LOAD_S_MAX = 120.0
REQUEST_S_MAX = 60.0
SILENCE_S = 40.0
TRIES_MAX = 10
CALLER = Caller("faults", "faults")


class Outcome(NamedTuple):
    """What became of a file: `ended` is one of few words, `reason` what was said about it."""

    number: int
    base: str
    changed: str
    ended: str
    reason: str
    took_s: float


def sound_files(folder: Path) -> dict[str, mutations.File]:
    """One small model of each kind of engine there is."""
    folder.mkdir()
    made = (
        random_gguf.llama_tiny(folder / "llama.gguf"),
        random_gguf.qwen2vl_tiny(folder / "qwen2vl.gguf"),
        random_gguf.decoder_embedder(folder / "llama-embedder.gguf"),
        random_gguf.decoder_reranker(folder / "qwen3-reranker.gguf"),
        random_gguf.bert_embedder(folder / "bert.gguf"),
        random_shapes.gemma2(folder / "gemma2.gguf"),
        random_shapes.mamba(folder / "mamba.gguf"),
        random_shapes.jamba(folder / "jamba.gguf"),
    )
    return {path.stem: mutations.read(path) for path in made}


async def load_and_ask(path: Path, settings: EngineSettings, argv: tuple[str, ...]) -> tuple[str, str]:
    """Load a file in a real worker and ask it for something: how that ended, and the reason."""
    model = LlamaCpp("mutant", str(path), settings, argv=argv, timing=Timing(sleep=_at_once, silence_s=SILENCE_S))
    try:
        try:
            async with asyncio.timeout(LOAD_S_MAX):
                loaded = await model.load()
        except TimeoutError:
            return "HANGS", "while it was loaded"
        if not loaded:
            error = model.absence()
            assert error is not None
            return error.code, f"{error.message} ({model.status().reason})"
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                await _ask(model)
        except TimeoutError:
            return "HANGS", "while it answered"
        except AdapterError as error:
            await asyncio.sleep(0.05)
            return f"request: {error.code}", f"{error.message} ({model.status().reason})"
        return "serves", ""
    finally:
        await model.close()


async def _ask(model: LlamaCpp) -> None:
    kind = model.card.kinds[0]
    if kind == "embedding":
        await model.embed(EmbeddingRequest("mutant", ("some text",)), CALLER)
    elif kind == "rerank":
        await model.rerank(RerankRequest("mutant", "a query", ("one", "another")), CALLER)
    else:
        request = CompletionRequest("mutant", ("some text",), generation=Generation(max_tokens=4))
        async for _ in model.complete(request, CALLER):
            pass


async def _at_once(wait_s: float) -> None:
    await asyncio.sleep(0)


class Run:
    """Files one after the other, several at once."""

    def __init__(self, root: Path, url: str, seed: int, load_until_s: float, alive: Callable[[], bool]) -> None:
        self.outcomes: list[Outcome] = []
        self.wrong: list[str] = []
        self.come_back = 0
        self._seed = seed
        self._load_until_s = load_until_s
        self._alive = alive
        self._sound = sound_files(root / "sound")
        self._folder = root / "models"
        self._folder.mkdir()
        self._argv = nursery.argv(root / "nursery.sock")
        self._client = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=120, trust_env=False
        )

    async def files(self, numbers: list[int]) -> None:
        """Take numbers until there are none; each gives the same file in every run of a seed."""
        while numbers and self._alive():
            number = numbers.pop()
            draw, began_s = random.Random(f"{self._seed}-{number}"), time.monotonic()
            base = draw.choice(list(self._sound))
            changed, data = mutations.mutated(self._sound[base], draw)
            path = self._folder / f"{number}.gguf"
            path.write_bytes(data)
            try:
                ended, reason = await self._through(path, draw)
            except Exception as error:
                ended, reason = "WRONG", repr(error)
            finally:
                path.unlink()
            self.outcomes.append(Outcome(number, base, changed, ended, reason, time.monotonic() - began_s))
            if ended.isupper():
                self.wrong.append(f"file {number}: {ended} {reason}")

    async def _through(self, path: Path, draw: random.Random) -> tuple[str, str]:
        made = await self._call("POST", json={"path": str(path), "how": "link", "wait": True})
        if made["status"] == "ready" and time.monotonic() < self._load_until_s:
            # Half of the files are loaded as they say, the others quicker.
            settings = EngineSettings(context_tokens=draw.choice((256, None)), parallel=2, threads=1)
            ended = await load_and_ask(path, settings, self._argv)
        elif made["status"] == "error" and made["reason"].startswith("the same content is here already"):
            ended = "known already", ""
        else:
            ended = made["status"] if made["status"] in ("ready", "quarantined") else "WRONG", made["reason"] or ""
        await self._call("DELETE", f"/{made['id']}")
        return ended

    async def _call(self, method: str, path: str = "", **more: Any) -> Any:
        """What the server answers; told to come back, it is asked again."""
        for _ in range(TRIES_MAX):
            answer = await self._client.request(method, f"/admin/v1/library/files{path}", **more)
            if answer.status_code != 503:
                break
            self.come_back += 1
            await asyncio.sleep(int(answer.headers.get("retry-after", "1")))
        return answer.raise_for_status().json() if answer.content else None

    async def close(self) -> None:
        await self._client.aclose()


async def run(numbers: list[int], seed: int, load_s: float, root: Path) -> Run:
    """All of these files; what became of them."""
    config = f"library: {{import_dirs: [{root / 'models'}]}}\n"
    async with AsyncExitStack() as stack:
        server = stack.enter_context(Server(root / "server", config=config, ready=False))
        forks = nursery.start(root / "nursery.sock")
        stack.callback(forks.wait)
        stack.callback(forks.kill)

        def alive() -> bool:
            return server.process.poll() is None and forks.poll() is None

        doing = Run(root, server.url, seed, time.monotonic() + load_s, alive)
        stack.push_async_callback(doing.close)
        while not (root / "nursery.sock").exists():
            assert forks.poll() is None
            await asyncio.sleep(0.05)
        watching = asyncio.create_task(_show(doing, len(numbers)))
        await asyncio.gather(*(doing.files(numbers) for _ in range(AT_ONCE)))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        if not alive():
            doing.wrong.append("the gateway or the nursery died")
    return doing


async def _show(doing: Run, count: int) -> None:
    began_s = time.monotonic()
    while True:
        await asyncio.sleep(30)
        ended = collections.Counter(one.ended for one in doing.outcomes)
        print(f"{len(doing.outcomes)}/{count} {time.monotonic() - began_s:.0f} s {dict(ended)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutated GGUF files through import, load and a request.")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of single files of a run")
    parser.add_argument("--load-s", type=float, default=1e9, help="after so many seconds files are only imported")
    parser.add_argument("--outcomes", type=Path, help="write what became of each file to this file")
    options = parser.parse_args()
    numbers = options.only or list(range(options.count, 0, -1))
    with tempfile.TemporaryDirectory(prefix="ggufs-") as name:
        doing = asyncio.run(run(numbers, options.seed, options.load_s, Path(name)))
    if options.outcomes:
        options.outcomes.write_text("".join(json.dumps(one._asdict()) + "\n" for one in doing.outcomes))
    ends = collections.Counter((one.changed, one.ended) for one in doing.outcomes)
    for (changed, ended), count in sorted(ends.items()):
        print(f"{changed:16} {ended:32} {count}")
    print(dict(collections.Counter(one.ended for one in doing.outcomes)), f"{doing.come_back} times told to come back")
    print("\n".join(doing.wrong) or "as promised")
    return int(bool(doing.wrong))


if __name__ == "__main__":
    sys.exit(main())
