"""Whose turn a step is where prompts meet streams, in a scheduler over a context without a model."""

from __future__ import annotations

import pytest

from tests.adapters.llama_cpp.test_scheduler import Bench, expected, prompt


def test_short_prompts_that_came_together_are_computed_before_their_streams_go_on() -> None:
    bench = Bench(chunk=64, parallel=6)
    for id in range(5):
        bench.submit(id, prompt(32, seed=id), 20)
    bench.run()
    sizes = [sum(count for _, count in batch) for batch in bench.engine.batches]
    assert sizes[:6] == [32, 32, 32, 32, 32 + 4, 5], "streams wait for two chunks of 64"


def test_a_burst_of_many_prompts_is_computed_one_after_the_other() -> None:
    bench = Bench(chunk=64, parallel=8)
    for id in range(8):
        bench.submit(id, prompt(56, seed=id), 60)
    bench.run()
    prompts = [batch for batch in bench.engine.batches if any(count > 1 for _, count in batch)]
    assert [[count for _, count in batch if count > 1] for batch in prompts] == [[56]] * 8
    sizes = [sum(count for _, count in batch) for batch in bench.engine.batches]
    assert sizes[:10] == [56, 56, 56, 56 + 3, 56, 56, 56, 7, 56, 8], "and streams wait for two chunks of 64"


def test_a_prompt_of_which_all_but_a_token_is_known_does_not_wait_for_a_burst() -> None:
    bench = Bench(chunk=64, parallel=8)
    bench.submit(0, prompt(56, seed=0), 1)
    bench.run()
    for id in range(1, 5):
        bench.submit(id, prompt(56, seed=id), 60)
    bench.submit(5, prompt(56, seed=0), 60)
    bench.step()
    assert bench.cached(5) == [55] and not bench.cached(2)


@pytest.mark.parametrize(("arrived_us", "tokens"), [(None, 32), (20_000, 60)])
def test_a_prompt_gets_small_chunks_beside_a_stream_unless_it_came_with_it(arrived_us: int | None, tokens: int) -> None:
    bench = Bench(chunk=64)
    bench.submit(1, prompt(32, seed=1), 60)
    bench.step()
    bench.now_us += 50_000
    bench.submit(2, prompt(60, seed=2), 4, arrived_us=arrived_us)
    bench.step()
    assert sum(count for _, count in bench.engine.batches[-1]) == tokens


def test_long_streams_and_a_prompt_take_turns() -> None:
    bench = Bench(chunk=64)
    bench.submit(1, prompt(600, seed=1), 60)
    while not bench.cached(1):
        bench.step()
    bench.submit(2, prompt(200, seed=2), 4)
    begun = len(bench.engine.batches)
    while not bench.cached(2):
        bench.step()
    sizes = [sum(count for _, count in batch) for batch in bench.engine.batches[begun:]]
    assert sizes[::2] == [1] * len(sizes[::2]) and set(sizes[1:-1:2]) == {32}
    assert bench.text(2)[:3] == expected(prompt(200, seed=2))[:3]
