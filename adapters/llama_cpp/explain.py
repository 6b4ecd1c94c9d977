"""What became of the conversation that a prompt was meant to continue, for the client that asks."""

from __future__ import annotations

from collections.abc import Callable

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.kept import Kept, common_prefix
from adapters.llama_cpp.messages import CacheReport
from adapters.types import Tier

SHOWN_TOKENS = 6


def explain(
    candidate: Kept | None,
    tier: Tier | None,
    prompt: Int32s,
    cached: int,
    restore_us: int,
    text: Callable[[int], bytes],
) -> CacheReport:
    """How `prompt` meets `candidate`, a conversation of the same tenant, that lay in `tier`."""
    history = candidate.tokens if candidate is not None else prompt[:0]
    at = common_prefix(history, prompt)
    diverged = at < len(history)
    return CacheReport(
        cached_tokens=cached,
        session_tokens=len(history),
        diverged_at=at if diverged else -1,
        expected=_shown(history[at : at + SHOWN_TOKENS], text) if diverged else "",
        got=_shown(prompt[at : at + SHOWN_TOKENS], text) if diverged else "",
        tier=tier,
        restore_us=restore_us,
        recomputed_tokens=len(prompt) - cached,
    )


def _shown(tokens: Int32s, text: Callable[[int], bytes]) -> str:
    return b"".join(map(text, tokens.tolist())).decode("utf-8", "replace")
