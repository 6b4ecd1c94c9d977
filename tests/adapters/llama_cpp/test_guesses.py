"""Guesses at the next token: what is guessed, and that answers are the same with them."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.llama_cpp.guesses import WINDOW_TOKENS, likely
from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import FinishReason, Generation, Sampling
from tests.adapters.llama_cpp.fake_engine import FakeEngine, FakePieces, Predict, continuation, predicted

GREEDY = Generation(sampling=Sampling(temperature=0))


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([5], None),
        ([1, 2, 3], None),
        ([5, 5], (5, 1)),
        ([1, 2, 3, 1], (2, 1)),
        ([1, 2, 1, 3, 1], (3, 1)),
        ([7, 1, 2, 8, 1, 3, 7, 1], (2, 2)),
        ([1, 2, 3, 4, 5, 6, 2, 3, 4, 5], (6, 4)),
        ([1, 2, 3, 4, 5, 6, 9, 3, 4, 5, 7, 1, 2, 3, 4, 5], (6, 4)),
        ([1, 2, *[9] * WINDOW_TOKENS, 1], None),
    ],
)
def test_what_followed_the_longest_and_latest_stretch_is_guessed(
    tokens: list[int], guess: tuple[int, int] | None
) -> None:
    assert likely(np.array(tokens, np.int32)) == guess


def repeating(history: list[int]) -> int:
    """Goes round in a circle that it leaves now and then."""
    return 1 + (history[-1] * 7 + (3 if len(history) % 11 == 0 else 0)) % 19


def misleading(history: list[int]) -> int:
    """Every token has been there before, and another one followed."""
    return 1 + predicted(history) % 7


class Bench:
    """Streams over a fake context, with room for `spare` guesses in any decode."""

    def __init__(
        self,
        *,
        spare: int,
        cells: int = 4096,
        partial: bool = True,
        predict: Predict = repeating,
        row_us: int | None = None,
    ) -> None:
        """Steps took the same for any number of rows when they were measured; now each row takes `row_us` more."""
        self.predict = predict
        self.engine = FakeEngine(cells=cells, slots=20, partial=partial, predict=predict)
        sessions = Sessions(self.engine, Budget(ram_bytes=1 << 20, ttl_s=1e9), lambda: 0)
        rows = dict.fromkeys(range(1, 9), spare)
        step_us = {} if row_us is None else dict.fromkeys(range(1, 17), 5000)
        limits = Limits(
            parallel=8, chunk_tokens=64, target_gap_us=40_000, padding={}, tile=16, spare=rows, step_us=step_us
        )

        def clock() -> int:
            return sum(5000 + (row_us or 0) * sum(count for _, count in batch) for batch in self.engine.batches)

        self.scheduler = Scheduler(self.engine, sessions, limits, Rates(1000.0, 5000.0), clock)
        self.deltas: list[Delta] = []

    def submit(
        self,
        id: int,
        most: int,
        generation: Generation = GREEDY,
        key: str | None = None,
    ) -> None:
        sequence = Sequence(
            id,
            0,
            np.array(prompt(id), np.int32),
            generation,
            tenant="a",
            session_key=key,
            max_tokens=most,
            pieces=FakePieces(),
        )
        self.scheduler.submit([sequence])

    def run(self) -> None:
        for _ in range(5000):
            if self.scheduler.idle:
                return
            self.deltas += self.scheduler.step()
        raise AssertionError("the scheduler does not come to an end")

    @property
    def guessed(self) -> tuple[int, int]:
        """How many guesses were made, and how many were right."""
        busyness = self.scheduler.busyness()
        return busyness.guesses_made, busyness.guesses_right

    def answer(self, id: int) -> tuple[str, int, FinishReason | None]:
        """What a client hears: the text, the number of tokens and why they end."""
        mine = [delta for delta in self.deltas if delta.id == id]
        return "".join(delta.text for delta in mine), sum(delta.tokens for delta in mine), mine[-1].finish

    def expected(self, id: int, count: int) -> tuple[str, int, FinishReason | None]:
        tokens = continuation(prompt(id), count, self.predict)
        return "".join(f"{token:02d} " for token in tokens), count, "length"


def prompt(id: int) -> list[int]:
    return [1 + id % 19, 5, 1 + id % 3]


@pytest.mark.parametrize("streams", [1, 3, 7])
@pytest.mark.parametrize("spare", [1, 2, 8])
def test_answers_are_the_same_with_guesses_in_fewer_steps(streams: int, spare: int) -> None:
    bench = Bench(spare=spare)
    for id in range(streams):
        bench.submit(id, 60 + id)
    bench.run()
    assert all(bench.answer(id) == bench.expected(id, 60 + id) for id in range(streams))
    made, right = bench.guessed
    assert 0 < right < made
    assert max(sum(count for _, count in batch) for batch in bench.engine.batches[streams:]) <= streams + spare
    alone = Bench(spare=0)
    for id in range(streams):
        alone.submit(id, 60 + id)
    alone.run()
    assert alone.guessed == (0, 0)
    assert len(bench.engine.batches) < len(alone.engine.batches)


@pytest.mark.parametrize("most", range(1, 14))
def test_no_token_more_than_asked_for_is_drawn(most: int) -> None:
    bench = Bench(spare=4, predict=lambda history: 4)
    bench.submit(1, most)
    bench.run()
    assert bench.answer(1) == bench.expected(1, most)


@pytest.mark.parametrize("at", range(20))
def test_a_stop_string_ends_the_answer_wherever_it_stands_among_guesses(at: int) -> None:
    stop = Generation(sampling=Sampling(temperature=0), stop=(f"{continuation(prompt(1), 40, repeating)[at]:02d} ",))
    answers = []
    for spare in (4, 0):
        bench = Bench(spare=spare)
        bench.submit(1, 40, stop)
        bench.run()
        answers.append(bench.answer(1))
    assert answers[0] == answers[1]


def test_the_end_of_the_text_behind_a_stop_string_does_not_count() -> None:
    said = [4, 5, 6, 4, 5, 6, 4]
    stop = Generation(sampling=Sampling(temperature=0), stop=("06 04 05 06 04 ",))
    for spare in (4, 0):
        bench = Bench(spare=spare, predict=lambda history: [*said, 0, 0][len(history) - len(prompt(1))])
        bench.submit(1, 40, stop)
        bench.run()
        assert bench.answer(1) == ("04 05 ", len(said), "stop")
        assert bool(bench.guessed[1]) == bool(spare)


def test_tokens_that_are_scored_are_drawn_one_by_one() -> None:
    bench = Bench(spare=4)
    bench.submit(1, 40, Generation(logprobs=2, sampling=Sampling(temperature=0)))
    bench.run()
    assert bench.answer(1) == bench.expected(1, 40)
    assert bench.guessed == (0, 0)


def test_the_same_seed_draws_the_same_tokens_with_guesses() -> None:
    hot = Generation(sampling=Sampling(temperature=2.5, seed=7))
    answers = []
    for spare in (4, 0):
        bench = Bench(spare=spare)
        bench.submit(1, 200, hot)
        bench.run()
        answers.append(bench.answer(1))
        assert bool(bench.guessed[0]) == bool(spare)
    assert answers[0] == answers[1]


def test_nothing_is_guessed_where_a_wrong_guess_could_not_be_taken_back() -> None:
    bench = Bench(spare=4, partial=False)
    bench.submit(1, 40)
    bench.run()
    assert bench.answer(1) == bench.expected(1, 40)
    assert bench.guessed == (0, 0)


def test_guesses_take_no_cell_that_somebody_needs() -> None:
    bench = Bench(spare=4, cells=3 * (3 + 40))
    for id in range(3):
        bench.submit(id, 40)
    bench.run()
    assert all(bench.answer(id) == bench.expected(id, 40) for id in range(3))
    assert bench.engine.copies == 0


def test_who_is_guessed_wrong_is_left_alone() -> None:
    bench = Bench(spare=1, predict=misleading)
    bench.submit(1, 1000)
    bench.run()
    assert bench.answer(1) == bench.expected(1, 1000)
    made, right = bench.guessed
    assert right < 0.25 * made and made < 300


def test_a_guess_is_worth_what_its_look_at_a_long_context_costs() -> None:
    made = []
    for row_us in (0, 500, 20_000):
        bench = Bench(spare=4, row_us=row_us)
        for id in range(3):
            bench.submit(id, 200)
        bench.run()
        assert all(bench.answer(id) == bench.expected(id, 200) for id in range(3))
        made.append(bench.guessed[0])
    # Where rows cost all that a step does, a guess that is not always right is worth less than its row.
    assert made[0] >= made[1] > 4 * made[2] > 0


def test_the_pace_that_is_told_is_that_of_tokens_and_not_of_steps() -> None:
    bench = Bench(spare=4, predict=lambda history: 4)
    bench.submit(1, 400)
    bench.run()
    made, right = bench.guessed
    steps, pace_us = len(bench.engine.batches), bench.scheduler.busyness().decode_us_per_token
    assert made == right > 190
    assert pace_us == pytest.approx(bench.scheduler.rates.decode_us * steps / 400, rel=0.05)


def test_the_next_turn_continues_what_was_guessed() -> None:
    bench = Bench(spare=2)
    bench.submit(1, 41, key="talk")
    bench.run()
    history = prompt(1) + continuation(prompt(1), 41, repeating)
    sequence = Sequence(
        2,
        0,
        np.array(history, np.int32),
        GREEDY,
        tenant="a",
        session_key="talk",
        max_tokens=30,
        pieces=FakePieces(),
    )
    bench.scheduler.submit([sequence])
    bench.run()
    wanted = "".join(f"{token:02d} " for token in continuation(history, 30, repeating))
    assert bench.answer(2) == (wanted, 30, "length")
    assert sequence.cached >= len(history) - 2
