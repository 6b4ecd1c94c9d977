"""Guardrails that somebody else is asked about: a moderation model, a webhook, Presidio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import httpcore
import msgspec

from adapters.errors import AdapterError
from gateway.config_guardrails import GuardrailConfig
from gateway.guardrails import GuardrailFailed, Span
from gateway.guardrails.remote import Poster, Windows, find_joined
from gateway.public_network import Resolve, resolve
from gateway.secret import signature

T = TypeVar("T")

# A moderation model is given no more of a text at a time.
MODERATED_CHARS_MAX = 20_000


class Judgement(Protocol):
    """What a text was found to be."""

    @property
    def flagged(self) -> bool: ...
    @property
    def categories(self) -> dict[str, bool | None]: ...
    @property
    def scores(self) -> dict[str, float | None]: ...


class Judge(Protocol):
    """Somebody who judges texts; raises AdapterError."""

    async def judge(self, texts: Sequence[str]) -> Sequence[Judgement]: ...

    async def close(self) -> None: ...


class Moderation:
    """Asks a moderation model. A text counts when the model flags it, or with a `threshold` when a score reaches it;
    with `categories` only these do."""

    def __init__(self, config: GuardrailConfig, judge: Judge) -> None:
        self._judge = judge
        self._window_chars = min(config.window_chars, MODERATED_CHARS_MAX)
        self._categories = frozenset(config.categories)
        self._threshold = config.threshold

    async def find(self, texts: Sequence[str]) -> list[Sequence[Span]]:
        cuts = [(i, at) for i, text in enumerate(texts) for at in range(0, len(text), MODERATED_CHARS_MAX)]
        pieces = [texts[i][at : at + MODERATED_CHARS_MAX] for i, at in cuts]
        found: list[list[Span]] = [[] for _ in texts]
        for (i, at), piece, kinds in zip(cuts, pieces, await self._kinds(pieces), strict=True):
            found[i] += [Span(at, at + len(piece), kinds)] if kinds else []
        return list(found)

    async def _kinds(self, pieces: Sequence[str]) -> list[str]:
        """The category that each piece falls into first; empty: none."""
        if not pieces:
            return []
        try:
            judged = await self._judge.judge(pieces)
        except AdapterError as error:
            raise GuardrailFailed(f"the provider failed: {type(error).__name__}") from error
        return [self._kind(one) for one in judged]

    def _kind(self, one: Judgement) -> str:
        if self._threshold is None:
            named = [name for name, holds in one.categories.items() if holds]
        else:
            named = [name for name, score in one.scores.items() if (score or 0) >= self._threshold]
        wanted = [name for name in named if not self._categories or name in self._categories]
        if wanted:
            return wanted[0]
        return "flagged" if one.flagged and self._threshold is None and not self._categories else ""

    def scan(self) -> Windows:
        async def ask(text: str) -> Sequence[Span]:
            return (await self.find([text]))[0]

        return Windows(ask, self._window_chars)

    async def close(self) -> None:
        await self._judge.close()


class _Finding(msgspec.Struct):
    kind: str
    start: int = 0
    end: int | None = None


class _Verdict(msgspec.Struct):
    findings: list[_Finding]


_verdicts = msgspec.json.Decoder(_Verdict)


class Webhook:
    """Posts the text to an address, signed; it answers with its findings, each with a name and a place in the text."""

    def __init__(
        self,
        config: GuardrailConfig,
        *,
        now_s: Callable[[], float] = time.time,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        assert config.url is not None and config.secret is not None
        self._name, self._url = config.name, config.url
        self._secret = config.secret
        self._window_chars = config.window_chars
        self._poster = Poster(private_addresses=config.private_addresses, resolve=resolve, network=network)
        self._now_s = now_s

    async def find(self, texts: Sequence[str]) -> list[Sequence[Span]]:
        return await find_joined(self._ask, texts)

    def scan(self) -> Windows:
        return Windows(self._ask, self._window_chars)

    async def _ask(self, text: str) -> Sequence[Span]:
        payload = msgspec.json.encode({"guardrail": self._name, "text": text})
        signed = signature(self._secret, round(self._now_s()), payload)
        body = await self._poster.post(self._url, payload, [("x-gateway-signature", signed)])
        findings = _decoded(_verdicts, body, "its answer").findings
        return [Span(one.start, len(text) if one.end is None else one.end, _name(one.kind)) for one in findings]

    async def close(self) -> None:
        await self._poster.close()


class _Result(msgspec.Struct):
    entity_type: str
    start: int
    end: int
    score: float = 1.0


class _Item(msgspec.Struct):
    start: int
    end: int
    text: str
    entity_type: str = ""


class _Anonymized(msgspec.Struct):
    text: str
    items: list[_Item]


_results = msgspec.json.Decoder(list[_Result])
_anonymized = msgspec.json.Decoder(_Anonymized)


class Presidio:
    """Asks an analyzer of Presidio, and an anonymizer, where there is one, what to put in the place of a finding."""

    def __init__(
        self,
        config: GuardrailConfig,
        *,
        resolve: Resolve = resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        assert config.url is not None
        self._config = config
        self._poster = Poster(private_addresses=config.private_addresses, resolve=resolve, network=network)

    async def find(self, texts: Sequence[str]) -> list[Sequence[Span]]:
        return await find_joined(self._ask, texts)

    def scan(self) -> Windows:
        return Windows(self._ask, self._config.window_chars)

    async def _ask(self, text: str) -> Sequence[Span]:
        config = self._config
        asked: dict[str, object] = {"text": text, "language": config.language}
        if config.entities:
            asked["entities"] = config.entities
        if config.threshold is not None:
            asked["score_threshold"] = config.threshold
        body = await self._poster.post(f"{(config.url or '').rstrip('/')}/analyze", msgspec.json.encode(asked))
        results = _decoded(_results, body, "its answer")
        if config.threshold is not None:
            results = [one for one in results if one.score >= config.threshold]
        if config.anonymizer_url is None or config.action != "mask" or not results:
            return [Span(one.start, one.end, _name(one.entity_type)) for one in results]
        return await self._anonymized(text, results)

    async def _anonymized(self, text: str, results: list[_Result]) -> Sequence[Span]:
        """The findings with what the anonymizer puts in their places; its items lie in its own text."""
        url = f"{(self._config.anonymizer_url or '').rstrip('/')}/anonymize"
        body = await self._poster.post(url, msgspec.json.encode({"text": text, "analyzer_results": results}))
        answer = _decoded(_anonymized, body, "the anonymizer's answer")
        ends = {one.start: one.end for one in sorted(results, key=lambda one: one.end)}
        spans, at, shift = [], 0, 0
        for item in sorted(answer.items, key=lambda one: one.start):
            start = item.start - shift
            end = ends.get(start, -1)
            if start < at or end < start:
                raise GuardrailFailed("the anonymizer's answer does not fit the analyzer's")
            spans.append(Span(start, end, _name(item.entity_type), item.text))
            at, shift = end, item.end - end
        if len(answer.text) - shift != len(text):
            raise GuardrailFailed("the anonymizer's answer does not fit the analyzer's")
        return spans

    async def close(self) -> None:
        await self._poster.close()


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes, what: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise GuardrailFailed(f"{what} is not one") from None


def _name(given: str) -> str:
    """A name that others chose, fit for logs, metrics and JSON texts."""
    name = "".join(
        character for character in given.lower() if character.isascii() and (character.isalnum() or character in "._-")
    )
    return name[:64] or "finding"
