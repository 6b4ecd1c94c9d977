"""Counters that survive the workers they come from."""

from __future__ import annotations

from adapters.llama_cpp.messages import SessionCounters
from adapters.llama_cpp.totals import Totals


def test_counters_go_on_and_what_was_occupied_is_gone() -> None:
    totals = Totals(SessionCounters())
    totals.report(SessionCounters(sessions=3, ram_bytes=100, hits_ram=2))
    totals.report(SessionCounters(sessions=4, ram_bytes=120, hits_ram=5, corrupt=1))
    assert totals.value == SessionCounters(sessions=4, ram_bytes=120, hits_ram=5, corrupt=1)
    totals.worker_lost()
    assert totals.value == SessionCounters(hits_ram=5, corrupt=1)
    totals.report(SessionCounters(disk_bytes=7, hits_ram=1))
    assert totals.value == SessionCounters(disk_bytes=7, hits_ram=6, corrupt=1)
    totals.worker_lost()
    totals.worker_lost()
    assert totals.value == SessionCounters(hits_ram=6, corrupt=1)
