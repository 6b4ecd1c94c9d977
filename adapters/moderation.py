"""Texts judged by a provider that has OpenAI's moderations."""

from __future__ import annotations

import time
from collections.abc import Sequence

from adapters.answers import fetch
from adapters.dialects.failures import failure
from adapters.dialects.openai_moderations import Judgement, parse_answer, render_request
from adapters.errors import InvalidRequest
from adapters.upstream import Upstream

ANSWER_BYTES_MAX = 4 << 20
# How many texts go in one request.
TEXTS_MAX = 32


class Moderator:
    """A moderation model; `model` None: the provider's own choice."""

    def __init__(self, upstream: Upstream, model: str | None = None) -> None:
        self._upstream = upstream
        self._model = model

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """What each text was found to be; raises the `AdapterError` of what went wrong."""
        found: list[Judgement] = []
        for start in range(0, len(texts), TEXTS_MAX):
            found += await self._ask(texts[start : start + TEXTS_MAX])
        return found

    async def _ask(self, texts: Sequence[str]) -> list[Judgement]:
        upstream = self._upstream
        if "openai_chat" not in upstream.dialects:
            raise InvalidRequest(f"The provider {upstream.name!r} has no moderations.")
        target = upstream.target("openai_chat", self._model or "").replace("/chat/completions", "/moderations")
        body = render_request(self._model, texts)
        head = await upstream.head("POST", target, body, (("content-type", "application/json"),))
        answer = await fetch(upstream.wire, head, body, bytes_max=ANSWER_BYTES_MAX)
        if answer.status != 200:
            raise failure(answer.status, answer.body, {}, time.time())
        return parse_answer(answer.body, len(texts))

    async def close(self) -> None:
        await self._upstream.close()
