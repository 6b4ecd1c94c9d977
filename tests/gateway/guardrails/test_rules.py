"""Requests behind guardrails: what is looked at, to whom a guardrail applies, what it costs to be blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from adapters.errors import InvalidRequest
from adapters.generation import Constraint, Generation
from adapters.types import (
    Caller,
    ChatRequest,
    CompletionRequest,
    DocumentPart,
    EmbeddingRequest,
    Head,
    ImagePart,
    Inbound,
    Message,
    NativePart,
    RerankRequest,
    Served,
    TextPart,
    Thought,
    Tool,
    ToolCall,
)
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.config_guardrails import Action, GuardrailConfig, guardrail_conflicts
from gateway.errors import GatewayError
from gateway.guardrails import Guardrail, GuardrailFailed, Span
from gateway.guardrails.patterns import Matching, regexes
from gateway.guardrails.rules import Found, Guardrails, Rule
from gateway.inference import Inference
from gateway.secret import Secret
from gateway.streams import Passage
from gateway.telemetry import Telemetry
from tests.fakes import Scripted

PRINCIPAL = Principal(tenant="t", key_id="k", name="n")
CALLER = Caller("r", "t")
WORD = regexes({"word": "secret"}, 20)


class Away:
    async def find(self, given: Sequence[str]) -> list[Sequence[Span]]:
        raise GuardrailFailed("away")

    def scan(self) -> Matching:
        return Matching(())

    async def close(self) -> None: ...


class Bench:
    """An inference over one scripted model behind one guardrail."""

    def __init__(self, action: Action = "mask", guardrail: Guardrail = WORD, **settings: object) -> None:
        self.found: list[Found] = []
        self.telemetry = Telemetry("0")
        config = GuardrailConfig(**{"name": "g", "kind": "regex", "action": action, "always": True, **settings})  # type: ignore[arg-type]
        self.guardrails = Guardrails([Rule(config, guardrail)], self.telemetry, self.found.append)
        self.adapter = Scripted()
        target = Target("org/model", self.adapter, aliases=("m",))
        self.inference = Inference(Catalog([target]), self.telemetry, guardrails=self.guardrails)

    def chat(self, *messages: Message, principal: Principal = PRINCIPAL, **more: object) -> ChatRequest:
        async def run() -> None:
            stream = await self.inference.chat(principal, ChatRequest("m", messages, **more), CALLER)  # type: ignore[arg-type]
            assert [event async for event in stream]

        asyncio.run(run())
        (request,) = self.adapter.requests
        assert isinstance(request, ChatRequest)
        return request


def test_more_texts_than_anybody_could_look_at_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="50000 texts"):
        Bench().chat(*[Message("user", "x")] * 50_001)


def test_every_text_of_a_conversation_is_looked_at() -> None:
    image = ImagePart(b"secret", "image/png")
    request = Bench().chat(
        Message("system", "a secret"),
        Message(
            "user",
            (
                TextPart("my secret"),
                image,
                DocumentPart(b"the secret", "text/plain", title="secret", context="secret"),
                DocumentPart(b"secret", "application/pdf"),
                NativePart("anthropic_messages", b'{"type":"x","y":"\\u0073ecret"}'),
            ),
        ),
        Message(
            "assistant",
            None,
            reasoning="secret",
            thoughts=(Thought("secret"), Thought("", redacted="secret")),
            tool_calls=(ToolCall("c", "f", '{"a":"secret"}'),),
        ),
        Message("tool", "result: secret", tool_call_id="c"),
        tools=(Tool("f", "finds secrets", b'{"type":"object","description":"secret"}'),),
        native_tools=(NativePart("anthropic_messages", b'{"name":"secret"}'),),
        end_user="secret",
    )
    system, user, assistant, tool = request.messages
    assert system.content == "a [WORD]"
    assert user.content == (
        TextPart("my [WORD]"),
        image,
        DocumentPart(b"the [WORD]", "text/plain", title="[WORD]", context="[WORD]"),
        DocumentPart(b"secret", "application/pdf"),
        NativePart("anthropic_messages", b'{"type":"x","y":"[WORD]"}'),
    )
    assert assistant.reasoning == "[WORD]"
    assert assistant.thoughts == (Thought("[WORD]"), Thought("", redacted="secret"))
    assert assistant.tool_calls[0].arguments == '{"a":"[WORD]"}'
    assert tool.content == "result: [WORD]"
    assert request.tools == (Tool("f", "finds [WORD]s", b'{"type":"object","description":"[WORD]"}'),)
    assert request.native_tools == (NativePart("anthropic_messages", b'{"name":"[WORD]"}'),)
    assert request.end_user == "[WORD]"


@pytest.mark.parametrize(
    ("messages", "generation"),
    [
        ((Message("assistant", "x", thoughts=(Thought("secret", signature="s"),)),), Generation()),
        ((Message("user", "x", name="secret"),), Generation()),
        ((Message("user", "x"),), Generation(constraint=Constraint("regex", "secret"))),
        ((Message("assistant", None, tool_calls=(ToolCall("c", "f", '{"a":secret}'),)),), Generation()),
    ],
)
def test_what_cannot_be_changed_is_blocked(messages: tuple[Message, ...], generation: Generation) -> None:
    with pytest.raises(GatewayError) as caught:
        Bench().chat(*messages, generation=generation)
    assert (caught.value.status, caught.value.code) == (400, "content_blocked")


def test_a_request_in_which_nothing_is_found_is_the_same() -> None:
    native = NativePart("anthropic_messages", b'{ "a" : "\\u00fc" }')
    messages = (Message("user", (TextPart("ü"), native)), Message("assistant", "x", thoughts=(Thought("", "sig"),)))
    assert Bench().chat(*messages).messages == messages
    assert Bench("log").chat(Message("user", "secret")).messages == (Message("user", "secret"),)


def test_a_blocked_request_goes_nowhere_and_says_nothing_of_what_was_found() -> None:
    bench = Bench("block")
    with pytest.raises(GatewayError) as caught:
        bench.chat(Message("user", "my secret is here"))
    assert (caught.value.status, caught.value.code) == (400, "content_blocked")
    assert "secret" not in caught.value.message
    assert bench.adapter.requests == []
    (found,) = bench.found
    assert found == Found(
        guardrail="g",
        stage="before",
        outcome="blocked",
        kinds="word:1",
        request_id="r",
        key_id="k",
        tenant="t",
    )
    text = bench.telemetry.render().decode()
    assert 'gateway_guardrail_checks_total{guardrail="g",stage="before",outcome="blocked"} 1' in text
    assert 'outcome="content_blocked"} 1' in text
    tally = bench.guardrails.rules["g"].tally
    assert (tally.checked, tally.blocked, tally.failed) == (1, 1, 0)


def test_prompts_inputs_and_documents_are_looked_at() -> None:
    async def scenario(bench: Bench) -> None:
        tokens = tuple(b"secret")
        inference = bench.inference
        stream = await inference.complete(
            PRINCIPAL, CompletionRequest("m", ("a secret", tokens, (65,)), "secret"), CALLER
        )
        assert [event async for event in stream]
        await inference.embed(PRINCIPAL, EmbeddingRequest("m", ("a secret", (65, 66))), CALLER)
        await inference.rerank(PRINCIPAL, RerankRequest("m", "secret?", ("no", "secret!")), CALLER)

    bench = Bench()
    asyncio.run(scenario(bench))
    assert bench.adapter.requests == [
        CompletionRequest("m", ("a [WORD]", "[WORD]", (65,)), "[WORD]"),
        EmbeddingRequest("m", ("a [WORD]", (65, 66))),
        RerankRequest("m", "[WORD]?", ("no", "[WORD]!")),
    ]


@pytest.mark.parametrize(
    ("action", "on_failure", "passes"), [("block", "closed", False), ("block", "open", True), ("log", "closed", True)]
)
def test_token_ids_that_nobody_can_read_do_not_pass_unseen(action: Action, on_failure: str, passes: bool) -> None:
    bench = Bench(action, on_failure=on_failure)

    async def unreadable(tokens: list[int]) -> str:
        raise InvalidRequest("no tokeniser")

    bench.adapter.detokenize = unreadable  # type: ignore[method-assign]
    work = bench.inference.embed(PRINCIPAL, EmbeddingRequest("m", ((1, 2),)), CALLER)
    if passes:
        asyncio.run(work)
    else:
        with pytest.raises(InvalidRequest) as caught:
            asyncio.run(work)
        assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("on_failure", "action", "passes"), [("closed", "mask", False), ("open", "mask", True), ("closed", "log", True)]
)
def test_a_guardrail_that_cannot_be_asked(on_failure: str, action: Action, passes: bool) -> None:
    bench = Bench(action, Away(), on_failure=on_failure)
    if passes:
        assert bench.chat(Message("user", "secret")).messages[0].content == "secret"
    else:
        with pytest.raises(GatewayError) as caught:
            bench.chat(Message("user", "secret"))
        assert (caught.value.status, caught.value.code) == (503, "guardrail_unavailable")
        assert bench.adapter.requests == []
    assert [found.outcome for found in bench.found] == ["failed"]


def test_one_that_takes_too_long() -> None:
    class Slow(Away):
        async def find(self, given: Sequence[str]) -> list[Sequence[Span]]:
            await asyncio.Event().wait()
            return []

    with pytest.raises(GatewayError) as caught:
        Bench("block", Slow(), kind="webhook", timeout_s=0.01).chat(Message("user", "secret"))
    assert caught.value.code == "guardrail_unavailable"


def test_to_whom_a_guardrail_applies() -> None:
    given = replace(PRINCIPAL, guardrails=("g",))
    for settings, principal, masks in (
        ({"always": False}, PRINCIPAL, False),
        ({"always": False}, given, True),
        ({"always": False, "models": ("m",)}, PRINCIPAL, True),
        ({"always": False, "models": ("org/*",)}, PRINCIPAL, True),
        ({"always": False, "models": ("other",)}, PRINCIPAL, False),
        ({"stages": ("during",)}, PRINCIPAL, False),
    ):
        request = Bench(**settings).chat(Message("user", "secret"), principal=principal)
        assert request.messages[0].content == ("[WORD]" if masks else "secret")


def test_what_is_given_and_not_configured_is_no_way_around() -> None:
    principal = replace(PRINCIPAL, guardrails=("g", "gone"))
    with pytest.raises(GatewayError) as caught:
        Bench().chat(Message("user", "x"), principal=principal)
    assert caught.value.code == "guardrail_unavailable"
    plain = Inference(Catalog([Target("m", Scripted())]), Telemetry("0"))
    with pytest.raises(GatewayError) as caught:
        asyncio.run(plain.chat(principal, ChatRequest("m", (Message("user", "x"),)), CALLER))
    assert caught.value.code == "guardrail_unavailable"


class Relaying(Scripted):
    """Takes every request as it came."""

    def takes(self, inbound: Inbound) -> bool:
        return True

    async def relay(self, *_: object) -> Served:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("principal", "always", "passed"),
    [(PRINCIPAL, False, True), (PRINCIPAL, True, False), (replace(PRINCIPAL, guardrails=("g",)), False, False)],
)
def test_nothing_is_passed_on_unseen(principal: Principal, always: bool, passed: bool) -> None:
    bench = Bench("block", always=always)
    target = Target("m", Relaying())
    inference = Inference(Catalog([target]), bench.telemetry, guardrails=bench.guardrails)

    def passage(body: bytes) -> Passage | None:
        return asyncio.run(inference.passage(principal, Inbound("openai_chat", body, Head("m")), CALLER))

    assert passage(b'{"unknown": "fine"}') is not None
    assert (passage(rb'{"unknown": "\ud800"}') is not None) == passed
    if passed:
        assert passage(b'{"unknown": "secret"}') is not None
        return
    with pytest.raises(GatewayError) as caught:
        passage(b'{"unknown": "secret"}')
    assert caught.value.code == "content_blocked"


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"name": "a b"}, ".name"),
        ({"patterns": {}}, ""),
        ({"patterns": {"x": "("}}, ".patterns.x"),
        ({"patterns": {"x": "a*"}}, ".patterns.x"),
        ({"patterns": {"a b": "a"}}, ".patterns"),
        ({"stages": ("before", "before")}, ".stages"),
        ({"url": "https://example.com"}, ".url"),
        ({"kind": "moderation", "patterns": {}}, ""),
        ({"kind": "moderation", "patterns": {}, "provider": "p", "action": "mask"}, ".action"),
        ({"kind": "moderation", "patterns": {}, "provider": "q"}, ".provider"),
        ({"kind": "webhook", "patterns": {}, "url": "https://example.com"}, ""),
        ({"kind": "webhook", "patterns": {}, "secret": Secret("s" * 16), "url": "file:///etc/passwd"}, ".url"),
        ({"kind": "webhook", "patterns": {}, "secret": Secret("s" * 16), "url": "http://u:p@example.com"}, ".url"),
        ({"kind": "presidio", "patterns": {}, "url": "http://e", "anonymizer_url": "ftp://e"}, ".anonymizer_url"),
    ],
)
def test_what_cannot_be_configured(settings: dict[str, object], where: str) -> None:
    values = {"name": "g", "kind": "regex", "patterns": {"x": "a"}} | settings
    problems = list(guardrail_conflicts((GuardrailConfig(**values),), {"p"}))  # type: ignore[arg-type]
    assert f"guardrails[0]{where}" in [path for path, _ in problems]


def test_two_of_one_name() -> None:
    one = GuardrailConfig(name="g", kind="pii")
    assert [path for path, _ in guardrail_conflicts((one, one), ())] == ["guardrails[1].name"]
