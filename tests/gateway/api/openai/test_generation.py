from __future__ import annotations

from gateway.api.openai.generation import caller_with
from gateway.auth import Principal


def test_a_keys_weight_and_priority_reach_the_queue() -> None:
    principal = Principal(tenant="t", key_id="k", name="n", weight=2.5, priority=7)
    caller = caller_with(principal, "r", {})
    assert (caller.tenant, caller.weight, caller.priority) == ("t", 2.5, 7)
