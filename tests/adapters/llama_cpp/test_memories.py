"""Kept conversations of models that remember in other ways than full attention, on the real llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from adapters.llama_cpp import gguf, packing
from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.messages import CacheReport, Delta
from adapters.llama_cpp.native import Context, Model, quiet
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Generation, Sampling
from tests.models import random_shapes

RANDOM = np.random.default_rng(3)
SHAPES = {
    "recurrent": random_shapes.mamba,
    "hybrid": random_shapes.jamba,
    "window": random_shapes.gemma2,
    "latent": random_shapes.deepseek2,
}
# By how much of the largest logit results may differ where only the order of sums does, with exact weights: about ten
# times what other pieces of the same prompt were seen to do, and a tenth of what another token far back does.
SLACK = {"recurrent": 1e-5, "hybrid": 1e-3, "window": 2e-2, "latent": 2e-2}


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    quiet()
    write: Callable[[Path], Path] = SHAPES[request.param]
    path = write(tmp_path_factory.mktemp("shapes") / f"{request.param}.gguf")
    header = gguf.read(path)
    assert header.architecture in ("mamba", "jamba", "gemma2", "deepseek2")
    packed = packing.is_packed(header, amx=packing.has_amx())
    return Model(path, gpu_layers=0, progress=lambda fraction: None, packed=packed)


@pytest.fixture(scope="module", params=list(SHAPES))
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, float]:
    """A model whose results depend little on the order of sums, and how much they may."""
    quiet()
    path = SHAPES[request.param](tmp_path_factory.mktemp("exact") / "exact.gguf", exact=True)
    return Model(path, gpu_layers=0, progress=lambda fraction: None), SLACK[request.param]


class Watched(Sequence):
    """Remembers the logits that it draws from."""

    def advance(self, row: Float32s, ceiling: Float32s | None = None) -> None:
        self.rows = [*getattr(self, "rows", []), row.copy()]
        super().advance(row, ceiling)


class Bench:
    def __init__(self, model: Model) -> None:
        self.model = model
        context = empty(model)
        budget = Budget(ram_bytes=1 << 30, ttl_s=1e9)
        self.sessions = Sessions(context, budget, lambda: time.time_ns() // 1000)
        limits = Limits(parallel=4, chunk_tokens=256, target_gap_us=10**6, padding={}, tile=1)
        self.scheduler = Scheduler(context, self.sessions, limits, Rates(100.0, 1000.0), time.monotonic_ns)
        self._ids = 0

    def sequence(self, tokens: Int32s, *, tenant: str = "a", key: str = "talk", count: int = 16) -> Watched:
        generation = Generation(sampling=Sampling(temperature=0), ignore_eos=True)
        self._ids += 1
        return Watched(
            self._ids,
            0,
            tokens,
            generation,
            tenant=tenant,
            session_key=key,
            max_tokens=count,
            pieces=self.model.vocabulary,
            explain=True,
        )

    def run(self, sequences: list[Watched]) -> list[Delta]:
        for sequence in sequences:
            self.scheduler.submit([sequence])
        deltas: list[Delta] = []
        while not self.scheduler.idle:
            deltas += self.scheduler.step()
        return deltas

    def ask(self, tokens: Int32s, *, tenant: str = "a", count: int = 16) -> tuple[str, CacheReport]:
        deltas = self.run([self.sequence(tokens, tenant=tenant, count=count)])
        report = deltas[0].cache
        assert report is not None
        return "".join(delta.text for delta in deltas), report


def empty(model: Model) -> Context:
    return Context(model, cells=2048, slots=12, batch_tokens=512, outputs_max=12, threads=1, lease=nullcontext())


def second(model: Model, first: Int32s, then: Int32s, *, spilled: bool = False) -> tuple[str, CacheReport]:
    """What a conversation answers to its second prompt; `spilled`: it waited in RAM meanwhile. Texts are compared only
    where prompts were computed in the same pieces, because other pieces give other last bits."""
    bench = Bench(model)
    bench.ask(first, count=1)
    while spilled and bench.sessions.tiers.spill():
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


@pytest.mark.slow
@pytest.mark.parametrize("spilled", [False, True], ids=["cells", "ram"])
def test_what_is_continued_is_what_was_computed(exact: tuple[Model, float], spilled: bool) -> None:
    """Conversations that are continued at once, from their ends and from checkpoints, in cells that others had before,
    draw from the logits that an empty context gives for the same tokens in one piece."""
    model, slack = exact
    bench = Bench(model)
    prompts, sizes = [chat(model, 60 + 7 * talk, 50) for talk in range(3)], [0, 0, 0]
    for turn in range(4):
        talks = [bench.sequence(tokens, key=f"talk {talk}", count=10) for talk, tokens in enumerate(prompts)]
        deltas = bench.run(talks)
        tiers = [delta.cache.tier for delta in deltas if delta.cache is not None]
        assert tiers == [None if turn == 0 else "ram" if spilled else "cells"] * 3
        for talk, size in zip(talks, sizes, strict=True):
            assert talk.cached >= size
            assert farthest(talk.rows, cold(model, talk.tokens[: talk.computed])) < slack
        while spilled and bench.sessions.tiers.spill():
            pass
        sizes = [61, 68, 75] if turn % 2 else [talk.computed for talk in talks]
        prompts = [
            np.concatenate([talk.tokens[:size], chat(model, 20)]) for talk, size in zip(talks, sizes, strict=True)
        ]


def test_logits_tell_what_was_computed(exact: tuple[Model, float]) -> None:
    model, slack = exact
    tokens = chat(model, 100)
    other = np.append(tokens[1], tokens[1:]).astype(np.int32)
    assert farthest(cold(model, tokens), cold(model, other)) > 10 * slack


def cold(model: Model, tokens: Int32s) -> list[Float32s]:
    """The logits after each of the last tokens, from an empty context."""
    context, batch = empty(model), Batch(512, 12)
    batch.add(tokens, 0, 0, outputs=10)
    assert context.decode(batch) == 0
    return list(context.logits(10).copy())


def farthest(rows: list[Float32s], others: list[Float32s]) -> float:
    """The largest difference, as a share of the largest logit of its row."""
    return max(float(np.abs(row - other).max() / np.abs(other).max()) for row, other in zip(rows, others, strict=True))
