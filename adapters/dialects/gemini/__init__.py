"""Google's Gemini API: generateContent and streamGenerateContent, as Vertex AI has them too.

`LOST` is what does not survive a translation, by name, because the other side has no words for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.dialects.gemini.events_in import EventParser
from adapters.dialects.gemini.events_out import ChunkRenderer, render_answer
from adapters.dialects.gemini.request_in import parse_request
from adapters.dialects.gemini.request_out import render_request

__all__ = ["LOST", "ChunkRenderer", "EventParser", "parse_request", "render_answer", "render_request"]

LOST: Mapping[str, str] = {
    "cache markers": "Gemini caches by itself, or in resources of their own",
    "cache writes": "in the usage",
    "min_p": "and `ignore_eos`",
    "parallel": "several calls at once cannot be forbidden",
    "strict": "all schemas of functions are kept to alike",
    "developer": "becomes a system message",
    "later system messages": "all of them come first, as one",
    "names": "of speakers",
    "end user": "there is no field for it",
    "foreign signatures": "thoughts that are not signed by Gemini, or redacted, stay behind",
    "place of signatures": "one on a text becomes a thought without a text of its own",
    "detail of images": "how closely to look at them",
    "images of results": "follow the result as if the user had sent them",
    "titles of documents": "with their context and the wish for citations",
    "texts": "of one message become one; empty ones vanish",
    "order of an answer": "thoughts come first, then words, then calls",
    "a narrowed choice": "that may end in no call leaves the other tools out",
    "efforts": "become budgets for models before Gemini 3, and levels after",
    "stop sequences": "which of them ended an answer is not told",
    "pieces of calls": "a call comes whole",
    "images in answers": "and audio, code and its results, and where it found what it says",
}
