"""Amazon Bedrock's Converse API: Converse and ConverseStream.

`LOST` is what does not survive a translation, by name, because the other side has no words for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.dialects.bedrock_converse.events_in import EventParser
from adapters.dialects.bedrock_converse.events_out import ChunkRenderer, render_answer
from adapters.dialects.bedrock_converse.request_in import parse_request
from adapters.dialects.bedrock_converse.request_out import render_request

__all__ = ["LOST", "ChunkRenderer", "EventParser", "parse_request", "render_answer", "render_request"]

LOST: Mapping[str, str] = {
    "seed": "how the answer is drawn cannot be repeated",
    "penalties": "presence and frequency penalties",
    "min_p": "and `ignore_eos`; `top_k` of models that are not Anthropic's",
    "temperature over 1": "becomes 1; while the model thinks there is none",
    "top_p beside temperature": "models take one of them",
    "thinking": "of models that are not Anthropic's",
    "parallel": "several calls at once cannot be forbidden",
    "no calls": "where the conversation has some, they cannot be forbidden",
    "developer": "becomes a system message",
    "later system messages": "all of them come first, as one",
    "names": "of speakers",
    "end user": "there is no field for it",
    "unsigned thoughts": "and those of Gemini and OpenAI",
    "signatures of calls": "which only Gemini gives",
    "markers in results": "a cache point stands behind a result, not in it",
    "texts": "without a marker of one message become one; empty ones vanish",
    "turns": "of one side that follow each other become one",
    "forced thinking": "before a call that is forced there is none",
    "order of an answer": "thoughts come first, then words, then calls",
    "letters of ids": "other than letters, digits and `_.:-` become `_`, and ids end after 64",
    "letters of titles": "documents are called by simple names, each by another",
    "a narrowed choice": "of several tools leaves the others out",
    "refusals": "the words of one",
    "reasoning tokens": "and audio tokens in the usage; how long the prompt is, until the end",
    "citations": "and results of tools that Amazon runs itself",
}
