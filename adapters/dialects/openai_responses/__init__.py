"""OpenAI's Responses API, stateless: what is kept of responses is the server's business.

`LOST` is what does not survive a translation, by name, because the other side has no words for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.dialects.openai_responses.events_in import EventParser
from adapters.dialects.openai_responses.events_out import ChunkRenderer, render_answer, render_count
from adapters.dialects.openai_responses.fields import Body, CompactBody
from adapters.dialects.openai_responses.request_in import ResponsesInbound, parse_compaction, parse_request, refuse_kept
from adapters.dialects.openai_responses.request_out import render_request

__all__ = [
    "LOST",
    "Body",
    "ChunkRenderer",
    "CompactBody",
    "EventParser",
    "ResponsesInbound",
    "parse_compaction",
    "parse_request",
    "refuse_kept",
    "render_answer",
    "render_count",
    "render_request",
]

LOST: Mapping[str, str] = {
    "truncation": "a prompt that is too long is refused, none of its turns dropped",
    "seed": "how the answer is drawn cannot be repeated",
    "penalties": "presence and frequency penalties",
    "top_k": "and `min_p` and `ignore_eos`",
    "names": "of speakers",
    "markers": "of what to cache",
    "failed tools": "that the result is of one that did not work",
    "unsigned thoughts": "and those of others: OpenAI only takes its own back",
    "signatures of calls": "which only Gemini gives",
    "budget of thinking": "only an effort can be asked for",
    "documents": "their context, and whether to cite them",
    "stop sequence": "whether one ended the answer",
    "audio tokens": "and those written to a cache, in the usage",
    "annotations": "citations, and results of tools that OpenAI runs itself",
}
