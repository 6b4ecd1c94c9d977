"""A worker's cache report in canonical form."""

from __future__ import annotations

import pytest

from adapters.llama_cpp.diagnosis import diagnosis
from adapters.llama_cpp.messages import CacheReport, ChatPrompt, TextPrompt
from adapters.types import CacheDiagnosis, Divergence, Message, Role

PROMPT = ChatPrompt((Message("system", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d")))
ENDS = (5, 10, 15, 20)


def report(diverged_at: int) -> CacheReport:
    return CacheReport(8, 30, diverged_at, " was", " is", "ram", 100, 14)


@pytest.mark.parametrize(
    ("token", "message", "role"),
    [(0, 0, "system"), (5, 0, "system"), (6, 1, "user"), (15, 2, "assistant"), (20, 3, "user"), (21, None, None)],
)
def test_the_first_message_that_ends_at_or_after_the_token(token: int, message: int | None, role: Role | None) -> None:
    found = diagnosis(report(token), PROMPT, ENDS, 700)
    assert found == CacheDiagnosis(
        cached_tokens=8,
        session_tokens=30,
        recomputed_tokens=14,
        recompute_us=600,
        restore_us=100,
        tier="ram",
        divergence=Divergence(token, message, role, " was", " is"),
    )


def test_without_messages_only_the_token_is_known() -> None:
    divergence = Divergence(6, None, None, " was", " is")
    assert diagnosis(report(6), TextPrompt("x"), (), 0).divergence == divergence
    assert diagnosis(report(6), PROMPT, (), 0).divergence == divergence
    assert diagnosis(report(-1), PROMPT, ENDS, 0).divergence is None
