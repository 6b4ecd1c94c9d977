"""Kept conversations of models that remember in other ways than full attention, on the real llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from adapters.llama_cpp import gguf
from adapters.llama_cpp.kept import Int32s
from adapters.llama_cpp.messages import CacheReport, Delta
from adapters.llama_cpp.native import Context, Model, quiet
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Budget, Sessions
from adapters.types import Generation, Sampling
from tests.models import random_shapes

RANDOM = np.random.default_rng(3)
SHAPES = {"recurrent": random_shapes.mamba, "hybrid": random_shapes.jamba, "window": random_shapes.gemma2}


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    quiet()
    write: Callable[[Path], Path] = SHAPES[request.param]
    path = write(tmp_path_factory.mktemp("shapes") / f"{request.param}.gguf")
    assert gguf.read(path).architecture in ("mamba", "jamba", "gemma2")
    return Model(path, gpu_layers=0, progress=lambda fraction: None)


class Bench:
    def __init__(self, model: Model) -> None:
        self.model = model
        context = Context(model, cells=2048, slots=12, batch_tokens=512, outputs_max=12, threads=1, lease=nullcontext())
        budget = Budget(ram_bytes=1 << 30, ttl_s=1e9)
        self.sessions = Sessions(context, budget, lambda: time.time_ns() // 1000)
        limits = Limits(parallel=4, chunk_tokens=256, target_gap_us=10**6, padding={}, tile=1)
        self.scheduler = Scheduler(context, self.sessions, limits, Rates(100.0, 1000.0), time.monotonic_ns)
        self._ids = 0

    def ask(self, tokens: Int32s, *, tenant: str = "a", count: int = 16) -> tuple[str, CacheReport]:
        generation = Generation(sampling=Sampling(temperature=0), ignore_eos=True)
        self._ids += 1
        sequence = Sequence(
            self._ids,
            0,
            tokens,
            generation,
            tenant=tenant,
            session_key="talk",
            max_tokens=count,
            pieces=self.model.vocabulary,
            explain=True,
        )
        self.scheduler.submit([sequence])
        deltas: list[Delta] = []
        while not self.scheduler.idle:
            deltas += self.scheduler.step()
        report = deltas[0].cache
        assert report is not None
        return "".join(delta.text for delta in deltas), report


def second(model: Model, first: Int32s, then: Int32s, *, spilled: bool = False) -> tuple[str, CacheReport]:
    """What a conversation answers to its second prompt; `spilled`: it waited in RAM meanwhile. Texts are compared only
    where prompts were computed in the same pieces, because other pieces give other last bits."""
    bench = Bench(model)
    bench.ask(first, count=1)
    while spilled and bench.sessions.spill():
        pass
    return bench.ask(then)


def chat(model: Model, *messages: int) -> Int32s:
    """A prompt of messages of those many tokens, each closed by an end token, and the beginning of an answer."""
    end = min(model.vocabulary.end)
    parts = [np.append(RANDOM.integers(300, 500, size), end) for size in messages]
    return np.concatenate([*parts, RANDOM.integers(300, 500, 3)]).astype(np.int32)


@pytest.mark.parametrize("spilled", [False, True], ids=["cells", "ram"])
def test_the_next_turn_goes_on_from_the_end(model: Model, spilled: bool) -> None:
    first = chat(model, 100, 80)
    longer = np.append(first, RANDOM.integers(300, 500, 40)).astype(np.int32)
    text, report = second(model, first, longer, spilled=spilled)
    assert text == second(model, first, longer)[0]
    assert report.cached_tokens == len(first) and report.tier == ("ram" if spilled else "cells")


@pytest.mark.parametrize("spilled", [False, True], ids=["cells", "ram"])
def test_an_edited_message_goes_back_no_further_than_it_must(model: Model, spilled: bool) -> None:
    first = chat(model, 100, 80)
    edited = np.concatenate([first[:101], chat(model, 60)])
    text, report = second(model, first, edited, spilled=spilled)
    assert report.diverged_at >= 101 and report.cached_tokens >= 101
    if spilled or not model.partial_sequences:
        assert report.cached_tokens == 101
        # Without a kept conversation its prompt is computed in the same pieces, so that not a bit may differ.
        assert text == Bench(model).ask(edited)[0]


def test_the_same_prompt_again_computes_its_last_token(model: Model) -> None:
    bench = Bench(model)
    prompt = chat(model, 100, 80)
    first, _ = bench.ask(prompt)
    again, report = bench.ask(prompt)
    assert report.cached_tokens == len(prompt) - 1
    if not model.partial_sequences:
        assert again == first


def test_a_fork_goes_its_own_way(model: Model) -> None:
    bench = Bench(model)
    prompt = chat(model, 100)
    bench.ask(prompt, count=1)
    bench.sessions.change("a", "talk", "fork", "branch", lambda changed: None)
    longer = [np.append(prompt, RANDOM.integers(300, 500, 20)).astype(np.int32) for _ in range(2)]
    wanted = [second(model, prompt, one)[0] for one in longer]
    assert [bench.ask(one)[0] for one in longer] == wanted
    assert bench.ask(longer[0], tenant="b")[1].cached_tokens == 0
