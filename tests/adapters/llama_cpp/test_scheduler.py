"""The scheduler against a context that notices every wrong cell."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.llama_cpp.kept import Budget
from adapters.llama_cpp.lora import NO_ADAPTERS, AdapterSet
from adapters.llama_cpp.messages import CacheReport, Delta
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Generation, Sampling
from tests.adapters.llama_cpp.fake_engine import FakeEngine, FakePieces, Predict, continuation, predicted

GREEDY = Generation(sampling=Sampling(temperature=0))


class Bench:
    """A scheduler over a fake engine, where each token takes a millisecond, and each copy `copy_us`."""

    def __init__(
        self,
        *,
        cells: int = 4096,
        parallel: int = 4,
        chunk: int = 64,
        ram: int = 1 << 20,
        padding: bool = False,
        tile: int = 16,
        contended: bool = False,
        partial: bool = True,
        copy_us: int = 5000,
        spare: int = 0,
        predict: Predict = predicted,
    ) -> None:
        self.now_us = 0
        self._copy_us = copy_us
        self.engine = FakeEngine(cells=cells, slots=parallel + 9, partial=partial, predict=predict)
        self.sessions = Sessions(self.engine, Budget(ram_bytes=ram, ttl_s=1e9), lambda: self.now_us)
        limits = Limits(
            parallel=parallel,
            chunk_tokens=chunk,
            target_gap_us=40_000,
            padding={3: 4, 5: 8} if padding else {},
            tile=tile,
            spare=dict.fromkeys(range(1, parallel + 1), spare),
        )
        self.scheduler = Scheduler(
            self.engine, self.sessions, limits, Rates(1000.0, 5000.0), self._clock, lambda: contended
        )
        self.engine.on_decode = self._spend
        self.engine.on_copy = self._copied
        self.deltas: list[Delta] = []

    def _spend(self, tokens: int) -> None:
        self.now_us += 1000 * tokens

    def _copied(self) -> None:
        self.now_us += self._copy_us

    def _clock(self) -> int:
        self.now_us += 10
        return self.now_us

    def submit(
        self,
        id: int,
        prompt: list[int],
        count: int = 8,
        *,
        tenant: str = "a",
        n: int = 1,
        generation: Generation = GREEDY,
        adapters: AdapterSet = NO_ADAPTERS,
        key: str | None = None,
        explain: bool = False,
        arrived_us: int | None = None,
    ) -> None:
        self.scheduler.submit(
            [
                Sequence(
                    id,
                    choice,
                    np.array(prompt, np.int32),
                    generation,
                    tenant=tenant,
                    session_key=key,
                    explain=explain,
                    max_tokens=count,
                    pieces=FakePieces(),
                    adapters=adapters,
                )
                for choice in range(n)
            ],
            arrived_us,
        )

    def step(self) -> list[Delta]:
        deltas = self.scheduler.step()
        self.deltas += deltas
        return deltas

    def run(self, steps_max: int = 20_000) -> None:
        for _ in range(steps_max):
            if self.scheduler.idle:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def text(self, id: int, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas if (delta.id, delta.choice) == (id, choice))

    def cached(self, id: int) -> list[int]:
        return [delta.cached_tokens for delta in self.deltas if delta.id == id and delta.cached_tokens >= 0]


def expected(prompt: list[int], count: int = 8, predict: Predict = predicted) -> str:
    return "".join(f"{token:02d} " for token in continuation(prompt, count, predict))


def prompt(size: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, 97), k=size)


def test_a_request_gets_its_continuation_and_one_finish() -> None:
    bench = Bench()
    bench.submit(1, prompt(100))
    bench.run()
    assert bench.text(1) == expected(prompt(100))
    assert [delta.finish for delta in bench.deltas if delta.finish] == ["length"]
    assert sum(delta.tokens for delta in bench.deltas) == 8


def test_the_next_turn_computes_only_what_is_new() -> None:
    bench = Bench()
    bench.submit(1, prompt(100))
    bench.run()
    history = prompt(100) + continuation(prompt(100), 8)
    before = bench.engine.computed
    bench.submit(2, [*history, 5, 6])
    bench.run()
    assert bench.text(2) == expected([*history, 5, 6])
    assert bench.cached(2) == [107]
    assert bench.engine.computed - before == 3 + 7


def test_another_tenant_reuses_nothing() -> None:
    bench = Bench()
    bench.submit(1, prompt(100))
    bench.run()
    bench.submit(2, prompt(100), tenant="b")
    bench.run()
    assert bench.cached(2) == [0]
    assert bench.text(2) == expected(prompt(100))


def test_live_requests_share_a_prefix_that_is_computed_once() -> None:
    bench = Bench(parallel=8)
    for id in range(8):
        bench.submit(id, prompt(512) + prompt(48, seed=id + 1), 1)
    bench.run()
    assert sorted(bench.cached(id)[0] for id in range(8)) == [0] + [512] * 7
    assert bench.engine.computed == 512 + 8 * 48
    assert all(bench.text(id) == expected(prompt(512) + prompt(48, seed=id + 1), 1) for id in range(8))


def test_choices_of_one_request_share_its_prompt() -> None:
    bench = Bench()
    bench.submit(1, prompt(200), 3, n=3)
    bench.run()
    assert bench.engine.computed == 200 + 2 * 1 + 3 * 2
    assert {bench.text(1, choice) for choice in range(3)} == {expected(prompt(200), 3)}


def test_a_seed_computes_the_prompt_afresh_but_shares_it_among_its_choices() -> None:
    bench = Bench()
    seeded = Generation(sampling=Sampling(temperature=0, seed=1))
    for id in (1, 2):
        bench.submit(id, prompt(200), 2, n=2, generation=seeded)
        bench.run()
    assert bench.cached(2) == [0, 199]


def test_a_running_stream_gets_a_token_in_every_step_beside_a_long_prompt() -> None:
    bench = Bench()
    bench.submit(1, prompt(10), 60)
    bench.step()
    bench.submit(2, prompt(1000, seed=9), 1)
    while not bench.cached(2):
        assert [delta.id for delta in bench.step() if delta.id == 1] == [1]
    chunks = [count for batch in bench.engine.batches[1:] for _, count in batch if count > 1]
    assert max(chunks) <= 40_000 // 1000, "a chunk must keep the step near the target gap"


def test_two_requests_that_outgrow_the_pool_both_finish() -> None:
    bench = Bench(cells=300)
    bench.submit(1, prompt(100, seed=1), 150)
    bench.submit(2, prompt(100, seed=2), 150)
    bench.run()
    for id in (1, 2):
        assert bench.text(id) == expected(prompt(100, seed=id), 150)


def test_a_pool_that_is_full_for_one_request_alone_ends_it_by_length() -> None:
    bench = Bench(cells=128)
    bench.submit(1, prompt(100), 100)
    bench.run()
    assert expected(prompt(100), 100).startswith(bench.text(1))
    assert [delta.finish for delta in bench.deltas if delta.finish] == ["length"]


def test_padding_takes_no_cell_of_the_pool_that_an_answer_needs() -> None:
    bench = Bench(cells=256, chunk=512, tile=64)
    bench.submit(1, prompt(199), 1)
    bench.run()
    longer = [*prompt(199), *prompt(52, seed=2)]
    bench.submit(2, longer, 4)
    bench.run()
    assert (bench.text(2), bench.cached(2)) == (expected(longer, 4), [199])


def test_idle_conversations_leave_the_context_for_running_ones() -> None:
    bench = Bench()
    for id in range(5):
        bench.submit(id, prompt(300, seed=id), 2)
        bench.run()
    bench.submit(9, prompt(10, seed=99), 4)
    bench.step()
    assert bench.sessions.tiers.resident_tokens == 0
    bench.run()


def test_a_conversation_that_is_being_continued_stays_where_it_is() -> None:
    bench = Bench()
    bench.submit(1, prompt(600), 2)
    bench.run()
    bench.submit(2, prompt(600) + continuation(prompt(600), 2) + [5], 4)
    bench.step()
    assert bench.sessions.tiers.resident_tokens == 601
    bench.run()
    assert bench.sessions.tiers.resident_tokens == 606, "and is replaced by what continued it"


def test_a_conversation_of_which_only_the_beginning_is_continued_leaves_the_context() -> None:
    bench = Bench()
    bench.submit(1, prompt(600), 2)
    bench.run()
    other = prompt(300) + prompt(50, seed=7)
    bench.submit(2, other, 4)
    bench.step()
    assert bench.sessions.tiers.resident_tokens == 0
    bench.run()
    assert (bench.cached(2), bench.text(2)) == ([300], expected(other, 4))


def test_steps_with_prompt_tokens_hold_whole_tiles() -> None:
    bench = Bench(chunk=256, tile=16)
    bench.submit(1, prompt(10), 60)
    bench.step()
    bench.submit(2, prompt(1000, seed=9), 1)
    while not bench.cached(2):
        bench.step()
    sizes = [sum(count for _, count in batch) for batch in bench.engine.batches[2:]]
    assert {size % 16 for size in sizes[:-1]} == {0}, "all but the end of the prompt"


def test_a_long_prompt_takes_small_steps_while_streams_of_other_models_wait() -> None:
    bench = Bench(contended=True, tile=1)
    bench.submit(1, prompt(300), 1)
    bench.run()
    assert bench.text(1) == expected(prompt(300), 1)
    chunks = [count for batch in bench.engine.batches for _, count in batch]
    assert max(chunks) == 40_000 // 1000, "what the target gap allows"


def test_long_streams_of_two_adapters_and_a_prompt_all_move() -> None:
    bench = Bench(chunk=64)
    for id in (1, 2):
        bench.submit(id, prompt(600, seed=id), 40, adapters=adapters(id))
    while not (bench.cached(1) and bench.cached(2)):
        bench.step()
    bench.submit(3, prompt(300, seed=3), 4, adapters=adapters(1))
    while not bench.cached(3):
        seen = {delta.id for _ in range(4) for delta in bench.step()}
        assert seen >= {1, 2}


def adapters(scale: float) -> AdapterSet:
    return AdapterSet(f"x*{scale}", ((0, scale),))


def test_adapter_sets_take_turns_and_share_no_step() -> None:
    bench = Bench(parallel=6, tile=1)
    for id in range(6):
        bench.submit(id, prompt(4, seed=id), 20, adapters=NO_ADAPTERS if id < 3 else adapters(id % 2))
    bench.run()
    assert all(bench.text(id) == expected(prompt(4, seed=id), 20) for id in range(6))
    turns = [frozenset(slot for slot, _ in batch) for batch in bench.engine.batches]
    assert len(set(turns)) == 3 and all(set(turns[at : at + 3]) == set(turns) for at in range(len(turns) - 2))


def test_a_long_prompt_of_one_adapter_keeps_the_gap_of_the_streams_of_another() -> None:
    bench = Bench()
    bench.submit(1, prompt(10), 60)
    bench.step()
    bench.submit(2, prompt(1000, seed=9), 1, adapters=adapters(1))
    while not bench.cached(2):
        steps = [*bench.step(), *bench.step()]
        assert 1 in [delta.id for delta in steps], "every other step is the stream's"
    chunks = [count for batch in bench.engine.batches[1:] for _, count in batch if count > 1]
    assert max(chunks) <= 40_000 // 1000 // 2 + 16, "two sets share the target gap"


def test_ever_new_adapter_sets_do_not_starve_the_others() -> None:
    bench = Bench(parallel=3)
    for id in (1, 2):
        bench.submit(id, prompt(10, seed=id), 30, adapters=adapters(id))
    for step in range(100):
        bench.submit(100 + step, prompt(4, seed=step), 1, adapters=adapters(100 + step))
        bench.step()
    assert [bench.text(id) for id in (1, 2)] == [expected(prompt(10, seed=id), 30) for id in (1, 2)]


def test_what_was_computed_under_an_adapter_is_not_reused_under_another() -> None:
    bench = Bench()
    sets = [NO_ADAPTERS, adapters(1), adapters(0.5)]
    for round in range(2):
        for place, chosen in enumerate(sets):
            bench.submit(10 * round + place, prompt(100), adapters=chosen)
            bench.run()
            assert bench.cached(10 * round + place) == [99 if round else 0]


def test_cancel_ends_running_and_waiting_sequences_and_keeps_their_work() -> None:
    bench = Bench(parallel=1)
    bench.submit(1, prompt(200, seed=1), 500)
    bench.submit(2, prompt(200, seed=2))
    for _ in range(6):
        bench.step()
    assert bench.scheduler.cancel(1) and bench.scheduler.cancel(2)
    assert bench.scheduler.idle
    bench.submit(3, prompt(200, seed=1))
    bench.run()
    assert bench.cached(3) == [199]


def test_an_aborted_step_is_repeated() -> None:
    bench = Bench()
    bench.engine.fail_with = [2, 2]
    bench.submit(1, prompt(100))
    bench.run()
    assert bench.text(1) == expected(prompt(100))


@pytest.mark.parametrize(("running", "padded"), [(2, 2), (3, 4), (4, 4), (5, 8)])
def test_pure_decode_steps_are_padded_where_it_pays(running: int, padded: int) -> None:
    bench = Bench(parallel=8, padding=True)
    for id in range(running):
        bench.submit(id, prompt(4, seed=id), 6)
    bench.run()
    sizes = {sum(count for _, count in batch) for batch in bench.engine.batches[2:]}
    assert sizes == {padded}
    assert all(bench.text(id) == expected(prompt(4, seed=id), 6) for id in range(running))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_any_history_gives_every_request_its_own_continuation(seed: int) -> None:
    """Random prompts with shared beginnings, tenants, adapters, cancels, aborts, too small a pool for all, and guesses
    that are wrong or right."""
    chance = random.Random(seed)
    predict = chance.choice([predicted, lambda history: predicted(history[-1:])])
    bench = Bench(
        cells=chance.choice([200, 400, 2000]),
        parallel=chance.choice([1, 3, 6]),
        ram=chance.choice([0, 2000, 1 << 20]),
        spare=chance.choice([0, 1, 6]),
        predict=predict,
    )
    stems = [prompt(chance.randrange(20, 120), seed=stem) for stem in range(3)]
    wanted: dict[int, str] = {}
    for id in range(chance.randrange(1, 15)):
        text = chance.choice(stems) + prompt(chance.randrange(0, 20), seed=chance.randrange(4))
        count = chance.randrange(1, 40)
        chosen = chance.choice([NO_ADAPTERS, NO_ADAPTERS, adapters(1)])
        bench.submit(id, text, count, tenant=chance.choice("ab"), adapters=chosen)
        wanted[id] = expected(text, count, predict)
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
    assert bench.engine.used() <= bench.sessions.tiers.resident_tokens


def test_an_explained_request_hears_where_it_left_its_session() -> None:
    bench = Bench()
    bench.submit(1, prompt(100), key="talk")
    bench.run()
    history = prompt(100) + continuation(prompt(100), 7)
    edited = [*history[:60], 1, 2, 3, 4]
    assert history[60] != 1
    bench.submit(2, edited, key="talk", explain=True)
    bench.submit(3, prompt(50, seed=7), tenant="b", explain=True)
    bench.run()
    reports = {delta.id: delta.cache for delta in bench.deltas if delta.cache is not None}
    expected_text = "".join(f"{token:02d} " for token in history[60:66])
    assert reports[2] == CacheReport(60, 107, 60, expected_text, "01 02 03 04 ", "cells", reports[2].restore_us, 4)
    assert reports[3] == CacheReport(0, 0, -1, "", "", None, 0, 50)


@pytest.mark.parametrize(("copy_us", "most"), [(3000, 1), (1000, 2)])
def test_beside_a_running_stream_as_many_sequences_are_copied_as_a_step_of_it_has_time_for(
    copy_us: int, most: int
) -> None:
    bench = Bench(parallel=6, copy_us=copy_us)
    for id in range(4):
        bench.submit(id, prompt(100, seed=id), 2)
        bench.run()
    bench.submit(10, prompt(20, seed=50), 60)
    bench.step()
    copies = [bench.engine.copies]
    for id in range(4):
        bench.submit(20 + id, [*prompt(100, seed=id), *continuation(prompt(100, seed=id), 1), 5], 2)
    while not bench.scheduler.idle:
        bench.step()
        copies.append(bench.engine.copies)
    assert max(after - before for before, after in itertools.pairwise(copies)) == most
    assert [bench.cached(20 + id) for id in range(4)] == [[101]] * 4


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(250, 350), st.integers(4, 6))
def test_a_pool_that_overflows_copies_one_sequence_per_step_too(dice: random.Random, cells: int, parallel: int) -> None:
    bench = Bench(cells=cells, parallel=parallel, chunk=32)
    arriving = list(range(12))
    while arriving or not bench.scheduler.idle:
        if arriving and dice.random() < 0.3:
            turn = prompt(dice.randrange(5, 100), seed=dice.randrange(3))
            bench.submit(arriving.pop(), turn, dice.randrange(1, 100), key=dice.choice([None, "one", "other"]))
        disturbs, copies = bench.scheduler.busyness().running > 0, bench.engine.copies
        bench.step()
        assert not disturbs or bench.engine.copies - copies <= 1


def test_a_model_that_cannot_cut_continues_from_checkpoints() -> None:
    bench = Bench(partial=False)
    bench.submit(1, prompt(100), 8)
    bench.run()
    bench.submit(2, [*prompt(100), 1, 2, 3], 8)
    bench.submit(3, prompt(100), 8, tenant="b")
    bench.run()
    assert bench.text(2) == expected([*prompt(100), 1, 2, 3])
    assert bench.cached(2) == [99] and bench.cached(3) == [0]


def test_a_conversation_deleted_while_it_runs_is_not_kept() -> None:
    bench = Bench()
    bench.submit(1, prompt(100), 20, key="talk")
    for _ in range(5):
        bench.step()
    bench.scheduler.forget("b", "talk")
    bench.scheduler.forget("a", "talk")
    bench.run()
    assert len(bench.sessions.tiers.kept) == 0 and bench.engine.used() == 0
