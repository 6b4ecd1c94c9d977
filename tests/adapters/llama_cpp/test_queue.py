"""The fair queue: order, bounds, refusals, promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdapterError, Busy, Overloaded, QueueFull
from adapters.llama_cpp.queue import Entry, FairQueue, Rates


class Nobody:
    def granted(self, entry: Entry) -> None: ...

    def evicted(self, entry: Entry, error: AdapterError) -> None: ...


def entry(tenant: str = "a", prompt: int = 10, output: int = 10, choices: int = 1, **more: object) -> Entry:
    return Entry(tenant=tenant, owner=Nobody(), prompt_tokens=prompt, max_tokens=output, choices=choices, **more)  # type: ignore[arg-type]


def tenants(entries: list[Entry]) -> str:
    return "".join(one.tenant for one in entries)


class Simulation:
    """An engine that spends its time first on prompts, in order, and then gives every running entry a token a step."""

    def __init__(self, parallel: int, depth_max: int, rates: Rates) -> None:
        self.queue = FairQueue(parallel, depth_max)
        self.queue.rates = rates
        self.rates = rates
        self.now_s = 0.0
        self.running: list[Entry] = []
        self.prompts: list[list[float]] = []
        self.dispatched_s: list[float] = []
        self.service: dict[str, float] = {}
        self.finished: list[Entry] = []

    def dispatch(self) -> None:
        for one in self.queue.dispatch(self.now_s):
            self.running.append(one)
            self.prompts.append([one.prompt_tokens, 0])
            self.dispatched_s.append(self.now_s)
            self.service[one.tenant] = self.service.get(one.tenant, 0.0) + one.prompt_tokens

    def step(self, chunk: int = 512) -> None:
        """One engine step: a token for each decoding entry, then a chunk of prompts."""
        room, decoding, computed = chunk, False, 0
        for one, prompt in list(zip(self.running, self.prompts, strict=True)):
            if prompt[0] > 0:
                part = min(room, prompt[0])
                prompt[0] -= part
                room -= int(part)
                computed += int(part)
            else:
                decoding = True
                one.produced += one.choices
                self.service[one.tenant] += 2.0 * one.choices
                prompt[1] += 1
                if prompt[1] >= one.max_tokens:
                    at = self.running.index(one)
                    del self.running[at], self.prompts[at]
                    self.finished.append(one)
        self.now_s += (computed * self.rates.prefill_us_per_token + decoding * self.rates.decode_us_per_token) * 1e-6
        for one in self.finished:
            self.queue.finished(one, self.now_s)
        self.finished.clear()
        self.dispatch()


def test_lowest_counter_goes_next_and_input_counts_at_dispatch() -> None:
    queue = FairQueue(1, 10)
    first = entry("a", prompt=100)
    for one in (first, entry("a"), entry("b"), entry("b")):
        queue.join(one, 0.0)
    assert tenants(queue.dispatch(0.0)) == "a"
    queue.finished(first, 0.0)
    assert tenants(queue.dispatch(0.0)) == "b"


def test_output_costs_twice_and_weight_divides() -> None:
    queue = FairQueue(2, 10)
    light, heavy = entry("light", prompt=0), entry("heavy", prompt=0, weight=4.0)
    queue.join(light, 0.0)
    queue.join(heavy, 0.0)
    queue.join(entry("light", prompt=0), 0.0)
    queue.join(entry("heavy", prompt=0, weight=4.0), 0.0)
    queue.dispatch(0.0)
    light.produced += 10
    heavy.produced += 39
    queue.finished(light, 0.0)
    assert tenants(queue.dispatch(0.0)) == "heavy"


def test_priority_then_arrival_inside_a_tenant() -> None:
    queue = FairQueue(4, 10)
    ones = [entry(), entry(priority=5), entry(priority=5), entry(priority=-1)]
    for one in ones:
        queue.join(one, 0.0)
    assert queue.dispatch(0.0) == [ones[1], ones[2], ones[0], ones[3]]


def test_an_idle_tenant_is_lifted_to_the_lowest_active_counter() -> None:
    queue = FairQueue(1, 10)
    running = entry("a", prompt=1000)
    queue.join(running, 0.0)
    queue.dispatch(0.0)
    queue.join(entry("a"), 0.0)
    queue.join(entry("b"), 0.0)
    queue.finished(running, 0.0)
    first = queue.dispatch(0.0)
    assert tenants(first) == "a", "b starts level with a, so a's earlier arrival decides"
    queue.finished(first[0], 0.0)
    assert tenants(queue.dispatch(0.0)) == "b"


def test_a_head_that_does_not_fit_is_not_overtaken() -> None:
    queue = FairQueue(4, 10)
    running = [entry("a") for _ in range(3)]
    for one in running:
        queue.join(one, 0.0)
    queue.dispatch(0.0)
    wide = entry("b", choices=4)
    queue.join(wide, 0.0)
    assert queue.dispatch(0.0) == []
    queue.join(entry("c"), 0.0)
    queue.finished(running[0], 0.0)
    assert queue.dispatch(0.0) == []
    queue.finished(running[1], 0.0)
    queue.finished(running[2], 0.0)
    assert queue.dispatch(0.0) == [wide]


def test_wide_entries_take_the_whole_engine_at_most_and_shrink() -> None:
    queue = FairQueue(4, 10)
    wide, small = entry(choices=9), entry()
    queue.join(wide, 0.0)
    queue.join(small, 0.0)
    assert queue.dispatch(0.0) == [wide]
    queue.shrink(wide, 5)
    assert queue.dispatch(0.0) == []
    queue.shrink(wide, 3)
    assert queue.dispatch(0.0) == [small]
    assert queue.slots_taken == 4


def fill(queue: FairQueue, names: str) -> list[Entry]:
    blocker = entry("running")
    queue.join(blocker, 0.0)
    queue.dispatch(0.0)
    waiting = [entry(name) for name in names]
    for one in waiting:
        queue.join(one, 0.0)
    return waiting


def test_a_full_share_is_refused_with_429() -> None:
    queue = FairQueue(1, 4)
    fill(queue, "aaaa")
    with pytest.raises(QueueFull) as refusal:
        queue.join(entry("a"), 0.0)
    assert refusal.value.retry_after_s is not None
    assert queue.waiting == 4


def test_the_tenant_furthest_over_its_share_loses_its_newest() -> None:
    queue = FairQueue(1, 4)
    waiting = fill(queue, "baaa")
    lost = queue.join(entry("c"), 0.0)
    assert lost is not None
    victim, error = lost
    assert victim is waiting[3]
    assert isinstance(error, QueueFull)
    assert error.retry_after_s is not None
    assert tenants(queue.in_line()) == "baac"


def test_nobody_over_its_share_is_503() -> None:
    queue = FairQueue(1, 4)
    fill(queue, "abcd")
    with pytest.raises(Overloaded):
        queue.join(entry("e"), 0.0)


def test_a_committed_entry_is_not_evicted() -> None:
    queue = FairQueue(1, 2)
    blocker = entry("running")
    queue.join(blocker, 0.0)
    queue.dispatch(0.0)
    queue.join(entry("a", committed=True), 0.0)
    queue.join(entry("a", committed=True), 0.0)
    with pytest.raises(Overloaded):
        queue.join(entry("b"), 0.0)


def test_sixty_at_once_into_a_queue_of_ten() -> None:
    queue = FairQueue(8, 10)
    refused = 0
    for _ in range(60):
        try:
            queue.join(entry(), 0.0)
        except QueueFull:
            refused += 1
        queue.dispatch(0.0)
    assert (queue.running, queue.waiting, refused) == (8, 10, 42)


def test_counters_are_forgotten_after_a_busy_period() -> None:
    queue = FairQueue(1, 10)
    one = entry("a", prompt=10_000)
    queue.join(one, 0.0)
    queue.dispatch(0.0)
    queue.finished(one, 0.0)
    assert not queue._tenants


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    parallel=st.integers(1, 8),
    depth=st.integers(1, 12),
    prompt=st.integers(1, 300),
    output=st.integers(4, 100),
    arrivals=st.integers(1, 60),
    prefill_us=st.floats(10, 5000),
)
def test_promised_times_are_right_within_a_factor_of_two(
    parallel: int, depth: int, prompt: int, output: int, arrivals: int, prefill_us: float
) -> None:
    """The k-th refused caller is told when the k-th waiting place comes free, and that is when it does."""
    engine = Simulation(parallel, depth, Rates(prefill_us, 20_000.0))
    promises = []
    for _ in range(arrivals):
        try:
            engine.queue.join(entry(prompt=prompt, output=output), 0.0)
        except Busy as refusal:
            promises.append(refusal.retry_after_s or 0.0)
        engine.dispatch()
    running = engine.queue.running
    # Those who were refused come back in time to keep the line full, as they were told to.
    returning = len(promises)
    while len(engine.dispatched_s) < running + len(promises):
        while returning and engine.queue.waiting < depth:
            engine.queue.join(entry(prompt=prompt, output=output), engine.now_s)
            returning -= 1
        engine.step()
    one_step_s = 0.02 + min(512, parallel * prompt) * prefill_us * 1e-6
    for promised_s, actual_s in zip(promises, engine.dispatched_s[running:], strict=False):
        assert actual_s / 2 - one_step_s <= promised_s <= 2 * actual_s + one_step_s


def test_a_promise_follows_what_was_observed() -> None:
    engine = Simulation(2, 2, Rates(0.0, 10_000.0))
    for _ in range(4):
        engine.queue.join(entry(output=1000), 0.0)
        engine.dispatch()
    with pytest.raises(QueueFull) as early:
        engine.queue.join(entry(output=1000), 0.0)
    for one in list(engine.queue.dispatch(0.0)) + engine.running:
        one.produced += 20
        engine.queue.finished(one, 0.4)
    engine.running.clear()
    engine.prompts.clear()
    engine.dispatch()
    engine.queue.join(entry(output=1000), 100.0)
    engine.queue.join(entry(output=1000), 100.0)
    with pytest.raises(QueueFull) as late:
        engine.queue.join(entry(output=1000), 100.0)
    assert early.value.retry_after_s == pytest.approx(2.56)
    assert late.value.retry_after_s == pytest.approx(20 * 0.4 / 20), "outputs of 20 tokens, one each 20 ms"


def promised_tokens(queue: FairQueue, max_tokens: int, *, endless: bool = False) -> float:
    """After how many tokens of the one that runs a full line says that it has a place."""
    queue.rates = Rates(0.0, 1e6)
    others = [entry(prompt=0, output=max_tokens, endless=endless) for _ in range(2)]
    for one in others:
        queue.join(one, 0.0)
        queue.dispatch(0.0)
    with pytest.raises(QueueFull) as refusal:
        queue.join(entry(prompt=0, output=max_tokens), 0.0)
    for one in others:
        queue.leave(one)
    return refusal.value.retry_after_s or 0.0


def test_the_length_of_an_answer_that_only_its_bound_ends_is_known() -> None:
    queue = FairQueue(1, 1)
    assert promised_tokens(queue, 1500) == 256
    assert promised_tokens(queue, 1500, endless=True) == 1500


def test_a_bound_teaches_nothing_of_longer_answers() -> None:
    queue = FairQueue(1, 1)
    for max_tokens, produced, expected in ((8, 8, 256), (1000, 1000, 1000), (2000, 1200, 1040), (8, 8, 1040)):
        one = entry(prompt=0, output=max_tokens)
        queue.join(one, 0.0)
        queue.dispatch(0.0)
        one.produced = produced
        queue.finished(one, 0.0)
        assert promised_tokens(queue, 1500) == expected


def refused(queue: FairQueue, tenant: str) -> float:
    with pytest.raises(QueueFull) as refusal:
        queue.join(entry(tenant), 0.0)
    return refusal.value.retry_after_s or 0.0


def test_one_tenants_herd_does_not_lengthen_the_wait_of_another() -> None:
    queue = FairQueue(1, 4)
    fill(queue, "aabb")
    first = refused(queue, "b")
    herd = [refused(queue, "a") for _ in range(100)]
    assert herd[-1] > 50 * first
    assert refused(queue, "b") < 3 * first


def test_promises_are_forgotten_after_a_busy_period() -> None:
    queue = FairQueue(1, 2)
    waiting = fill(queue, "aa")
    herd = [refused(queue, "a") for _ in range(10)]
    for one in [*queue._running.values(), *waiting]:
        queue.leave(one)
    fill(queue, "aa")
    assert refused(queue, "a") == herd[0]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["join", "join", "join", "serve", "finish", "leave", "shrink"]), st.integers(0, 30)),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(parallel=st.integers(1, 5), depth=st.integers(1, 6), operations=OPERATIONS)
def test_invariants_hold_under_any_sequence(parallel: int, depth: int, operations: list[tuple[str, int]]) -> None:
    """Bounds hold, no entry is lost or doubled, and no slot is idle while the first in line fits."""
    queue = FairQueue(parallel, depth)
    waiting: list[Entry] = []
    running: list[Entry] = []
    left: dict[int, int] = {}
    for clock, (operation, pick) in enumerate(operations):
        if operation == "join":
            one = entry("abcd"[pick % 4], prompt=pick, choices=1 + pick % 6, priority=pick % 3, weight=1 + pick % 2)
            left[id(one)] = one.choices
            try:
                lost = queue.join(one, float(clock))
            except Busy:
                assert len(waiting) == depth
            else:
                waiting.append(one)
                if lost is not None:
                    waiting.remove(lost[0])
        elif operation == "leave" and waiting + running:
            one = (waiting + running)[pick % len(waiting + running)]
            (running if one in running else waiting).remove(one)
            queue.leave(one)
            queue.leave(one)
        elif running:
            one = running[pick % len(running)]
            if operation == "serve":
                one.produced += pick
            elif operation == "shrink" and left[id(one)] > 1:
                left[id(one)] -= 1
                queue.shrink(one, left[id(one)])
            else:
                running.remove(one)
                queue.finished(one, 0.0)
        for one in queue.dispatch(float(clock)):
            waiting.remove(one)
            running.append(one)
        assert queue.waiting == len(waiting) <= depth
        assert sorted(map(id, queue.in_line())) == sorted(map(id, waiting))
        assert queue.running == len(running)
        taken = sum(min(left[id(one)], parallel) for one in running)
        assert queue.slots_taken == taken <= parallel
        if waiting and taken < parallel:
            assert queue._head is not None
            assert taken + min(queue._head.choices, parallel) > parallel


@settings(max_examples=40, deadline=None)
@given(
    weights=st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([1.0, 3.0])),
    parallel=st.integers(1, 4),
    prompts=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    outputs=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_backlogged_tenants_get_service_by_weight(
    weights: tuple[float, float], parallel: int, prompts: tuple[int, int], outputs: tuple[int, int]
) -> None:
    """The bound of the paper: the normalised services of two backlogged tenants differ by a constant at any time."""
    engine = Simulation(parallel, 8, Rates(100.0, 1000.0))

    def refill() -> None:
        for name, weight, prompt, output in zip("ab", weights, prompts, outputs, strict=True):
            while sum(one.tenant == name for one in engine.queue.in_line()) < 4:
                engine.queue.join(entry(name, prompt, output, weight=weight), engine.now_s)

    largest = max((p + 2 * o) / w for p, o, w in zip(prompts, outputs, weights, strict=True))
    bound = 2 * parallel * largest
    refill()
    engine.dispatch()
    for _ in range(600):
        engine.step()
        refill()
        normalised = [engine.service.get(name, 0.0) / weight for name, weight in zip("ab", weights, strict=True)]
        assert abs(normalised[0] - normalised[1]) <= bound
