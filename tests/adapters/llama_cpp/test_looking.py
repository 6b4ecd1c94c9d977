"""Images in running sequences, against a context that notices every wrong cell."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.llama_cpp.images import Image, Span
from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.looking import Looking
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Generation, Sampling
from tests.adapters.llama_cpp.fake_engine import FakeEngine, FakeEyes, FakePieces, continuation

Prompt = list[int | Image]


def image(name: str, count: int = 30) -> Image:
    return Image(bytes([count]), name.encode())


def text(size: int, seed: int = 0) -> Prompt:
    return list(random.Random(seed).choices(range(1, 97), k=size))


def laid_out(prompt: Prompt) -> tuple[list[int], tuple[Span, ...]]:
    """The tokens of a prompt and the spans of its images."""
    tokens: list[int] = []
    spans: list[Span] = []
    for one in prompt:
        if isinstance(one, Image):
            count = one.data[0] if len(one.data) == 1 else 30
            spans.append(Span(len(tokens), count, 0, one, 0))
            tokens += spans[-1].tokens().tolist()
        else:
            tokens.append(one)
    return tokens, tuple(spans)


class Bench:
    """A scheduler with eyes, where each token takes a millisecond and the target gap is forty."""

    def __init__(
        self, *, cells: int = 4096, parallel: int = 4, ram: int = 1 << 20, patience: int = 3, whole: bool = False
    ) -> None:
        self.now_us = 0
        self.engine = FakeEngine(cells=cells, slots=parallel + 9)
        self.engine.on_decode = self._spend
        self.eyes = FakeEyes(patience)
        self.engine.state_type = np.int32
        sessions = Sessions(self.engine, Budget(ram_bytes=ram, ttl_s=1e9), lambda: self.now_us)
        limits = Limits(parallel=parallel, chunk_tokens=64, target_gap_us=40_000, padding={}, tile=16)
        looking = Looking(self.engine, self.eyes, whole=whole)
        self.scheduler = Scheduler(self.engine, sessions, limits, Rates(1000.0, 5000.0), self._clock, looking=looking)
        self.deltas: list[Delta] = []

    def _spend(self, tokens: int) -> None:
        self.now_us += 1000 * tokens

    def _clock(self) -> int:
        self.now_us += 10
        return self.now_us

    def submit(self, id: int, prompt: Prompt, count: int = 8, *, tenant: str = "a", n: int = 1) -> str:
        """Returns what must come out."""
        tokens, spans = laid_out(prompt)
        self.scheduler.submit(
            [
                Sequence(
                    id,
                    choice,
                    np.array(tokens, np.int32),
                    Generation(sampling=Sampling(temperature=0)),
                    tenant=tenant,
                    session_key=None,
                    max_tokens=count,
                    pieces=FakePieces(),
                    spans=spans,
                )
                for choice in range(n)
            ]
        )
        return "".join(f"{token:02d} " for token in continuation(tokens, count))

    def step(self) -> list[Delta]:
        self.eyes.work()
        deltas = self.scheduler.step()
        self.deltas += deltas
        return deltas

    def run(self, steps_max: int = 20_000) -> None:
        for _ in range(steps_max):
            if self.scheduler.idle:
                return
            self.step()
            assert self.eyes.wanted or not self.scheduler.stalled, "nobody would ever wake it"
        raise AssertionError("the scheduler does not come to an end")

    def text(self, id: int, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if (delta.id, delta.choice) == (id, choice))

    def cached(self, id: int) -> list[int]:
        return [delta.cached_tokens for delta in self.deltas if delta.id == id and delta.cached_tokens >= 0]


PROMPTS: dict[str, Prompt] = {
    "alone": [image("a")],
    "first": [image("a"), *text(20)],
    "last": [*text(20), image("a")],
    "between": [*text(20), image("a"), *text(20, 1)],
    "two together": [*text(5), image("a"), image("b", 7), *text(5)],
    "longer than a chunk": [*text(5), image("a", 200), 7],
    "one position": [*text(5), image("a", 1)],
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=list(PROMPTS))
def test_images_and_text_are_computed_in_order(prompt: Prompt, whole: bool) -> None:
    bench = Bench(whole=whole)
    wanted = bench.submit(1, prompt)
    bench.run()
    assert bench.text(1) == wanted
    if whole:
        assert bench.engine.seen == [one.data[0] for one in prompt if isinstance(one, Image)]


def test_the_same_conversation_sees_its_image_once() -> None:
    bench = Bench()
    first = bench.submit(1, [*text(20), image("a"), *text(9, 1)])
    bench.run()
    answer = [int(number) for number in first.split()]
    wanted = bench.submit(2, [*text(20), image("a"), *text(9, 1), *answer, 5, 6])
    bench.run()
    assert bench.text(2) == wanted
    assert bench.cached(2) == [20 + 30 + 9 + 7]
    assert bench.eyes.encoded == 1


def test_another_image_shares_only_the_text_before_it() -> None:
    bench = Bench()
    bench.submit(1, [*text(20), image("a"), 3])
    bench.run()
    wanted = bench.submit(2, [*text(20), image("b"), 3])
    bench.run()
    assert bench.text(2) == wanted
    assert bench.cached(2) == [20]


def test_a_prefix_never_ends_inside_of_an_image() -> None:
    bench = Bench()
    bench.submit(1, [*text(20), image("a")])
    bench.run()
    wanted = bench.submit(2, [*text(20), image("a")])
    bench.run()
    assert bench.text(2) == wanted
    assert bench.cached(2) == [20], "the last position must be computed, and with it the whole image"


def test_choices_and_neighbours_share_an_image_that_is_computed_once() -> None:
    bench = Bench()
    wanted = bench.submit(1, [*text(40), image("a"), *text(40, 1)], 3, n=3)
    bench.submit(2, [*text(40), image("a"), *text(40, 1)], 3)
    bench.run()
    assert {bench.text(1, choice) for choice in range(3)} | {bench.text(2)} == {wanted}
    assert sum(bench.engine.seen) == 30


def test_a_running_stream_gets_a_token_in_every_step_beside_a_large_image() -> None:
    bench = Bench()
    bench.submit(1, text(10), 90)
    bench.step()
    wanted = bench.submit(2, [image("a", 250), image("b", 250), 5], 1)
    while not bench.cached(2):
        assert [delta.id for delta in bench.step() if delta.id == 1] == [1]
    assert max(bench.engine.seen) <= 40
    bench.run()
    assert bench.text(2) == wanted


def test_nothing_can_be_computed_until_the_embeddings_are_there() -> None:
    bench = Bench(patience=10)
    bench.submit(1, [*text(5), image("a")])
    bench.step()
    bench.step()
    assert bench.scheduler.stalled
    bench.submit(2, text(5), 1)
    bench.step()
    assert bench.text(2), "others are served meanwhile"
    bench.run()
    assert not bench.scheduler.stalled


def test_a_broken_image_is_told_of_and_fails_nobody_else() -> None:
    bench = Bench()
    broken = Image(b"broken", b"x")
    bench.submit(1, [*text(5), broken, 3])
    wanted = bench.submit(2, [*text(5), image("a"), 3])
    for _ in range(6):
        bench.step()
    assert bench.scheduler.blind() == {1}
    bench.scheduler.cancel(1)
    bench.run()
    assert bench.text(2) == wanted


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_any_history_gives_every_request_its_own_continuation(seed: int) -> None:
    """Texts and images with shared beginnings, tenants, cancels, aborts and a pool too small for all of them."""
    chance = random.Random(seed)
    bench = Bench(
        cells=chance.choice([250, 500, 2000]),
        parallel=chance.choice([1, 3, 6]),
        ram=chance.choice([0, 4000, 1 << 20]),
        patience=chance.randrange(5),
        whole=chance.random() < 0.3,
    )
    wanted: dict[int, str] = {}
    for id in range(chance.randrange(1, 15)):
        prompt = text(chance.randrange(0, 40), seed=chance.randrange(2))
        for _ in range(chance.randrange(3)):
            prompt += [image(chance.choice("ab"), chance.choice([20, 50])), *text(chance.randrange(0, 9), seed=3)]
        prompt = prompt or [1]
        count = chance.randrange(1, 40)
        wanted[id] = bench.submit(id, prompt, count, tenant=chance.choice("ab"))
        for _ in range(chance.randrange(0, 30)):
            bench.step()
        if chance.random() < 0.1:
            bench.engine.fail_with = [2]
        if chance.random() < 0.15:
            victim = chance.choice(sorted(wanted))
            bench.scheduler.cancel(victim)
            if not any(delta.id == victim and delta.finish for delta in bench.deltas):
                del wanted[victim]
    bench.run()
    assert {id: bench.text(id) for id in wanted} == wanted
