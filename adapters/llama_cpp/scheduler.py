"""Continuous batching over one context: who is computed in the next step, and what happens when room runs out.

A step is: admit, plan, compute, advance. Every step holds one token of each decoding sequence first, then prompt chunks
under a token budget that keeps the step, and so the gap of the running streams, near a target. The idea is that of
Orca (Yu et al., 2022) and Sarathi-Serve (Agrawal et al., 2024): iteration-level scheduling with stall-free chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from adapters.llama_cpp import checkpoints
from adapters.llama_cpp.arrays import Float32s
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.explain import explain
from adapters.llama_cpp.guesses import Guesses
from adapters.llama_cpp.images import position, whole
from adapters.llama_cpp.kept import Checkpoint, Kept, common_prefix
from adapters.llama_cpp.looking import Engine, Looking, Masks, blind, blocked
from adapters.llama_cpp.messages import Busyness, Delta
from adapters.llama_cpp.pacing import Limits, Rates, padding
from adapters.llama_cpp.planning import Plan, Planner
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Tier

SHARE_TOKENS_MIN = 32
GROWTH_TOKENS = 64
# Copying one conversation takes as long as its absence saves in so many steps of a few streams.
CALM_TOKENS_MIN = 32
# What may stay in the context of a conversation that a running sequence continues from further back.
LEFT_TOKENS_MAX = 256
# What a disk gives at least. A conversation is only read where that is faster than computing it again.
DISK_BYTES_PER_US = 200


class Scheduler:
    """Decides and drives one context. Not thread-safe: everything happens on the decode thread."""

    def __init__(
        self,
        engine: Engine,
        sessions: Sessions,
        limits: Limits,
        rates: Rates,
        clock_us: Callable[[], int],
        contended: Callable[[], bool] = lambda: False,
        masks: Masks | None = None,
        looking: Looking | None = None,
    ) -> None:
        """`contended` says whether other models' streams wait for the steps of this one."""
        self._engine = engine
        self.sessions = sessions
        self._tiers = sessions.tiers
        self._limits = limits
        self._clock_us = clock_us
        self._masks = masks
        self._looking = looking
        self._ceilings: dict[Sequence, Float32s] = {}
        self.rates = rates
        self._planner = Planner(limits, rates, contended)
        self._batch = Batch(limits.chunk_tokens, engine.slots)
        self._guesses = Guesses(limits, engine, masks)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        # The last sequence id is the scratch one that padding tokens are computed in.
        self._scratch = engine.slots - 1
        self._free = list(range(engine.slots - 1))
        self._arrivals = 0
        self._padding_tokens = 0
        # Whether others ran when this step began, when that was, and how many sequences had been copied by then.
        self._disturbs = False
        self._began_us = 0
        self._copies = 0
        self.stalled = False
        self.prefilling: frozenset[int] = frozenset()
        # Requests that were ended because their grammar could not be followed, and why; whoever reads it empties it.
        self.failures: dict[int, str] = {}

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def size(self) -> tuple[int, int]:
        """How many run and how many wait."""
        return len(self._running), len(self._waiting)

    def blind(self) -> set[int]:
        return blind(self._running)

    def busyness(self) -> Busyness:
        """Adapter sets take turns, so that each gets on as many times slower as there are."""
        sets = len({one.adapters for one in self._running}) or 1
        eyes = self._looking.eyes if self._looking else None
        return Busyness(
            running=len(self._running),
            waiting=len(self._waiting),
            cells_used=self._occupied(),
            cells_max=self._engine.cells,
            prefill_us_per_token=self.rates.prefill_us * sets,
            decode_us_per_token=self.rates.decode_us * sets / self.rates.gained,
            images_encoded=eyes.encoded if eyes else 0,
            images_reused=eyes.reused if eyes else 0,
            image_cache_bytes=eyes.bytes if eyes else 0,
            guesses_made=self._guesses.made,
            guesses_right=self._guesses.right,
        )

    def submit(self, sequences: list[Sequence], arrived_us: int | None = None) -> None:
        """Queues the choices of a request, which came at `arrived_us` by the scheduler's clock if that was not now."""
        for sequence in sequences:
            sequence.order = self._arrivals
            sequence.arrived_us = self._clock_us() if arrived_us is None else arrived_us
            self._arrivals += 1
            self._waiting.append(sequence)

    def expect(self, sequence: Sequence) -> None:
        """Has what a request continues that will be submitted later read from disk meanwhile."""
        kept, _, size = self._prefix(sequence)
        if kept is not None and kept.tier == "disk" and self._worth_reading(kept, size):
            self._tiers.fetch_ahead(kept)

    def cancel(self, request: int) -> bool:
        """Ends all sequences of a request between two steps; what they computed is kept for their tenant."""
        gone = [one for one in self._running if one.request == request]
        for sequence in gone:
            self._retire(sequence)
        waiting = [one for one in self._waiting if one.request != request]
        found = bool(gone) or len(waiting) < len(self._waiting)
        self._waiting = waiting
        return found

    def forget(self, tenant: str, name: str) -> None:
        """Keeps nothing of what a session that was deleted is computing now."""
        for one in self._running + self._waiting:
            if one.owner.tenant == tenant and name in (one.owner.key, one.source and one.source.id):
                one.keeps = False

    def drain(self) -> None:
        """Ends everything that runs, as if it had been cancelled; what is left to do is to bring it to the disk."""
        for sequence in list(self._running):
            self._retire(sequence)
        self._waiting.clear()
        self._tiers.hurry()

    def tidy(self) -> bool:
        """Brings one conversation nearer to the disk while nothing runs; False when there is nothing to do."""
        self._tiers.settle(quiet=not self._running)
        return not self._running and self._tiers.back_up()

    def step(self) -> list[Delta]:
        """Runs one step; returns what each sequence gained. Returns nothing when nothing could be computed; `stalled`
        says that this will not change before the disk has answered or an image has its embeddings."""
        self._disturbs = bool(self._running)
        self._began_us = self._clock_us()
        self._copies = self._engine.copies
        self._tiers.settle()
        self._admit()
        started_us = self._clock_us()
        plan = self._compute()
        if plan:
            spent_us = self._clock_us() - started_us
            self._guesses.learn(spent_us)
            decoding, right = sum(one.decoding for one, _ in plan), self._guesses.right
            self._advance(plan)
            tokens = sum(count for _, count in plan)
            self.rates.learn(spent_us, decoding, tokens - decoding, self._guesses.right - right)
        if self._looking is not None:
            self._look(self._looking)
            self.stalled = self.stalled or blocked(self._running)
        return self._harvest()

    # Admission

    def _admit(self) -> None:
        """Gives waiting sequences a slot, in order. One whose prefix is just being computed or read from disk waits for
        that instead, without holding up the others."""
        fetching = False
        for sequence in sorted(self._waiting, key=lambda one: one.order):
            if len(self._running) >= self._limits.parallel:
                break
            kept, live, size = self._prefix(sequence)
            if self._worth_waiting(sequence, size):
                continue
            if kept is not None and kept.tier == "disk":
                if self._worth_reading(kept, size):
                    self._tiers.fetch(kept)
                    sequence.awaited_us = sequence.awaited_us or self._clock_us()
                    fetching = True
                    continue
                kept, size = None, 0
            borrowed = size if live is not None or (kept is not None and kept.slot is not None) else 0
            room = sequence.length - borrowed + GROWTH_TOKENS
            if not self._make_room(room if kept is None or borrowed else max(room, len(kept.tokens))):
                break
            if kept is not None and kept.slot is None and self._occupied() + len(kept.tokens) > self._engine.cells:
                kept, size = None, 0
            copied = sequence.state is not None or (kept is not None and kept.slot is None)
            if copied and not self._may_copy:
                continue
            if sequence.fresh and not self._running:
                # The order of cells decides the order of sums: only an empty context repeats a result to the bit.
                while self._spill():
                    pass
            self._waiting.remove(sequence)
            self._begin(sequence, kept, live, size)
        self.stalled = fetching and not self._running
        self._calm()

    @property
    def _may_copy(self) -> bool:
        """Copying a sequence can take as long as a step: beside others one is copied between two steps, or as many as
        take no longer than a step of theirs, going by those before."""
        copies = self._engine.copies - self._copies
        if not self._disturbs or not copies:
            return True
        spent_us = self._clock_us() - self._began_us
        return spent_us + spent_us // copies <= self.rates.decode_us

    def _worth_reading(self, kept: Kept, size: int) -> bool:
        return size * self.rates.prefill_us > kept.disk_bytes / DISK_BYTES_PER_US

    def _prefix(self, sequence: Sequence) -> tuple[Kept | None, Sequence | None, int]:
        """The best source of computed tokens: a kept conversation, a running sequence, or nothing; and its length.

        At least one token is left to compute, because its logits are needed.
        """
        if sequence.state is not None:
            return None, None, sequence.computed
        limit = sequence.tokens[: sequence.length - 1]
        kept: Kept | None = None
        live, best = None, 0
        if sequence.scores_prompt:
            return None, None, 0
        if not sequence.fresh:
            kept, best = self.sessions.match(sequence.owner, limit)
        if self._engine.partial_sequences:
            for other in self._sources(sequence):
                size = common_prefix(limit, other.tokens[: other.computed])
                if size > best and (size == other.computed or size >= self._engine.cut_min(other.slot)):
                    kept, live, best = None, other, size
        return kept, live, best

    def _sources(self, sequence: Sequence) -> list[Sequence]:
        return [
            one
            for one in self._running
            if one.owner.tenant == sequence.owner.tenant
            and one.adapters == sequence.adapters
            and (not sequence.fresh or one.request == sequence.request)
        ]

    def _worth_waiting(self, sequence: Sequence, size: int) -> bool:
        """Whether a running sequence is about to compute clearly more of this prompt than can be reused now."""
        if sequence.state is not None or sequence.scores_prompt or not self._engine.partial_sequences:
            return False
        limit = sequence.tokens[: sequence.length - 1]
        for other in self._sources(sequence):
            coming = common_prefix(limit, other.prompt)
            gain = 1 if other.request == sequence.request else SHARE_TOKENS_MIN
            if other.computed < coming and coming >= size + gain:
                return True
        return False

    def _make_room(self, tokens: int) -> bool:
        """Spills idle conversations until `tokens` more cells fit; True as well when nothing else is running."""
        while self._occupied() + tokens > self._engine.cells:
            if not self._spill():
                return not self._running
        while not self._free:
            if not self._spill():
                return False
        return True

    def _begin(self, sequence: Sequence, kept: Kept | None, live: Sequence | None, size: int) -> None:
        slot = sequence.slot = self._free.pop()
        self._running.append(sequence)
        sequence.begun_us = self._clock_us()
        if sequence.state is not None:
            restored = self._engine.restore(slot, sequence.state)
            sequence.state = None
            sequence.computed = sequence.computed if restored else 0
            return
        met = self._meeting(sequence, kept) if sequence.explain else None
        tier: Tier | None = "cells" if live is not None else None
        if live is not None:
            self._engine.share(live.slot, slot, position(live.tokens, size))
            sequence.computed = sequence.shared = size
            sequence.lender = live.slot
        elif kept is not None:
            lender, held = kept.slot, kept.held
            tier = "disk" if sequence.awaited_us or kept.fetched else kept.tier
            sequence.computed = self.sessions.load(kept, slot, size)
            sequence.source = kept
            if lender is not None:
                sequence.shared, sequence.lender = sequence.computed, lender
            sequence.checkpoints = [one for one in held if one.position <= sequence.computed]
        self.sessions.hit(tier if sequence.computed else None)
        sequence.cached = sequence.computed
        now_us = self._clock_us()
        if met is not None:
            restore_us = now_us - (sequence.awaited_us or sequence.begun_us) if tier else 0
            sequence.cache = explain(*met, sequence.prompt, sequence.cached, restore_us, sequence.text)
        sequence.begun_us = now_us
        if not self._engine.partial_states:
            stops = checkpoints.places(sequence.prompt, sequence.ends)
            sequence.stops = [at for at in stops if at > sequence.computed and whole(sequence.tokens, at) == at]

    def _meeting(self, sequence: Sequence, kept: Kept | None) -> tuple[Kept | None, Tier | None]:
        """The conversation that a request seems to continue, and where it lies."""
        candidate = self.sessions.candidate(sequence.owner, sequence.prompt)
        if candidate is None:
            return None, None
        return candidate, "disk" if candidate.fetched or (candidate is kept and sequence.awaited_us) else candidate.tier

    def _calm(self) -> None:
        """Moves idle conversations out of the context while others run: attention walks over every used cell, so they
        slow each step. Those that a running sequence continues share nearly all of their cells with it and cost
        nothing. Where only the last tokens of streams are left, copying would take longer than it saves."""
        self._vacate(self._tiers.freed())
        if all(one.ready and one.tokens_left < CALM_TOKENS_MIN for one in self._running):
            return
        sources = [(one.source, one.cached) for one in self._running if one.source is not None]
        busy = [kept for kept, size in sources if len(kept.tokens) - size <= LEFT_TOKENS_MAX]
        while self._running and self._spill(busy):
            pass

    def _spill(self, besides: Iterable[Kept] = (), *, urgent: bool = False) -> bool:
        spilled = self._tiers.spill(besides, copying=urgent or self._may_copy)
        self._vacate(self._tiers.freed())
        return spilled

    # Computing

    def _compute(self) -> Plan:
        """Plans and decodes until a batch fits; returns what was computed."""
        paused: list[Sequence] = []
        while self._running and not any(one.finish for one in self._running):
            texts = [one for one in self._running if one.run and one not in paused]
            if not texts:
                break
            adapters = self._planner.turn(texts)
            mine = [one for one in texts if one.adapters == adapters]
            looking = self._looking is not None and bool(self._looking.ready(self._running))
            plan = self._planner.plan(mine, self._running, looking=looking, outputs_max=self._engine.outputs_max)
            self._fill(plan)
            self._engine.adapt(adapters.scales)
            self.prefilling = frozenset(one.request for one, count in plan if not one.decoding)
            code = self._decode(plan)
            self.prefilling = frozenset()
            if self._padding_tokens:
                self._engine.remove(self._scratch)
            if code == 0:
                self._planner.computed(adapters, plan)
                return plan
            if code == 2:
                return []
            if len(plan) > 1 and not self._may_copy:
                # Another copy would keep everybody waiting; without the youngest the others get on meanwhile.
                paused.append(max((one for one, _ in plan), key=lambda one: one.order))
            else:
                self._relieve()
        return []

    def _decode(self, plan: Plan) -> int:
        """Decodes the batch, and beside it computes the masks that its results will need."""
        self._ceilings = {}
        guided = [one for one, count in plan if one.wants_mask and count == one.pending]
        if not guided or self._masks is None:
            return self._engine.decode(self._batch)
        self._masks.begin([one.guide for one in guided if one.guide is not None])
        try:
            return self._engine.decode(self._batch)
        finally:
            self._ceilings = dict(zip(guided, self._masks.end(), strict=True))

    def _fill(self, plan: Plan) -> None:
        batch = self._batch
        batch.clear()
        decode = all(count == 1 for _, count in plan)
        free = self._engine.cells - self._occupied()
        self._guesses.make([one for one, _ in plan] if decode else [], free)
        for sequence, count in plan:
            tokens = sequence.tokens[sequence.computed : sequence.computed + count]
            outputs = count if sequence.scores_prompt and not sequence.decoding else int(count == sequence.pending)
            if (guess := self._guesses.of(sequence)) is not None:
                tokens, outputs = np.append(tokens, np.int32(guess)), 2
            batch.add(tokens, sequence.position, sequence.slot, outputs=outputs)
        wanted = padding(self._limits, batch.size, decode=decode)
        # It takes no cell either that somebody needs.
        self._padding_tokens = max(0, min(wanted, batch.capacity - batch.size, free - batch.size))
        if self._padding_tokens:
            zeros = np.zeros(self._padding_tokens, np.int32)
            batch.add(zeros, 0, self._scratch, outputs=self._padding_tokens if decode else 0)

    def _look(self, looking: Looking) -> None:
        """Computes a piece of the image that has waited longest; it takes as long as the prompts beside it may."""
        ready = looking.ready(self._running)
        if not ready or any(one.finish for one in self._running):
            return
        texts = [one for one in self._running if one.run]
        budget = self._planner.budget(sum(one.ready for one in texts), self._running)
        piece = looking.piece(ready[0], budget if all(one.ready for one in texts) else max(1, budget // 2))
        started_us = self._clock_us()
        self._engine.adapt(piece.sequence.adapters.scales)
        self.prefilling = frozenset([piece.sequence.request])
        code = looking.compute(piece, self._masks)
        self.prefilling = frozenset()
        if code == 1:
            self._relieve()
        elif code == 0:
            self.rates.learn(self._clock_us() - started_us, 0, len(piece.embeddings))

    def _relieve(self) -> None:
        """No cells left: idle conversations go first, then the youngest sequence waits in RAM for the others."""
        if self._spill(urgent=True):
            return
        youngest = max(self._running, key=lambda one: one.order)
        if len(self._running) == 1:
            # Alone and still no room: the pool itself is full.
            youngest.finish = "length"
            return
        youngest.state = self._engine.save(youngest.slot)
        youngest.shared = 0
        self._running.remove(youngest)
        self._engine.remove(youngest.slot)
        self._vacate([youngest.slot])
        self._waiting.append(youngest)

    # After a step

    def _advance(self, plan: Plan) -> None:
        rows = self._engine.logits(self._batch.outputs)
        at = 0
        for sequence, count in plan:
            first, sequence.computed = sequence.computed, sequence.computed + count
            if sequence.stops and sequence.computed >= sequence.stops[0]:
                at_stop = sequence.stops.pop(0)
                sequence.checkpoints.append(Checkpoint(at_stop, self._engine.save_partial(sequence.slot)))
            if sequence.scores_prompt and not sequence.decoding:
                sequence.score_prompt(first, rows[at : at + count])
                at += count - 1 if sequence.pending == 0 else count
            if sequence.pending == 0:
                sequence.advance(rows[at], self._ceilings.get(sequence))
                at += 1
                if self._guesses.of(sequence) is not None:
                    self._guesses.drawn(sequence, rows[at])
                    at += 1
        self._guesses.follow()

    def _harvest(self) -> list[Delta]:
        now_us = self._clock_us()
        for sequence in [one for one in self._running if one.failure]:
            self.failures[sequence.request] = sequence.failure or ""
            self.cancel(sequence.request)
        deltas = [delta for one in self._running if one.unreported and (delta := one.report(now_us))]
        for sequence in [one for one in self._running if one.finish]:
            self._retire(sequence)
        return deltas

    def _retire(self, sequence: Sequence) -> None:
        """Frees the place of a sequence; its first choice is kept as the conversation so far."""
        self._running.remove(sequence)
        if self._looking is not None:
            self._looking.leave(sequence)
        if sequence.choice == 0 and sequence.keeps:
            tokens = sequence.tokens[: sequence.computed]
            held = checkpoints.bounded(sequence.checkpoints)
            self.sessions.keep(sequence.owner, tokens, sequence.slot, held)
            self._vacate(self._tiers.freed())
        else:
            self._engine.remove(sequence.slot)
            self._vacate([sequence.slot])

    def _vacate(self, slots: list[int]) -> None:
        """Takes back slots that are empty. Cells shared with running sequences are there still, and from now on those
        of the one that has most of them."""
        self._free += slots
        for slot in slots:
            heirs = [one for one in self._running if one.shared and one.lender == slot]
            if heirs:
                owner = max(heirs, key=lambda one: one.shared)
                owner.shared = 0
                for one in heirs:
                    one.lender = owner.slot

    def _occupied(self) -> int:
        return self._used() + self._tiers.resident_tokens

    def _used(self) -> int:
        """Cells that running sequences hold or are about to fill; shared ones are counted with their first owner."""
        return sum(max(one.computed, one.prompt_length) - one.shared for one in self._running)
