"""Usage as OpenAI reports it, and as others extend it."""

from __future__ import annotations

import msgspec

from adapters.types import Usage

Count = int | float | None
# More tokens than any request has; what fewer cost, and thousands of such costs together, fit into the integers of a
# database.
TOKENS_END = 1 << 32


class PromptDetails(msgspec.Struct):
    cached_tokens: Count = None
    audio_tokens: Count = None
    cache_write_tokens: Count = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: Count = None
    audio_tokens: Count = None


class WireUsage(msgspec.Struct):
    """`input_tokens` and `output_tokens` are the Responses API's names, `prompt_cache_hit_tokens` is DeepSeek's."""

    prompt_tokens: Count = None
    completion_tokens: Count = None
    input_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    prompt_cache_hit_tokens: Count = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    input_tokens_details: PromptDetails | None = None
    output_tokens_details: CompletionDetails | None = None


def parse_usage(given: WireUsage) -> Usage:
    """What was reported.

    xAI leaves the tokens of thinking out of `completion_tokens`; `total_tokens` tells.
    """
    of_prompt = given.prompt_tokens_details or given.input_tokens_details
    of_answer = given.completion_tokens_details or given.output_tokens_details
    prompt = reported(given.prompt_tokens) or reported(given.input_tokens)
    completion = reported(given.completion_tokens) or reported(given.output_tokens)
    if of_prompt is None and of_answer is None and given.prompt_cache_hit_tokens is None:
        return Usage(prompt, completion)
    of_prompt, of_answer = of_prompt or PromptDetails(), of_answer or CompletionDetails()
    reasoning = reported(of_answer.reasoning_tokens)
    if reasoning and reported(given.total_tokens) == prompt + completion + reasoning:
        completion += reasoning
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=min(prompt, reported(of_prompt.cached_tokens) or reported(given.prompt_cache_hit_tokens)),
        reasoning_tokens=min(completion, reasoning),
        cache_write_tokens=min(prompt, reported(of_prompt.cache_write_tokens)),
        prompt_audio_tokens=min(prompt, reported(of_prompt.audio_tokens)),
        completion_audio_tokens=min(completion, reported(of_answer.audio_tokens)),
    )


def reported(value: Count) -> int:
    """A count as a provider tells it; 0, which is not reported, where it is none or cannot be."""
    return int(value) if value is not None and 0 < value < TOKENS_END else 0


def together(known: Usage, found: Usage) -> Usage:
    """Two reports of one answer: within a stream they only grow, and some leave out what an earlier one said."""
    return Usage(*(max(getattr(known, name), getattr(found, name)) for name in Usage.__struct_fields__))
