"""What the next step computes: whose turn it is, which streams go on, and how much of the prompts beside them."""

from __future__ import annotations

from collections.abc import Callable

from adapters.llama_cpp.lora import AdapterSet
from adapters.llama_cpp.pacing import APART_CELLS_MIN, BURST_CHUNKS, Limits, Rates, ending, paced, shares
from adapters.llama_cpp.sequence import Sequence

# Sequences with the tokens that each has in a step.
Plan = list[tuple[Sequence, int]]


class Planner:
    """Plans the steps of one context. `contended` says whether other models' streams wait for the steps of this one."""

    def __init__(self, limits: Limits, rates: Rates, contended: Callable[[], bool]) -> None:
        self._limits = limits
        self._rates = rates
        self._contended = contended
        # For each adapter set that runs, how many prompt tokens were computed since a step that its streams were in.
        self._held: dict[str, int] = {}
        # For each adapter set that runs, the number of the step in which it was last computed.
        self._turns: dict[str, int] = {}
        self._steps = 0

    def turn(self, texts: list[Sequence]) -> AdapterSet:
        """Whose step it is: of the adapter sets that run, the one that has waited longest. A new one comes last, so
        that no number of new ones keeps the others waiting."""
        sets = {one.adapters.variant: one.adapters for one in texts}
        self._turns = {variant: self._turns.get(variant, self._steps) for variant in sets}
        self._held = {variant: self._held.get(variant, 0) for variant in sets}
        return sets[min(sets, key=self._turns.__getitem__)]

    def computed(self, adapters: AdapterSet, plan: Plan) -> None:
        """Notes that a plan was carried out."""
        self._steps += 1
        self._turns[adapters.variant] = self._steps
        moved = any(one.decoding for one, _ in plan)
        held = self._held[adapters.variant] + sum(count for _, count in plan)
        self._held[adapters.variant] = 0 if moved else held

    def plan(self, mine: list[Sequence], running: list[Sequence], *, looking: bool, outputs_max: int) -> Plan:
        """The next step of the sequences of one adapter set, `mine`. `looking` leaves half of the prompts' time to
        images, and all outputs together are at most `outputs_max`.

        Prompts come first, so that tiles begin where they do: behind the rows of streams steps took 1-5 % longer.
        """
        decoding = [one for one in mine if one.ready]
        prompts = sorted((one for one in mine if not one.ready), key=lambda one: one.order)
        if decoding and prompts:
            decoding, prompts = self._in_turn(decoding, prompts, running)
        jump = max(1, self._limits.chunk_tokens // max(1, 2 * len(decoding)))
        steps = [min(one.pending, jump) for one in decoding]
        budget = self.budget(sum(steps), running)
        if looking:
            budget = max(1, budget // 2)
        pending = [min(one.stops[0] - one.computed, one.run) if one.stops else one.run for one in prompts]
        rows = outputs_max - self._limits.parallel
        for index, one in enumerate(prompts):
            if one.scores_prompt and not one.decoding:
                pending[index] = min(pending[index], rows)
                rows -= pending[index]
        given = shares(pending, budget)
        if self._unhurried(running):
            given = ending(self._limits, [one.pending for one in prompts], given)
        plan = [(one, count) for one, count in zip(prompts, given, strict=True) if count]
        return plan + list(zip(decoding, steps, strict=True))

    def budget(self, decoding: int, running: list[Sequence]) -> int:
        """Prompt tokens of the next step: a full chunk where no stream has to be spared, otherwise what the target gap
        has time for. Adapter sets that take turns share the gap."""
        if self._unhurried(running):
            return self._limits.chunk_tokens - decoding
        gap_us = self._limits.target_gap_us / max(1, len(self._turns))
        return paced(self._limits, gap_us / self._rates.prefill_us, decoding)

    def _unhurried(self, running: list[Sequence]) -> bool:
        """Whether nobody decodes, of this model or another one, or only streams of one burst with the prompts."""
        return (not any(one.ready for one in running) or self._is_burst(running)) and not self._contended()

    def _in_turn(
        self, decoding: list[Sequence], prompts: list[Sequence], running: list[Sequence]
    ) -> tuple[list[Sequence], list[Sequence]]:
        """Those of one adapter set that share the next step: streams and prompts, unless that costs more than to take
        turns. What has begun of a burst waits for several chunks at a time."""
        if self._limits.tile == 1:
            return decoding, prompts
        held = self._held[decoding[0].adapters.variant]
        if self._unhurried(running) and held < BURST_CHUNKS * self._limits.chunk_tokens:
            return [one for one in decoding if not one.decoding], prompts
        if sum(one.computed - one.shared for one in decoding) <= APART_CELLS_MIN:
            return decoding, prompts
        return (decoding, []) if held else ([], prompts)

    def _is_burst(self, running: list[Sequence]) -> bool:
        """Whether everybody came within one target gap and the prompts left are short. Small chunks beside streams that
        have only begun would cost everybody's throughput, and most of them their time to first token. A stream waits
        for no more chunks in all than there are places."""
        prompts = [one for one in running if not one.ready]
        if not prompts or any(one.length > self._limits.chunk_tokens for one in prompts):
            return False
        first_us = min(one.arrived_us for one in running if one.ready)
        return max(one.arrived_us for one in prompts) - first_us <= self._limits.target_gap_us
