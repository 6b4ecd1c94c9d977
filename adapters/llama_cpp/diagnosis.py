"""How a prompt met the session it was matched with, in the words of messages instead of tokens."""

from __future__ import annotations

from bisect import bisect_left

from adapters.llama_cpp.messages import CacheReport, ChatPrompt, Prompt
from adapters.types import CacheDiagnosis, Divergence


def diagnosis(report: CacheReport, prompt: Prompt, message_ends: tuple[int, ...], prefill_us: int) -> CacheDiagnosis:
    """A worker's report in canonical form; `message_ends` are positions in the prompt's tokens.

    The prefill lasts from the restore to the first output.
    """
    divergence = None
    if report.diverged_at >= 0:
        index = bisect_left(message_ends, report.diverged_at)
        known = isinstance(prompt, ChatPrompt) and index < len(message_ends)
        divergence = Divergence(
            token=report.diverged_at,
            message=index if known else None,
            role=prompt.messages[index].role if isinstance(prompt, ChatPrompt) and known else None,
            expected=report.expected,
            got=report.got,
        )
    return CacheDiagnosis(
        cached_tokens=report.cached_tokens,
        session_tokens=report.session_tokens,
        recomputed_tokens=report.recomputed_tokens,
        recompute_us=max(0, prefill_us - report.restore_us),
        restore_us=report.restore_us,
        tier=report.tier,
        divergence=divergence,
    )
