from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.auth import Principal
from gateway.config_limits import BudgetConfig, LimitsConfig, RuleConfig, ScopeLimits
from gateway.limits.plans import Plan, Plans


def plan(*rules: RuleConfig, **more: Any) -> Plan:
    principal = replace(Principal(tenant="t", key_id="k", name="n"), **more)
    return Plans(LimitsConfig(rules=rules)).plan(principal, "m", 0)


def rates(plan: Plan) -> dict[str, int]:
    return {rate.key: rate.limit for rate in plan.rates}


@pytest.mark.parametrize(
    ("subject", "more"),
    [
        ("user:x", {"user_id": "x"}),
        ("team:x", {"team_id": "x"}),
        ("member:x/y", {"team_id": "x", "user_id": "y"}),
        ("org:x", {"org_id": "x"}),
        ("key:k", {}),
        ("key:first", {"counted_as": "first"}),
    ],
)
def test_limits_of_a_scope_from_the_database_take_the_place_of_its_default(subject: str, more: dict[str, Any]) -> None:
    default = RuleConfig(scope="org", requests_per_minute=1)
    own = ScopeLimits(requests_per_minute=3, budgets=(BudgetConfig(usd="2", period="total"),))
    found = plan(default, **more, scopes_limits=((subject, own),))
    assert rates(found) == {f"{subject}:requests:60": 3}
    assert [(allowance.subject, allowance.limit_nano) for allowance in found.allowances.values()] == [
        (subject, 2 * 10**9)
    ]
    others = tuple((f"{scope}:other", own) for scope in ("user", "team", "org", "key"))
    assert not plan(scopes_limits=others).limited, "limits of others are none of ours"


@pytest.mark.parametrize("configured", [2, 5])
def test_limits_that_name_a_scope_hold_beside_those_of_the_database(configured: int) -> None:
    rule = RuleConfig(scope="team", id="x", requests_per_minute=configured, concurrent_requests=configured)
    own = ScopeLimits(requests_per_minute=3, concurrent_requests=3)
    found = plan(rule, team_id="x", scopes_limits=(("team:x", own),))
    least = min(configured, 3)
    assert rates(found) == {"team:x:requests:60": least}
    assert [(gate.key, gate.limit) for gate in found.gates] == [("team:x", least)]


def test_a_key_that_took_the_place_of_another_goes_on_where_it_stood() -> None:
    limits = ScopeLimits(budgets=(BudgetConfig(usd="1", period="total"),))
    first, second = plan(limits=limits), plan(limits=limits, key_id="k2", counted_as="k")
    assert first.budgets == second.budgets
