"""What is asked of others, and what their answers come to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import httpcore
import pytest

from adapters.dialects.openai_moderations import Judgement
from adapters.errors import AdapterError, Unreachable
from gateway.config_guardrails import GuardrailConfig
from gateway.guardrails import GuardrailFailed, Span, masked
from gateway.guardrails.asked import Moderation, Presidio, Webhook
from gateway.guardrails.remote import Poster
from gateway.secret import Secret
from tests.guards import CARD, SECRET, Guards, guards


@pytest.fixture(scope="module")
def asked() -> Iterator[Guards]:
    with guards() as server:
        yield server


def config(kind: str, **settings: object) -> GuardrailConfig:
    return GuardrailConfig(name="g", kind=kind, **settings)  # type: ignore[arg-type]


def found(guardrail: Moderation | Webhook | Presidio, *texts: str) -> list[Sequence[Span]]:
    async def run() -> list[Sequence[Span]]:
        try:
            return await guardrail.find(texts)
        finally:
            await guardrail.close()

    return asyncio.run(run())


def test_addresses_of_ones_own_network_are_not_asked_unless_that_is_allowed(asked: Guards) -> None:
    for url in (asked.url, asked.url.replace("127.0.0.1", "localhost"), "http://169.254.169.254"):
        before = len(asked.asked)
        webhook = Webhook(config("webhook", url=f"{url}/hook", secret=Secret(SECRET)))
        for guardrail in (webhook, Presidio(config("presidio", url=url))):
            with pytest.raises(GuardrailFailed):
                found(guardrail, "a badword")
        assert len(asked.asked) == before
    allowed = config("webhook", url=f"{asked.url}/hook", secret=Secret(SECRET), private_addresses=True)
    assert found(Webhook(allowed), "a badword") == [[Span(2, 9, "badword")]]


def test_a_webhook_with_another_secret_is_refused_by_its_receiver(asked: Guards) -> None:
    wrong = config("webhook", url=f"{asked.url}/hook", secret=Secret("another-secret-123"), private_addresses=True)
    with pytest.raises(GuardrailFailed, match="401"):
        found(Webhook(wrong), "a badword")


def test_texts_are_asked_about_in_one_request(asked: Guards) -> None:
    one = config("webhook", url=f"{asked.url}/hook", secret=Secret(SECRET), private_addresses=True)
    before = len(asked.asked)
    assert found(Webhook(one), "a badword", "", f"ü {CARD}") == [
        [Span(2, 9, "badword")],
        [],
        [Span(2, 21, "credit_card")],
    ]
    assert len(asked.asked) == before + 1
    assert asked.asked[-1] == ("/hook", {"guardrail": "g", "text": f"a badword\n\n\n\nü {CARD}"})


def test_presidio_is_asked_as_it_is_configured(asked: Guards) -> None:
    settings = {"url": f"{asked.url}/", "private_addresses": True, "language": "de", "entities": ("X",)}
    found(Presidio(config("presidio", threshold=0.5, **settings)), "x")
    assert asked.asked[-1] == (
        "/analyze",
        {"text": "x", "language": "de", "entities": ["X"], "score_threshold": 0.5},
    )
    # Whatever an analyzer makes of the threshold, it holds.
    assert found(Presidio(config("presidio", threshold=0.9, **settings)), "a badword") == [[]]


def test_the_anonymizer_says_what_takes_the_place_of_a_finding(asked: Guards) -> None:
    settings = {"url": asked.url, "anonymizer_url": asked.url, "private_addresses": True, "action": "mask"}
    text = f"a badword, {CARD} and badword"
    (spans,) = found(Presidio(config("presidio", **settings)), text)
    assert masked(text, spans) == "a <BADWORD>, <CREDIT_CARD> and <BADWORD>"
    assert [one.kind for one in spans] == ["badword", "credit_card", "badword"]
    before = len(asked.asked)
    assert found(Presidio(config("presidio", **settings)), "fine") == [[]]
    assert len(asked.asked) == before + 1


class Judge:
    """Judges every text alike."""

    def __init__(self, judgement: Judgement | AdapterError) -> None:
        self.judgement = judgement
        self.texts: list[str] = []

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        self.texts += texts
        if isinstance(self.judgement, AdapterError):
            raise self.judgement
        return [self.judgement for _ in texts]

    async def close(self) -> None: ...


VIOLENT = Judgement(True, {"violence": True, "illicit": False}, {"violence": 0.9, "illicit": 0.4})


@pytest.mark.parametrize(
    ("judgement", "settings", "kind"),
    [
        (VIOLENT, {}, "violence"),
        (VIOLENT, {"categories": ("illicit",)}, None),
        (VIOLENT, {"categories": ("illicit",), "threshold": 0.4}, "illicit"),
        (VIOLENT, {"threshold": 0.95}, None),
        (Judgement(True), {}, "flagged"),
        (Judgement(True), {"threshold": 0.1}, None),
        (Judgement(False, {"violence": None}, {"violence": None}), {"threshold": 0.1}, None),
    ],
)
def test_what_a_moderation_comes_to(judgement: Judgement, settings: dict[str, object], kind: str | None) -> None:
    guardrail = Moderation(config("moderation", provider="p", **settings), Judge(judgement))
    assert found(guardrail, "abc", "") == [[] if kind is None else [Span(0, 3, kind)], []]


def test_long_texts_are_judged_in_parts() -> None:
    judge = Judge(VIOLENT)
    spans = found(Moderation(config("moderation", provider="p"), judge), "x" * 50_000, "y")
    assert [[(one.start, one.end) for one in part] for part in spans] == [
        [(0, 20_000), (20_000, 40_000), (40_000, 50_000)],
        [(0, 1)],
    ]
    assert [len(text) for text in judge.texts] == [20_000, 20_000, 10_000, 1]


def test_a_provider_that_fails() -> None:
    with pytest.raises(GuardrailFailed):
        found(Moderation(config("moderation", provider="p"), Judge(Unreachable("away"))), "x")


def test_those_who_ask_first_share_the_connections() -> None:
    opened: list[httpcore.AsyncMockStream] = []

    class Network(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
            opened.append(httpcore.AsyncMockStream([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"] * 9))
            return opened[-1]

    async def main() -> None:
        poster = Poster(private_addresses=True, network=Network())
        answers = await asyncio.gather(*(poster.post("http://a.example/", b"{}") for _ in range(5)))
        assert answers == [b"{}"] * 5
        await poster.close()

    asyncio.run(main())
    assert opened and all(stream._closed for stream in opened)
