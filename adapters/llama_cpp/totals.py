"""Counters of a model over all lives of its worker, each of which begins to count at zero."""

from __future__ import annotations

from typing import Generic, TypeVar

from adapters.llama_cpp.messages import GrammarCounters, SessionCounters

# What is occupied dies with the worker that occupied it, or is found again by the next.
OCCUPIED = frozenset({"sessions", "ram_bytes", "disk_bytes"})

Counters = TypeVar("Counters", SessionCounters, GrammarCounters)


class Totals(Generic[Counters]):
    """Takes in what workers report, from `zero` on. `value` only ever grows, but for what is occupied now."""

    def __init__(self, zero: Counters) -> None:
        self.value: Counters = zero
        self._zero: Counters = zero
        self._past: Counters = zero

    def report(self, counters: Counters) -> None:
        """The present worker has counted this much."""
        self.value = type(counters)(
            **{
                name: getattr(counters, name) + (0 if name in OCCUPIED else getattr(self._past, name))
                for name in counters.__struct_fields__
            }
        )

    def worker_lost(self) -> None:
        """The worker is gone, and what it counted is past."""
        self._past = self.value
        self.report(self._zero)
