"""Conversations on disk: written soon after their answer, there after a restart, gone when they should be."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.llama_cpp.kept import PUBLIC, Budget, Owner, common_prefix
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.pacing import Limits, Rates
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Changed, Sessions
from adapters.types import Generation, Sampling, SessionAction, SessionInfo
from tests.adapters.llama_cpp.fake_disk import FakeDisk
from tests.adapters.llama_cpp.fake_engine import FakeEngine, FakePieces, continuation

GREEDY = Generation(sampling=Sampling(temperature=0))


@dataclass
class Bench:
    """A worker's life: a scheduler over a fake engine, and a disk that may have been there before."""

    disk: FakeDisk = field(default_factory=FakeDisk)
    ram: int = 1 << 20
    disk_bytes: int = 1 << 20
    count: int = 100
    partial: bool = True
    cells: int = 4096
    now_us: int = 1_000_000

    def __post_init__(self) -> None:
        self.engine = FakeEngine(cells=self.cells, slots=20, partial=self.partial)
        budget = Budget(ram_bytes=self.ram, disk_bytes=self.disk_bytes, count=self.count, ttl_s=100, disk_ttl_s=1000)
        self.sessions = Sessions(self.engine, budget, self._clock, self.disk)
        limits = Limits(parallel=6, chunk_tokens=64, target_gap_us=10**6, padding={}, tile=1)
        self.scheduler = Scheduler(self.engine, self.sessions, limits, Rates(1000.0, 1000.0), self._clock)
        self.deltas: list[Delta] = []

    def _clock(self) -> int:
        self.now_us += 10
        return self.now_us

    def sequence(
        self, id: int, prompt: list[int], count: int = 4, *, tenant: str = "a", key: str | None = None
    ) -> Sequence:
        tokens = np.array(prompt, np.int32)
        return Sequence(
            id, 0, tokens, GREEDY, tenant=tenant, session_key=key, max_tokens=count, pieces=FakePieces(), explain=True
        )

    def submit(self, id: int, prompt: list[int], count: int = 4, *, tenant: str = "a", key: str | None = None) -> None:
        self.scheduler.submit([self.sequence(id, prompt, count, tenant=tenant, key=key)])

    def run(self, steps_max: int = 3000) -> None:
        """Until there is nothing to do any more, not even for the disk."""
        for _ in range(steps_max):
            if not self.scheduler.idle:
                self.deltas += self.scheduler.step()
            elif not self.scheduler.tidy() and not (self.sessions.tiers.unwritten and not self.disk.slow):
                self.scheduler.tidy()
                return
        raise AssertionError("the scheduler does not come to an end")

    def ask(self, id: int, prompt: list[int], count: int = 4, *, tenant: str = "a", key: str | None = None) -> str:
        self.submit(id, prompt, count, tenant=tenant, key=key)
        self.run()
        return self.text(id)

    def text(self, id: int) -> str:
        return "".join(delta.text for delta in self.deltas if delta.id == id)

    def cached(self, id: int) -> int:
        return next(delta.cached_tokens for delta in self.deltas if delta.id == id and delta.cached_tokens >= 0)

    def change(self, name: str, action: SessionAction, new_key: str | None = None) -> SessionInfo | None:
        answers: list[Changed] = []
        self.sessions.change("a", name, action, new_key, answers.append)
        self.run()
        return answers[0].info


def prompt(size: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, 97), k=size)


def expected(prompt: list[int], count: int = 4) -> str:
    return "".join(f"{token:02d} " for token in continuation(prompt, count))


def second_turn(first: list[int]) -> list[int]:
    return [*first, *continuation(first, 4), 5, 6]


def test_what_ends_beside_the_last_tokens_of_a_stream_is_copied_when_nothing_runs() -> None:
    bench = Bench()
    bench.submit(1, prompt(20), 10)
    bench.submit(2, prompt(20, seed=2), 30)
    while not bench.scheduler.idle:
        bench.scheduler.step()
    assert bench.engine.copies == 0
    bench.run()
    assert bench.engine.copies == 2 and bench.sessions.tiers.resident_tokens == 29 + 49


def test_a_conversation_is_on_disk_soon_after_its_answer_and_still_in_the_context() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    assert len(bench.disk.files) == 1
    assert [info.tier for info in bench.sessions.listed("a")] == ["cells"]
    assert bench.sessions.tiers.counters().written == 1


def test_after_a_restart_the_next_turn_continues_it() -> None:
    before = Bench()
    before.ask(1, prompt(100), key="talk")
    (info,) = before.sessions.listed("a")
    after = Bench(before.disk)
    assert after.ask(2, second_turn(prompt(100)), key="talk") == expected(second_turn(prompt(100)))
    assert after.cached(2) == 103
    report = next(delta.cache for delta in after.deltas if delta.cache is not None)
    assert report.tier == "disk" and report.diverged_at == -1 and report.recomputed_tokens == 3
    assert after.sessions.tiers.counters().hits_disk == 1
    assert [one.id for one in after.sessions.listed("a")] == [info.id] and len(after.disk.files) == 1


def test_each_turn_replaces_the_file_of_the_one_before() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    bench.ask(2, second_turn(prompt(100)), key="talk")
    ((record, _),) = bench.disk.files.values()
    assert len(record.tokens) == 4 * 109


def test_the_earlier_turn_stays_on_disk_until_the_next_is_written() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    bench.disk.slow = True
    bench.ask(2, second_turn(prompt(100)), key="talk")
    after = Bench(bench.disk)
    after.disk.slow = False
    assert after.ask(3, second_turn(prompt(100)), key="talk") == expected(second_turn(prompt(100)))
    assert after.cached(3) >= 103


def test_short_prompts_without_a_name_are_not_written() -> None:
    bench = Bench()
    bench.ask(1, prompt(100))
    assert not bench.disk.files and not bench.sessions.tiers.unwritten
    bench.ask(2, prompt(300))
    assert len(bench.disk.files) == 1


def test_reading_holds_up_nobody_else() -> None:
    before = Bench()
    before.ask(1, prompt(300), key="talk")
    bench = Bench(before.disk)
    bench.scheduler.tidy()
    bench.disk.slow = True
    bench.submit(2, second_turn(prompt(300)), key="talk")
    bench.deltas += bench.scheduler.step()
    assert bench.scheduler.stalled and not bench.deltas
    bench.submit(3, prompt(30, seed=3), 10, tenant="b")
    for _ in range(30):
        bench.deltas += bench.scheduler.step()
    assert bench.text(3) == expected(prompt(30, seed=3), 10) and not bench.text(2)
    bench.disk.slow = False
    bench.run()
    assert bench.text(2) == expected(second_turn(prompt(300))) and bench.cached(2) == 303


def test_what_a_waiting_request_continues_is_read_meanwhile() -> None:
    before = Bench()
    before.ask(1, prompt(300), key="talk")
    bench = Bench(before.disk)
    bench.scheduler.tidy()
    bench.scheduler.expect(bench.sequence(2, second_turn(prompt(300)), key="talk"))
    bench.scheduler.tidy()
    assert [info.tier for info in bench.sessions.listed("a")] == ["ram"]
    bench.disk.slow = True
    bench.submit(2, second_turn(prompt(300)), key="talk")
    bench.run()
    assert bench.text(2) == expected(second_turn(prompt(300))) and bench.cached(2) == 303
    assert bench.sessions.tiers.counters().hits_disk == 1 and bench.disk.reads == 1


def test_what_was_read_for_requests_that_never_came_gives_way() -> None:
    before = Bench()
    for id in range(6):
        before.ask(id, prompt(300, seed=id), key=f"talk {id}")
    bench = Bench(before.disk, ram=2500)
    bench.scheduler.tidy()
    for turn in range(3):
        for id in range(6):
            bench.scheduler.expect(bench.sequence(id, second_turn(prompt(300, seed=id)), key=f"talk {id}"))
            bench.scheduler.tidy()
        assert bench.disk.reads == 2 * (turn + 1), "half of the memory is left until they have had their time"
        assert bench.sessions.tiers.counters().ram_bytes <= 2500
        bench.now_us += 11_000_000
    assert len(bench.sessions.tiers.kept) == len(bench.disk.files) == 6


def test_a_disk_with_much_to_read_reads_nothing_ahead() -> None:
    before = Bench()
    for id in range(4):
        before.ask(id, prompt(300, seed=id), key=f"talk {id}")
    bench = Bench(before.disk)
    bench.scheduler.tidy()
    bench.disk.slow = True
    for id in range(4):
        bench.scheduler.expect(bench.sequence(id, second_turn(prompt(300, seed=id)), key=f"talk {id}"))
    bench.disk.slow = False
    bench.scheduler.tidy()
    assert bench.disk.reads == 2


def test_a_disk_that_does_not_answer_is_not_waited_for_without_end() -> None:
    before = Bench()
    before.ask(1, prompt(300), key="talk")
    bench = Bench(before.disk)
    bench.scheduler.tidy()
    bench.disk.slow = True
    bench.submit(2, second_turn(prompt(300)), key="talk")
    bench.scheduler.step()
    bench.now_us += 10_000_000
    bench.run()
    assert bench.text(2) == expected(second_turn(prompt(300))) and bench.cached(2) == 0


def test_what_cannot_be_read_back_is_computed_again() -> None:
    before = Bench()
    before.ask(1, prompt(100), key="talk")
    bench = Bench(before.disk)
    bench.scheduler.tidy()
    bench.disk.files.clear()
    assert bench.ask(2, second_turn(prompt(100)), key="talk") == expected(second_turn(prompt(100)))
    assert bench.cached(2) == 0 and bench.sessions.tiers.counters().corrupt == 1


def test_a_full_disk_costs_the_file_and_nothing_else() -> None:
    bench = Bench()
    bench.disk.failing = True
    bench.ask(1, prompt(100), key="talk")
    assert bench.sessions.tiers.counters().write_failed == 1
    assert bench.ask(2, second_turn(prompt(100)), key="talk") == expected(second_turn(prompt(100)))
    assert bench.cached(2) == 103
    bench.disk.failing = False
    bench.ask(3, second_turn(second_turn(prompt(100))), key="talk")
    assert len(bench.disk.files) == 1, "the next turn is tried again"


def test_memory_that_is_short_moves_conversations_to_disk_and_loses_none() -> None:
    bench = Bench(ram=700, cells=512)
    for id in range(8):
        bench.ask(id, prompt(100, seed=id), key=f"talk {id}")
    assert bench.sessions.tiers.counters().ram_bytes <= 700
    assert {info.tier for info in bench.sessions.listed("a")} >= {"disk"}
    for id in range(8):
        turn = second_turn(prompt(100, seed=id))
        assert bench.ask(10 + id, turn, key=f"talk {id}") == expected(turn)
        assert bench.cached(10 + id) == 103
    assert len(bench.sessions.tiers.kept) == 8


def test_what_is_on_disk_leaves_memory_before_what_is_not() -> None:
    bench = Bench(ram=450, cells=512)
    for id in range(2):
        bench.ask(id, prompt(100, seed=id), key=f"talk {id}")
    bench.disk.slow = True
    for id in range(2, 4):
        bench.ask(id, prompt(100, seed=id), key=f"talk {id}")
    while bench.sessions.tiers.spill():
        pass
    assert len(bench.sessions.tiers.kept) == 4 and bench.sessions.tiers.counters().evicted == 0


def test_the_disk_is_bounded_and_a_loud_tenant_evicts_its_own() -> None:
    bench = Bench(ram=0, disk_bytes=1000, cells=512)
    bench.ask(1, prompt(100, seed=1), tenant="quiet", key="talk")
    for id in range(2, 12):
        bench.ask(id, prompt(100, seed=id), key=f"talk {id}")
    bench.submit(99, prompt(10, seed=99))
    bench.run()
    assert len(bench.sessions.listed("quiet")) == 1
    assert bench.sessions.tiers.counters().disk_bytes <= 1000
    assert sum(blob.size_bytes for _, blob in bench.disk.files.values()) <= 1000
    assert bench.sessions.tiers.counters().evicted > 0


def test_deleting_erases_the_file_before_it_is_answered() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    info = bench.change("talk", "delete")
    assert info is not None and info.tokens == 0
    assert not bench.disk.files and len(bench.sessions.tiers.kept) == 0 and bench.engine.used() == 0


def test_deleting_while_it_is_written_erases_it_too() -> None:
    bench = Bench()
    bench.disk.slow = True
    bench.ask(1, prompt(100), key="talk")
    answers: list[Changed] = []
    bench.sessions.change("a", "talk", "delete", None, answers.append)
    assert not answers, "the file is not gone yet"
    bench.disk.slow = False
    bench.run()
    assert answers and not bench.disk.files


def test_forks_have_files_of_their_own_in_every_tier() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    bench.change("talk", "fork", "from cells")
    after = Bench(bench.disk)
    after.run()
    assert {info.tier for info in after.sessions.listed("a")} == {"disk"}
    after.change("talk", "fork", "from disk")
    after.change("talk", "delete")
    assert len(after.disk.files) == 2 and after.disk.reads == 0
    last = Bench(after.disk)
    for id, key in enumerate(("from cells", "from disk")):
        turn = second_turn(prompt(100))
        assert last.ask(id, turn, key=key) == expected(turn) and last.cached(id) >= 103


def test_pins_outlast_restarts_and_time() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    bench.ask(2, prompt(100, seed=2), key="other")
    bench.change("talk", "pin")
    after = Bench(bench.disk, now_us=bench.now_us)
    after.now_us += 2_000_000_000
    after.run()
    assert [(info.key, info.pinned) for info in after.sessions.listed("a")] == [("talk", True)]
    assert after.sessions.tiers.counters().expired == 1 and len(after.disk.files) == 1


def test_memory_expires_before_files_do() -> None:
    bench = Bench()
    bench.ask(1, prompt(100), key="talk")
    bench.now_us += 200_000_000
    bench.run()
    assert [info.tier for info in bench.sessions.listed("a")] == ["disk"] and bench.engine.used() == 0
    bench.now_us += 2_000_000_000
    bench.run()
    assert len(bench.sessions.tiers.kept) == 0 and not bench.disk.files


def test_checkpoints_are_restored_from_disk() -> None:
    before = Bench(partial=False)
    before.ask(1, prompt(100), key="talk")
    after = Bench(before.disk, partial=False)
    edited = [*prompt(100), 1, 2, 3]
    assert after.ask(2, edited, key="talk") == expected(edited)
    assert after.cached(2) == 99


def test_what_is_public_is_never_written() -> None:
    bench = Bench()
    bench.ask(1, prompt(300), 0, tenant=PUBLIC)
    assert not bench.disk.files and bench.sessions.match(Owner("a"), np.array(prompt(300), np.int32))[1] == 300


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_no_request_reuses_what_belongs_to_another_tenant(seed: int) -> None:
    """Whatever tenants ask, in whatever order, with spills, restarts and forks between: what a request reuses was
    public or had been computed for its own tenant, and its text is its own."""
    chance = random.Random(seed)
    public = prompt(chance.randrange(20, 60), seed=77)
    stems = [public + prompt(60, seed=stem) for stem in range(2)] + [prompt(100, seed=9)]
    bench = Bench(ram=chance.choice([0, 800, 1 << 20]), cells=chance.choice([300, 4096]))
    bench.ask(-1, public, 0, tenant=PUBLIC)
    seen: dict[str, list[list[int]]] = {"a": [], "b": [], "c": []}
    for id in range(chance.randrange(2, 12)):
        tenant = chance.choice("abc")
        text = chance.choice(stems) + prompt(chance.randrange(0, 30), seed=chance.randrange(3))
        assert bench.ask(id, text, 3, tenant=tenant, key=chance.choice([None, "k"])) == expected(text, 3)
        own = [public, *seen[tenant]]
        most = max(common_prefix(np.array(one, np.int32), np.array(text, np.int32)) for one in own)
        assert bench.cached(id) <= most
        seen[tenant].append(text + continuation(text, 3))
        if chance.random() < 0.2:
            bench = Bench(bench.disk, ram=bench.ram, cells=bench.cells, now_us=bench.now_us)
            bench.ask(-1, public, 0, tenant=PUBLIC)
        if chance.random() < 0.2:
            bench.change("k", "fork", "k2")


def test_a_file_that_misses_little_is_renewed_in_a_quiet_moment() -> None:
    bench = Bench()
    first = prompt(100)
    bench.ask(1, first, key="talk")
    bench.submit(9, prompt(50, seed=9), 400)
    bench.scheduler.step()
    bench.submit(2, second_turn(first), key="talk")
    while bench.text(2) != expected(second_turn(first)):
        bench.deltas += bench.scheduler.step()
    bench.disk.settle()
    assert bench.sessions.tiers.counters().written == 1, "another stream runs"
    bench.run()
    assert bench.sessions.tiers.counters().written >= 2
    after = Bench(bench.disk)
    third = [*second_turn(first), *continuation(second_turn(first), 4), 7]
    assert after.ask(3, third, key="talk") == expected(third)
    assert after.cached(3) == len(third) - 2


def test_without_room_in_memory_a_conversation_is_written_also_beside_others() -> None:
    bench = Bench(ram=1)
    first = prompt(100)
    bench.ask(1, first, key="talk")
    bench.submit(9, prompt(50, seed=9), 400)
    bench.scheduler.step()
    bench.submit(2, second_turn(first), key="talk")
    while bench.text(2) != expected(second_turn(first)):
        bench.deltas += bench.scheduler.step()
    for _ in range(5):
        bench.deltas += bench.scheduler.step()
    third = [*second_turn(first), *continuation(second_turn(first), 4), 7]
    (info,) = [info for info in bench.sessions.listed("a") if info.key == "talk"]
    assert (info.tier, info.tokens) == ("disk", len(third) - 2)
    assert bench.ask(3, third, key="talk") == expected(third)
    assert bench.cached(3) == len(third) - 2


def test_where_nothing_can_be_written_it_goes_back_to_the_turn_in_its_file() -> None:
    bench = Bench(ram=1)
    first = prompt(100)
    bench.ask(1, first, key="talk")
    bench.disk.failing = True
    bench.submit(9, prompt(50, seed=9), 400)
    bench.scheduler.step()
    bench.submit(2, second_turn(first), key="talk")
    while bench.text(2) != expected(second_turn(first)):
        bench.deltas += bench.scheduler.step()
    for _ in range(5):
        bench.deltas += bench.scheduler.step()
    (info,) = [info for info in bench.sessions.listed("a") if info.key == "talk"]
    assert (info.tier, info.tokens) == ("disk", 103)
    third = [*second_turn(first), *continuation(second_turn(first), 4), 7]
    assert bench.ask(3, third, key="talk") == expected(third)
    assert bench.cached(3) == 103


def test_what_was_used_last_is_written_first_at_the_end() -> None:
    bench = Bench()
    bench.disk.slow = True
    for number in range(6):
        bench.submit(number, prompt(100, seed=number), key=f"talk {number}")
        while not bench.scheduler.idle:
            bench.scheduler.step()
    bench.scheduler.drain()
    bench.disk.slow = False
    bench.run()
    begun, left = 2, [f"talk {number}" for number in (5, 4, 3, 2)]
    assert [record.key for record, _ in bench.disk.files.values()][begun:] == left


def test_a_turn_that_ends_while_the_one_before_is_written_does_not_go_back_to_an_older_file() -> None:
    bench = Bench(ram=1)
    first = prompt(100)
    second = second_turn(first)
    third = second_turn(second)
    bench.ask(1, first, key="talk")
    bench.submit(9, prompt(50, seed=9), 400)
    bench.scheduler.step()
    for id, turn in ((2, second), (3, third)):
        bench.submit(id, turn, key="talk")
        while bench.text(id) != expected(turn):
            bench.deltas += bench.scheduler.step()
        if id == 2:
            bench.disk.slow = True
            bench.deltas += bench.scheduler.step()
    bench.disk.slow = False
    bench.disk.settle()
    bench.disk.failing = True
    for _ in range(5):
        bench.deltas += bench.scheduler.step()
    fourth = second_turn(third)
    assert bench.ask(4, fourth, key="talk") == expected(fourth)


def test_a_pin_that_comes_while_the_file_is_written_outlasts_a_restart() -> None:
    bench = Bench()
    bench.disk.slow = True
    bench.ask(1, prompt(100), key="talk")
    bench.disk.slow = False
    bench.change("talk", "pin")
    after = Bench(bench.disk, now_us=bench.now_us)
    after.run()
    assert [info.pinned for info in after.sessions.listed("a")] == [True]
