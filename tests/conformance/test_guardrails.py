"""One suite over every guardrail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from adapters import open_moderator
from adapters.upstream import UpstreamSettings
from gateway.config_guardrails import GuardrailConfig
from gateway.guardrails import Guardrail, GuardrailFailed, Scan, Span, masked
from gateway.guardrails.asked import Moderation, Presidio, Webhook
from gateway.guardrails.patterns import regexes
from gateway.guardrails.pii import pii
from gateway.guardrails.watch import Complete
from gateway.secret import Secret
from tests.guards import CARD, SECRET, Guards, guards

WINDOW = 40
CLEAN = "Nothing to be found here, whatever is looked for. " * 4
FULL = f"Grüße! My card is {CARD}, and my other card is {CARD}; that is all there is to say. " * 2


@pytest.fixture(scope="module")
def asked() -> Iterator[Guards]:
    with guards() as server:
        yield server


def config(kind: str, asked: Guards) -> GuardrailConfig:
    return GuardrailConfig(
        name="g",
        kind=kind,  # type: ignore[arg-type]
        action="mask",
        window_chars=WINDOW,
        url=f"{asked.url}/hook" if kind == "webhook" else asked.url,
        secret=Secret(SECRET),
        private_addresses=True,
    )


def moderation(asked: Guards) -> Guardrail:
    settings = UpstreamSettings(name="p", kind="openai-compatible", base_url=f"{asked.url}/v1")
    return Moderation(config("moderation", asked), open_moderator(settings, "omni"))


LOCAL: dict[str, Callable[[Guards], Guardrail]] = {
    "regex": lambda asked: regexes({"card": r"\d{4}( \d{4}){3}"}, WINDOW),
    "pii": lambda asked: pii(("email", "card", "phone", "iban", "secret")),
}
REMOTE: dict[str, Callable[[Guards], Guardrail]] = {
    "webhook": lambda asked: Webhook(config("webhook", asked)),
    "presidio": lambda asked: Presidio(config("presidio", asked)),
    "moderation": moderation,
}
EVERY = pytest.mark.parametrize("make", [*LOCAL.values(), *REMOTE.values()], ids=[*LOCAL, *REMOTE])
EXACT = pytest.mark.parametrize("make", [one for name, one in {**LOCAL, **REMOTE}.items() if name != "moderation"])


async def scanned(scan: Scan, pieces: Sequence[str]) -> list[Span]:
    """What a text in pieces is found to hold; checks that nothing is found in what was let go."""
    spans: list[Span] = []
    settled = fed = 0
    for i, piece in enumerate(pieces):
        got = await scan.feed(piece, last=i == len(pieces) - 1)
        fed += len(piece)
        assert settled <= got.settled <= fed
        assert all(settled <= one.start < one.end <= got.settled for one in got.spans)
        settled, spans = got.settled, [*spans, *got.spans]
    assert settled == fed
    return spans


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@EVERY
def test_says_what_is_in_each_text(make: Callable[[Guards], Guardrail], asked: Guards) -> None:
    async def scenario() -> None:
        guardrail = make(asked)
        clean, full, empty = await guardrail.find([CLEAN, FULL, ""])
        assert not clean
        assert not empty
        assert full
        assert CARD not in masked(FULL, full)
        assert await guardrail.find([]) == []
        await guardrail.close()

    asyncio.run(scenario())


@EVERY
@pytest.mark.parametrize("complete", [False, True])
def test_finds_the_same_however_a_text_is_cut(
    make: Callable[[Guards], Guardrail], complete: bool, asked: Guards
) -> None:
    async def scenario() -> None:
        guardrail = make(asked)
        opened: Callable[[], Scan] = (lambda: Complete(guardrail.scan)) if complete else guardrail.scan
        whole = await scanned(opened(), [FULL])
        assert CARD not in masked(FULL, whole)
        for size in (1, 7, 64):
            assert await scanned(opened(), cut(FULL, size)) == whole
            assert await scanned(opened(), [*cut(FULL, size), ""]) == whole
            assert await scanned(opened(), cut(CLEAN, size)) == []
        await guardrail.close()

    asyncio.run(scenario())


@EXACT
def test_names_no_more_than_what_it_found(make: Callable[[Guards], Guardrail], asked: Guards) -> None:
    async def scenario() -> None:
        guardrail = make(asked)
        (found,) = await guardrail.find([FULL])
        assert [FULL[one.start : one.end] for one in found] == [CARD] * 4
        assert await scanned(guardrail.scan(), cut(FULL, 5)) == list(found)
        await guardrail.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("make", REMOTE.values(), ids=list(REMOTE))
@pytest.mark.parametrize(
    "broken",
    [
        500,
        302,
        204,
        b"",
        b"{}",
        b"[]]",
        b'"x"',
        b'{"findings":[{"kind":"x","start":5,"end":1}]}',
        b'{"results":[]}',
        b'[{"entity_type":"X","start":-1,"end":3}]',
        b"[" * 100_000,
    ],
)
def test_says_that_it_cannot_say(make: Callable[[Guards], Guardrail], broken: bytes | int, asked: Guards) -> None:
    async def scenario() -> None:
        guardrail = make(asked)
        with pytest.raises(GuardrailFailed) as caught:
            await guardrail.find([FULL])
        assert CARD not in str(caught.value)
        with pytest.raises(GuardrailFailed):
            await guardrail.scan().feed(FULL, last=True)
        await guardrail.close()

    asked.broken = broken
    try:
        asyncio.run(scenario())
    finally:
        asked.broken = None
