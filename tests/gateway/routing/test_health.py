"""Health checks: when an origin is thought to be ill, and how it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from adapters.errors import Overloaded, Timeout
from gateway.config_routing import HealthConfig
from gateway.routing.breaker import Breaker
from gateway.routing.health import Checks, Condition
from gateway.routing.standing import Standing

SETTINGS = HealthConfig(interval_s=10, healthy_after=2, unhealthy_after=3)


@pytest.mark.parametrize(
    ("checks", "ill", "recoveries"),
    [
        ("", False, 0),
        ("..", False, 0),
        ("!!", False, 0),
        ("!!.!!", False, 0),
        ("!!!", True, 0),
        ("!!!.", True, 0),
        ("!!!.!.", True, 0),
        ("!!!..", False, 1),
        ("!!!..!!!..", False, 2),
    ],
)
def test_what_answers_in_a_row_change(checks: str, ill: bool, recoveries: int) -> None:
    condition = Condition(SETTINGS)
    for check in checks:
        condition.note("bad" if check == "!" else None)
    assert (condition.ill is not None, condition.recoveries) == (ill, recoveries)
    assert (condition.checks, condition.failures) == (len(checks), checks.count("!"))


def asked(answers: Sequence[int | Exception]) -> Condition:
    """What is thought of an origin that answered like this."""
    condition, left = Condition(SETTINGS), list(answers)

    async def knock() -> int:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def run() -> None:
        checks = Checks("p", condition, knock)
        while left:
            await checks.check()

    asyncio.run(run())
    return condition


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([503] * 3, "its health check was answered with 503"),
        ([302] * 3, "its health check was answered with 302"),
        ([Timeout("slow")] * 3, "its health check failed (upstream_timeout)"),
        ([503] * 3 + [404], "its health check was answered with 404"),
        ([503, 503, 200, 503], None),
        ([Overloaded("all of our connections are in use")] * 5, None),
        ([503] * 3 + [Overloaded("busy")] * 5, "its health check was answered with 503"),
    ],
)
def test_what_makes_it_ill(answers: Sequence[int | Exception], reason: str | None) -> None:
    assert asked(answers).ill == reason


def test_who_is_ill_is_left_alone_and_comes_back_with_one_request() -> None:
    condition = Condition(SETTINGS)
    standing = Standing(Breaker(), condition)
    for _ in range(3):
        condition.note("it said 503")
    assert not standing.try_enter(0)
    assert (standing.absence(0), standing.wait_s(0)) == ("it said 503", 10)
    for _ in range(2):
        condition.note(None)
    assert standing.try_enter(1)
    assert not standing.try_enter(1)
    assert standing.absence(1) == "its breaker is half_open"
    standing.breaker.succeeded(2)
    assert standing.try_enter(2) and standing.try_enter(2)


def test_a_trial_that_fails_opens_the_breaker() -> None:
    condition = Condition(SETTINGS)
    standing = Standing(Breaker(), condition)
    for problem in ("x", "x", "x", None, None):
        condition.note(problem)
    assert standing.try_enter(1)
    standing.breaker.failed(1)
    assert not standing.try_enter(2)
    assert standing.absence(2) == "its breaker is open"
