"""What a client is told when no target of a route answered."""

from __future__ import annotations

import pytest

from adapters import errors
from adapters.errors import AdapterError
from gateway.routing.verdict import most_helpful

LIMITED = errors.RateLimited("limited", retry_after_s=30)
FULL = errors.QueueFull("full", retry_after_s=2)
LOADING = errors.ModelLoading("loading", retry_after_s=1)
RESTING = errors.ModelUnavailable("resting", retry_after_s=5)
DEAD = errors.EngineFailed("dead")
SLOW = errors.Timeout("slow")
GONE = errors.Unreachable("gone")
REFUSED = errors.UpstreamRefused("refused", 500)
WRONG = errors.InvalidRequest("wrong")
BUG = errors.AdapterError("bug")


def test_every_kind_has_its_place() -> None:
    order = [LIMITED, LOADING, RESTING, DEAD, SLOW, GONE, WRONG, BUG]
    for i, error in enumerate(order):
        assert most_helpful(order[i:]) is error
        assert most_helpful(order[i:][::-1]) is error


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ([LIMITED, FULL], FULL),
        ([FULL, LIMITED], FULL),
        ([errors.RateLimited("who knows"), LIMITED], LIMITED),
        ([DEAD, RESTING], RESTING),
        ([GONE, REFUSED], REFUSED),
        ([REFUSED, GONE], GONE),
    ],
)
def test_of_equals_the_one_that_passes_first_or_the_last(failures: list[AdapterError], told: AdapterError) -> None:
    assert most_helpful(failures) is told
