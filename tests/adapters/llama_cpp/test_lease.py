"""Turns among workers that share a file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from adapters.llama_cpp.lease import ALONE_STEPS_MIN, RECENT_US, StepLease


def step(lease: StepLease, count: int = 1) -> None:
    for _ in range(count):
        with lease:
            pass


def test_one_computes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease = StepLease(str(path))
    probe = os.open(path, os.O_RDWR)
    with lease, pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(probe)


def test_each_knows_whether_others_compute(tmp_path: Path) -> None:
    now_us = 1000
    ours, theirs = (StepLease(str(tmp_path / "lease"), lambda: now_us) for _ in range(2))
    assert not ours.contended()
    step(ours, 3)
    assert not ours.contended() and theirs.contended(), "seen before the first step of one's own"
    step(theirs)
    assert ours.contended() and theirs.contended()
    step(ours)
    now_us += 10 * RECENT_US
    assert ours.contended(), "a long step of one's own does not hide those who wait for its end"
    step(ours, ALONE_STEPS_MIN)
    assert not ours.contended()


def test_whoever_computed_long_ago_is_forgotten(tmp_path: Path) -> None:
    now_us = 1000
    ours, theirs = (StepLease(str(tmp_path / "lease"), lambda: now_us) for _ in range(2))
    step(theirs)
    now_us += RECENT_US
    assert not ours.contended()
