"""Sequences under a grammar in the scheduler: each token taken in once, whatever happens to the steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.llama_cpp.arrays import Float32s
from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Guide, Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Generation, Sampling
from tests.adapters.llama_cpp.fake_engine import VOCABULARY, FakeEngine, FakePieces, Predict, predicted

GREEDY = Sampling(temperature=0)
END = 0


class Rule:
    """A grammar of `size` tokens: after each odd token `run` copies of it plus one are forced; 7 to 20 are denied."""

    def __init__(self, size: int, run: int = 2) -> None:
        self.size = size
        self.run = run

    def forced(self, written: list[int]) -> list[int]:
        """What must follow, given all that was written."""
        left = self.size - len(written)
        chosen = [at for at in range(len(written)) if not self._is_forced(written, at)]
        if not written or written[chosen[-1]] % 2 == 0:
            return []
        coming = [written[chosen[-1]] + 1] * (self.run - (len(written) - 1 - chosen[-1]))
        return coming[:left]

    def _is_forced(self, written: list[int], at: int) -> bool:
        chosen = 0
        while chosen < at:
            chosen += 1 + (self.run if written[chosen] % 2 else 0)
        return chosen != at

    def ceiling(self) -> Float32s:
        row = np.full(VOCABULARY, np.inf, np.float32)
        row[7:21] = row[END] = -np.inf
        return row

    def answer(self, prompt: list[int], predict: Predict = predicted) -> list[int]:
        """What greedy sampling under this rule writes."""
        written: list[int] = []
        while len(written) < self.size:
            coming = self.forced(written)
            if not coming:
                token = predict([*prompt, *written])
                coming = [1 if 7 <= token <= 20 else token]
            written += coming
        return written


class RuleGuide:
    """A guide that remembers what it took in."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.written: list[int] = []
        self.active = True
        self.may_end = True
        self.opening: int | None = None
        self.failure: str | None = None
        self.computing = False

    @property
    def matcher(self) -> RuleGuide:
        return self

    @property
    def complete(self) -> bool:
        return len(self.written) >= self.rule.size

    def accept(self, token: int, piece: bytes) -> list[int]:
        assert not self.computing and not 7 <= token <= 20
        self.written.append(token)
        return [token]

    def forced(self, most: int) -> list[int]:
        assert not self.computing
        tokens = self.rule.forced(self.written)[:most]
        self.written += tokens
        return tokens


class FakeMasks:
    """Computes nothing until it is waited for, and sees that nobody moves meanwhile."""

    def __init__(self) -> None:
        self._guides: list[RuleGuide] = []
        self.computed = 0

    def begin(self, guides: list[Guide]) -> None:
        assert not self._guides
        self._guides = [guide.matcher for guide in guides]
        for guide in self._guides:
            guide.computing = True

    def end(self) -> Float32s:
        guides, self._guides = self._guides, []
        self.computed += len(guides)
        for guide in guides:
            guide.computing = False
        return np.stack([guide.rule.ceiling() for guide in guides])


class Bench:
    def __init__(self, *, cells: int = 4096, parallel: int = 4, spare: int = 0, predict: Predict = predicted) -> None:
        self.engine = FakeEngine(cells=cells, slots=parallel + 9, predict=predict)
        self.masks = FakeMasks()
        sessions = Sessions(self.engine, Budget(ram_bytes=1 << 20, ttl_s=1e9), lambda: 0)
        rows = dict.fromkeys(range(1, parallel + 1), spare)
        limits = Limits(parallel=parallel, chunk_tokens=64, target_gap_us=40_000, padding={}, tile=16, spare=rows)
        self._now_us = 0
        self.scheduler = Scheduler(self.engine, sessions, limits, Rates(1000.0, 5000.0), self._clock, masks=self.masks)
        self.deltas: list[Delta] = []

    def _clock(self) -> int:
        self._now_us += 1000
        return self._now_us

    def submit(
        self, id: int, prompt: list[int], rule: Rule | None, *, most: int = 500, generation: Generation | None = None
    ) -> RuleGuide | None:
        guide = RuleGuide(rule) if rule else None
        sequence = Sequence(
            id,
            0,
            np.array(prompt, np.int32),
            generation or Generation(sampling=GREEDY),
            tenant="a",
            session_key=None,
            max_tokens=most,
            pieces=FakePieces(),
            guide=guide,
        )
        self.scheduler.submit([sequence])
        return guide

    def run(self) -> None:
        for _ in range(20_000):
            if self.scheduler.idle:
                return
            self.deltas += self.scheduler.step()
        raise AssertionError("the scheduler does not come to an end")

    def text(self, id: int) -> str:
        return "".join(delta.text for delta in self.deltas if delta.id == id)

    def ends(self, id: int) -> list[str]:
        return [delta.finish for delta in self.deltas if delta.id == id and delta.finish]


def spelt(tokens: list[int]) -> str:
    return "".join(f"{token:02d} " for token in tokens)


PROMPT = random.Random(3).choices(range(1, 97), k=50)


def test_an_answer_keeps_to_its_grammar_and_ends_with_it() -> None:
    bench = Bench()
    guide = bench.submit(1, PROMPT, Rule(30))
    bench.run()
    answer = Rule(30).answer(PROMPT)
    assert guide is not None and guide.written == answer
    assert bench.text(1) == spelt(answer) and bench.ends(1) == ["stop"]
    assert sum(delta.tokens for delta in bench.deltas) == 30


def test_forced_tokens_are_computed_together_and_never_sampled() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, Rule(40, run=5))
    bench.run()
    answer = Rule(40, run=5).answer(PROMPT)
    chosen = [at for at in range(40) if not Rule(40, run=5)._is_forced(answer, at)]
    assert bench.masks.computed == len(chosen)
    assert len(bench.engine.batches) == len(chosen), "one step for each choice; what it forces rides along"


def test_scored_tokens_come_one_by_one_and_are_the_same() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, Rule(30), generation=Generation(sampling=GREEDY, logprobs=1))
    bench.run()
    answer = Rule(30).answer(PROMPT)
    assert bench.text(1) == spelt(answer)
    scores = [score for delta in bench.deltas for score in delta.logprobs]
    assert [score.token_id for score in scores] == answer
    assert all(score.logprob is not None and score.logprob < 0 for score in scores)


def test_the_token_limit_cuts_forced_tokens_too() -> None:
    for most in range(1, 12):
        bench = Bench()
        guide = bench.submit(1, PROMPT, Rule(30, run=3), most=most)
        bench.run()
        answer = Rule(30, run=3).answer(PROMPT)[:most]
        assert bench.text(1) == spelt(answer) and bench.ends(1) == ["length"]
        assert guide is not None and guide.written == answer
        assert sum(delta.tokens for delta in bench.deltas) == most


def test_a_stop_string_inside_of_forced_tokens_ends_there_and_is_all_that_counts() -> None:
    answer = Rule(30, run=5).answer(PROMPT)
    at = next(at for at in range(30) if Rule(30, run=5)._is_forced(answer, at))
    stop = spelt([answer[at]]).strip()
    bench = Bench()
    bench.submit(1, PROMPT, Rule(30, run=5), generation=Generation(sampling=GREEDY, stop=(stop,)))
    bench.run()
    first = spelt(answer).index(stop)
    assert bench.text(1) == spelt(answer)[:first] and bench.ends(1) == ["stop"]
    assert sum(delta.tokens for delta in bench.deltas) == first // 3 + 1


def test_what_is_guessed_keeps_to_its_grammar_too() -> None:
    def circling(history: list[int]) -> int:
        return (24, 5, 26, 28, 10, 30)[len(history) % 6]

    bench = Bench(spare=2, predict=circling)
    rules = {id: Rule(60, run=id) for id in (1, 2, 3)}
    guides = {id: bench.submit(id, PROMPT[id:], rule) for id, rule in rules.items()}
    bench.run()
    for id, rule in rules.items():
        guide = guides[id]
        assert guide is not None and guide.written == rule.answer(PROMPT[id:], circling)
        assert bench.text(id) == spelt(guide.written) and bench.ends(id) == ["stop"]
    assert bench.scheduler.busyness().guesses_right > 0


def test_sequences_without_a_grammar_cost_no_mask() -> None:
    bench = Bench()
    bench.submit(1, PROMPT, None, most=20)
    bench.run()
    assert bench.masks.computed == 0


def test_a_grammar_that_cannot_be_followed_fails_its_request_only() -> None:
    bench = Bench()
    guide = bench.submit(1, PROMPT, Rule(30))
    bench.submit(2, PROMPT, Rule(30))
    bench.deltas += bench.scheduler.step()
    assert guide is not None
    guide.failure = "too many items"
    bench.run()
    assert bench.scheduler.failures == {1: "too many items"}
    assert bench.ends(1) == [] and bench.text(2) == spelt(Rule(30).answer(PROMPT))


@pytest.mark.parametrize("code", [1, 2])
def test_a_step_that_failed_is_repeated_without_taking_a_token_twice(code: int) -> None:
    bench = Bench()
    guide = bench.submit(1, PROMPT, Rule(30))
    bench.submit(2, PROMPT[:20], Rule(30))
    for _ in range(8):
        bench.deltas += bench.scheduler.step()
        bench.engine.fail_with = [code]
    bench.engine.fail_with = []
    bench.run()
    assert guide is not None and guide.written == Rule(30).answer(PROMPT)
    assert bench.text(2) == spelt(Rule(30).answer(PROMPT[:20]))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_any_history_gives_every_request_its_own_answer(seed: int) -> None:
    """Grammars side by side, cancels, aborts, a pool that is too small for all of them, and guesses."""
    chance = random.Random(seed)
    predict = chance.choice([predicted, lambda history: predicted(history[-1:])])
    bench = Bench(
        cells=chance.choice([200, 300, 2000]),
        parallel=chance.choice([1, 3, 6]),
        spare=chance.choice([0, 1, 6]),
        predict=predict,
    )
    wanted: dict[int, str] = {}
    for id in range(chance.randrange(1, 12)):
        text = random.Random(chance.randrange(5)).choices(range(1, 97), k=chance.randrange(20, 90))
        rule = Rule(chance.randrange(1, 40), chance.randrange(1, 6)) if chance.random() < 0.8 else Rule(1)
        bench.submit(id, text, rule)
        wanted[id] = spelt(rule.answer(text, predict))
        for _ in range(chance.randrange(0, 20)):
            bench.deltas += bench.scheduler.step()
        if chance.random() < 0.2:
            bench.engine.fail_with = [2]
        if chance.random() < 0.15:
            victim = chance.choice(sorted(wanted))
            bench.scheduler.cancel(victim)
            if not bench.ends(victim):
                del wanted[victim]
    bench.run()
    assert {id: bench.text(id) for id in wanted} == wanted
