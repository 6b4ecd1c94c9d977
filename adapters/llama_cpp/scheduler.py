"""Continuous batching over one context: who is computed in the next step, and what happens when room runs out.

A step is: admit, plan, compute, advance. Every step holds one token of each decoding sequence first, then prompt chunks
under a token budget that keeps the step, and so the gap of the running streams, near a target. The idea is that of
Orca (Yu et al., 2022) and Sarathi-Serve (Agrawal et al., 2024): iteration-level scheduling with stall-free chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from adapters.llama_cpp import checkpoints
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.explain import explain
from adapters.llama_cpp.images import position, whole
from adapters.llama_cpp.kept import Checkpoint, Kept, common_prefix
from adapters.llama_cpp.looking import Engine, Looking, Masks, blind, blocked
from adapters.llama_cpp.lora import AdapterSet
from adapters.llama_cpp.messages import Busyness, Delta
from adapters.llama_cpp.pacing import APART_CELLS_MIN, BURST_CHUNKS_MAX, Limits, Rates, paced, padding, shares
from adapters.llama_cpp.sequence import Bools, Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.types import Tier

SHARE_TOKENS_MIN = 32
GROWTH_TOKENS = 64
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
        self._limits = limits
        self._clock_us = clock_us
        self._contended = contended
        self._masks = masks
        self._looking = looking
        self._denied: dict[Sequence, Bools] = {}
        self.rates = rates
        self._batch = Batch(limits.chunk_tokens, engine.slots)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        # The last sequence id is the scratch one that padding tokens are computed in.
        self._scratch = engine.slots - 1
        self._free = list(range(engine.slots - 1))
        self._arrivals = 0
        self._padding_tokens = 0
        # The adapter sets whose last step held no prompt.
        self._decoded: set[str] = set()
        # For each adapter set that runs, the number of the step in which it was last computed.
        self._turns: dict[str, int] = {}
        self._steps = 0
        # Whether others ran when this step began, and how many sequences had been copied by then.
        self._disturbs = False
        self._copies = 0
        self.stalled = False
        self.prefilling: frozenset[int] = frozenset()
        # Requests that were ended because their grammar could not be followed, and why; whoever reads it empties it.
        self.failures: dict[int, str] = {}

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

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
            decode_us_per_token=self.rates.decode_us * sets,
            images_encoded=eyes.encoded if eyes else 0,
            images_reused=eyes.reused if eyes else 0,
            image_cache_bytes=eyes.bytes if eyes else 0,
        )

    def submit(self, sequences: list[Sequence]) -> None:
        """Queues the choices of a request."""
        for sequence in sequences:
            sequence.order = self._arrivals
            sequence.arrived_us = self._clock_us()
            self._arrivals += 1
            self._waiting.append(sequence)

    def expect(self, sequence: Sequence) -> None:
        """Has what a request continues that will be submitted later read from disk meanwhile."""
        kept, _, size = self._prefix(sequence)
        if kept is not None and kept.tier == "disk" and self._worth_reading(kept, size):
            self.sessions.fetch_ahead(kept)

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
        """Ends everything that runs, as if it had been cancelled."""
        for sequence in list(self._running):
            self._retire(sequence)
        self._waiting.clear()

    def tidy(self) -> bool:
        """Brings one conversation nearer to the disk while nothing runs; False when there is nothing to do."""
        self.sessions.settle(quiet=not self._running)
        return not self._running and self.sessions.back_up()

    def step(self) -> list[Delta]:
        """Runs one step; returns what each sequence gained. Returns nothing when nothing could be computed; `stalled`
        says that this will not change before the disk has answered or an image has its embeddings."""
        self._disturbs = bool(self._running)
        self._copies = self._engine.copies
        self.sessions.settle()
        self._admit()
        started_us = self._clock_us()
        plan = self._compute()
        if plan:
            done_us = self._clock_us()
            decoding = sum(one.decoding for one, _ in plan)
            self.rates.learn(done_us - started_us, decoding, sum(count for _, count in plan) - decoding)
            self._advance(plan)
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
                    self.sessions.fetch(kept)
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
        """Copying a sequence takes up to about a step: beside others at most one is copied between two steps."""
        return not self._disturbs or self._engine.copies == self._copies

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
        elif kept is not None:
            resident, held = kept.slot is not None, kept.held
            tier = "disk" if sequence.awaited_us or kept.fetched else kept.tier
            sequence.computed = self.sessions.load(kept, slot, size)
            sequence.source = kept
            sequence.shared = sequence.computed if resident else 0
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
        slow each step. Those that a running sequence continues share their cells with it and cost nothing."""
        self._free += self.sessions.freed()
        busy = [one.source for one in self._running if one.source is not None]
        while self._running and self._spill(busy):
            pass

    def _spill(self, besides: Iterable[Kept] = (), *, urgent: bool = False) -> bool:
        spilled = self.sessions.spill(besides, copying=urgent or self._may_copy)
        self._free += self.sessions.freed()
        return spilled

    # Computing

    def _compute(self) -> list[tuple[Sequence, int]]:
        """Plans and decodes until a batch fits; returns what was computed: sequences with their token counts."""
        while self._running and not any(one.finish for one in self._running):
            texts = [one for one in self._running if one.run]
            if not texts:
                break
            adapters = self._turn(texts)
            plan = self._plan(adapters, [one for one in texts if one.adapters == adapters])
            self._fill(plan)
            self._engine.adapt(adapters.scales)
            self.prefilling = frozenset(one.request for one, count in plan if not one.decoding)
            code = self._decode(plan)
            self.prefilling = frozenset()
            if self._padding_tokens:
                self._engine.remove(self._scratch)
            if code == 0:
                self._steps += 1
                self._turns[adapters.variant] = self._steps
                note = self._decoded.add if all(one.decoding for one, _ in plan) else self._decoded.discard
                note(adapters.variant)
                return plan
            if code == 2:
                return []
            self._relieve()
        return []

    def _turn(self, texts: list[Sequence]) -> AdapterSet:
        """Whose step it is: of the adapter sets that run, the one that has waited longest. A new one comes last, so
        that no number of new ones keeps the others waiting."""
        sets = {one.adapters.variant: one.adapters for one in texts}
        self._turns = {variant: self._turns.get(variant, self._steps) for variant in sets}
        self._decoded &= sets.keys()
        return sets[min(sets, key=self._turns.__getitem__)]

    def _decode(self, plan: list[tuple[Sequence, int]]) -> int:
        """Decodes the batch, and beside it computes the masks that its results will need."""
        self._denied = {}
        guided = [one for one, count in plan if one.wants_mask and count == one.pending]
        if not guided or self._masks is None:
            return self._engine.decode(self._batch)
        self._masks.begin([one.guide for one in guided if one.guide is not None])
        try:
            return self._engine.decode(self._batch)
        finally:
            self._denied = dict(zip(guided, self._masks.end(), strict=True))

    def _plan(self, adapters: AdapterSet, mine: list[Sequence]) -> list[tuple[Sequence, int]]:
        decoding = [one for one in mine if one.ready]
        prompts = sorted((one for one in mine if not one.ready), key=lambda one: one.order)
        if prompts and self._goes_apart(decoding):
            decoding, prompts = ([], prompts) if adapters.variant in self._decoded else (decoding, [])
        jump = max(1, self._limits.chunk_tokens // max(1, 2 * len(decoding)))
        steps = [min(one.pending, jump) for one in decoding]
        budget = self._budget(sum(steps))
        if self._looking is not None and self._looking.ready(self._running):
            budget = max(1, budget // 2)
        pending = [min(one.stops[0] - one.computed, one.run) if one.stops else one.run for one in prompts]
        rows = self._engine.outputs_max - self._limits.parallel
        for index, one in enumerate(prompts):
            if one.scores_prompt and not one.decoding:
                pending[index] = min(pending[index], rows)
                rows -= pending[index]
        plan = list(zip(decoding, steps, strict=True))
        plan += [(one, count) for one, count in zip(prompts, shares(pending, budget), strict=True) if count]
        return plan

    def _budget(self, decoding: int) -> int:
        """Prompt tokens of the next step.

        A full chunk when nobody decodes, of this model or another one, or only streams of one burst with the last
        prompts; otherwise what the target gap has time for. Adapter sets that take turns share the gap.
        """
        alone = not any(one.ready for one in self._running) or self._ends_burst()
        if alone and not self._contended():
            return self._limits.chunk_tokens - decoding
        gap_us = self._limits.target_gap_us / max(1, len(self._turns))
        return paced(self._limits, gap_us / self.rates.prefill_us, decoding)

    def _goes_apart(self, decoding: list[Sequence]) -> bool:
        """Whether streams and prompts take turns instead of sharing a step."""
        return self._limits.tile > 1 and sum(one.computed - one.shared for one in decoding) > APART_CELLS_MIN

    def _ends_burst(self) -> bool:
        """Whether everybody came within one target gap and the prompts left are few and short. Small chunks beside
        streams that have only begun would cost everybody's throughput and not spare anybody a long wait."""
        limits = self._limits
        prompts = [one for one in self._running if not one.ready]
        short = all(one.length <= limits.chunk_tokens for one in prompts)
        if not prompts or not short or sum(one.pending for one in prompts) > BURST_CHUNKS_MAX * limits.chunk_tokens:
            return False
        first_us = min(one.arrived_us for one in self._running if one.ready)
        return max(one.arrived_us for one in prompts) - first_us <= limits.target_gap_us

    def _fill(self, plan: list[tuple[Sequence, int]]) -> None:
        batch = self._batch
        batch.clear()
        for sequence, count in plan:
            start = sequence.computed
            complete = count == sequence.pending
            outputs = count if sequence.scores_prompt and not sequence.decoding else int(complete)
            batch.add(sequence.tokens[start : start + count], sequence.position, sequence.slot, outputs=outputs)
        wanted = padding(self._limits, batch.size, decode=batch.size == len(plan))
        self._padding_tokens = min(wanted, batch.capacity - batch.size)
        if self._padding_tokens:
            zeros = np.zeros(self._padding_tokens, np.int32)
            batch.add(zeros, 0, self._scratch, outputs=self._padding_tokens if batch.size == len(plan) else 0)

    def _look(self, looking: Looking) -> None:
        """Computes a piece of the image that has waited longest; it takes as long as the prompts beside it may."""
        ready = looking.ready(self._running)
        if not ready or any(one.finish for one in self._running):
            return
        texts = [one for one in self._running if one.run]
        budget = self._budget(sum(one.ready for one in texts))
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
        self._free.append(youngest.slot)
        self._waiting.append(youngest)

    # After a step

    def _advance(self, plan: list[tuple[Sequence, int]]) -> None:
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
                sequence.advance(rows[at], self._denied.get(sequence))
                at += 1

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
            self._free += self.sessions.freed()
        else:
            self._engine.remove(sequence.slot)
            self._free.append(sequence.slot)

    def _occupied(self) -> int:
        return self._used() + self.sessions.resident_tokens

    def _used(self) -> int:
        """Cells that running sequences hold or are about to fill; shared ones are counted with their first owner."""
        return sum(max(one.computed, one.prompt_length) - one.shared for one in self._running)
