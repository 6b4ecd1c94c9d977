"""The session counters of a model over all lives of its worker, each of which begins to count at zero."""

from __future__ import annotations

from adapters.llama_cpp.messages import SessionCounters

# What is occupied dies with the worker that occupied it, or is found again by the next.
OCCUPIED = frozenset({"sessions", "ram_bytes", "disk_bytes"})


class SessionTotals:
    """Takes in what workers report. `value` only ever grows, but for what is occupied now."""

    def __init__(self) -> None:
        self.value = SessionCounters()
        self._past = SessionCounters()

    def report(self, counters: SessionCounters) -> None:
        """The present worker has counted this much."""
        self.value = SessionCounters(
            **{
                name: getattr(counters, name) + (0 if name in OCCUPIED else getattr(self._past, name))
                for name in SessionCounters.__struct_fields__
            }
        )

    def worker_lost(self) -> None:
        """The worker is gone, and what it counted is past."""
        self._past = self.value
        self.report(SessionCounters())
