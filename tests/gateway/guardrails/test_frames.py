"""Events that are passed on behind guardrails: the same but for what is masked, in the same order, or ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from adapters.said import answered, ending
from adapters.types import DialectName, Head, Inbound, Usage
from gateway.catalog import Target
from gateway.errors import GatewayError
from gateway.guardrails import Guardrail, GuardrailFailed, Scanned, Span
from gateway.guardrails.guarding import guarding
from gateway.guardrails.rules import Found, Guardrails
from tests.fakes import Scripted
from tests.gateway.guardrails.test_watch import PRINCIPAL, guardrails

MAIL = "bob@example.com"
DONE = b"data: [DONE]\n\n"


def frame(fields: dict[str, Any]) -> bytes:
    kind = f"event: {fields['type']}\n" if "type" in fields else ""
    return f"{kind}data: {json.dumps(fields)}\n\n".encode()


def chunk(
    index: int = 0, reason: str | None = None, more: dict[str, Any] | None = None, **delta: Any
) -> dict[str, Any]:
    choice = {"delta": delta, "zz": {"a": -0.0}, "finish_reason": reason, "index": index, **(more or {})}
    return {"id": "c", "created": 5, "model": "m", "choices": [choice], "obfuscation": "+49301234567"}


def looked_at(
    all: Guardrails,
    events: Sequence[dict[str, Any]],
    dialect: DialectName = "openai_chat",
    *,
    choices: int = 1,
    last: bytes = DONE,
) -> tuple[list[dict[str, Any]], list[int]]:
    """What is shown of a stream in the end, and how many events after each that came."""

    async def run() -> tuple[bytes, list[int]]:
        guards = guarding(all, PRINCIPAL, Target("m", Scripted()), "r")
        assert guards is not None
        ends = ending(Inbound(dialect, b"{}", Head("m", True, n=choices, usage_wanted=True)))
        frames, shown, counts = guards.frames(choices, ends), b"", []
        for one in events:
            shown += await frames.feed(frame(one))
            counts.append(shown.count(b"\n\n"))
        shown += await frames.end(last) if not frames.over() else b""
        shown += ends.end(Usage(3, frames.outputs)) if frames.over() else b""
        frames.close()
        return shown, counts

    shown, counts = asyncio.run(run())
    assert shown.endswith(b"\n\n")
    lines = [line[6:] for line in shown.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"], counts


def test_nothing_is_changed_where_nothing_is_found() -> None:
    events = [chunk(role="assistant", content=""), chunk(content="Hi "), chunk(content="there"), chunk(reason="stop")]
    for stage in ("during", "after"):
        shown, _ = looked_at(guardrails("mask", stage=stage), events)
        assert shown == events


@pytest.mark.parametrize("cut", range(len(MAIL) + 1))
def test_a_finding_in_several_events_is_masked_once(cut: int) -> None:
    more = {"logprobs": {"content": [{"token": "x"}]}}
    said = [f"Ask {MAIL[:cut]}", f"{MAIL[cut:]} now", "."]
    shown, _ = looked_at(guardrails("mask"), [chunk(content=one, more=more) for one in said])
    assert "".join(one["choices"][0]["delta"]["content"] for one in shown) == "Ask [EMAIL] now."
    assert [one["choices"][0]["logprobs"] is None for one in shown] == [cut > 0, cut < len(MAIL), False]
    assert [one["choices"][0]["zz"] for one in shown] == [{"a": -0.0}] * 3


def test_texts_that_nobody_knows_go_on_beside_those_that_somebody_does() -> None:
    def both(text: str) -> dict[str, Any]:
        details = [{"type": "reasoning.text", "text": text, "index": 0, "signature": "seal"}]
        return chunk(reasoning=text, content="", reasoning_details=details)

    shown, _ = looked_at(guardrails("mask"), [both("to bob@exa"), chunk(), both("mple.com ok"), chunk(content="x")])
    deltas = [one["choices"][0]["delta"] for one in shown]
    assert "".join(one.get("reasoning", "") for one in deltas) == "to [EMAIL] ok"
    details = [one["reasoning_details"][0] for one in deltas if "reasoning_details" in one]
    assert "".join(one["text"] for one in details) == "to [EMAIL] ok"
    assert [one["signature"] for one in details] == ["", ""]


def test_arguments_stay_json() -> None:
    def call(arguments: str, **more: Any) -> dict[str, Any]:
        return chunk(tool_calls=[{"function": {"arguments": arguments}, "index": 1, **more}])

    quoted = [call('{"to": "bo', id="call", type="function"), call("b@example.com"), call('"}'), chunk(reason="stop")]
    shown, _ = looked_at(guardrails("mask"), quoted)
    calls = [one["choices"][0]["delta"].get("tool_calls", [{}])[0] for one in shown]
    assert json.loads("".join(one.get("function", {}).get("arguments", "") for one in calls)) == {"to": "[EMAIL]"}


def test_a_choice_that_is_blocked_ends_and_the_others_go_on() -> None:
    events = [
        *(chunk(0, content="Hello "), chunk(1, content="Hi "), chunk(0, content="bob@exam"), chunk(1, content="you")),
        *(chunk(0, content="ple.com bye"), chunk(0, content="more"), chunk(0, reason="stop"), chunk(1, reason="stop")),
    ]
    shown, _ = looked_at(guardrails("block"), [*events, {"id": "c", "choices": [], "usage": {}}], choices=2)
    of = [[one["choices"][0] for one in shown if one["choices"] and one["choices"][0]["index"] == at] for at in (0, 1)]
    assert [one["delta"].get("content") for one in of[0]] == ["Hello ", None]
    assert of[0][-1]["finish_reason"] == "content_filter"
    assert [one["delta"].get("content") for one in of[1]] == ["Hi ", "you", None]
    assert shown[-1]["choices"] == [] and shown[-1]["usage"] == {}


def test_when_all_choices_are_blocked_nothing_more_is_looked_at() -> None:
    events = [chunk(content="Hello "), chunk(content=MAIL), chunk(content=" bye"), chunk(content="more")]
    shown, counts = looked_at(guardrails("block"), events)
    assert [one["choices"][0]["delta"].get("content") if one["choices"] else one["usage"] for one in shown] == [
        "Hello ",
        None,
        {**shown[-1]["usage"], "prompt_tokens": 3, "completion_tokens": 1},
    ]
    assert counts == [0, 1, 2, 2]
    assert all((one["id"], one["created"], one["model"]) == ("c", 5, "m") for one in shown)


def test_after_its_end_an_answer_is_shown_as_a_whole() -> None:
    events = [chunk(role="assistant", content=""), chunk(content="a "), chunk(content="b "), chunk(reason="stop")]
    shown, counts = looked_at(guardrails("mask", stage="after"), events)
    assert (shown, counts) == (events, [1, 1, 1, 1])


def test_no_more_is_held_back_than_may_become_a_finding() -> None:
    _, counts = looked_at(guardrails("mask"), [chunk(content=word) for word in ("One ", "two ", "bob@", "x ", "y ")])
    assert counts == [0, 1, 2, 3, 4]


def message(*events: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "message_start", "message": {"id": "m", "content": [], "usage": {}}}, *events]


def test_blocks_of_a_message() -> None:
    def block(index: int, kind: str, name: str, *texts: str) -> list[dict[str, Any]]:
        deltas = [{"type": "content_block_delta", "index": index, "delta": {"type": kind, name: t}} for t in texts]
        start = {"type": "content_block_start", "index": index, "content_block": {"type": name, name: ""}}
        return [start, *deltas, {"type": "content_block_stop", "index": index}]

    seal = {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2VhbA=="}}
    thought = block(0, "thinking_delta", "thinking", "bob@", "example.com?")
    events = message(*thought[:-1], seal, thought[-1], *block(1, "text_delta", "text", "Ask bob@example", ".com"))
    shown, _ = looked_at(guardrails("mask"), events, "anthropic_messages", last=frame({"type": "message_stop"}))
    assert [one["type"] for one in shown] == [*(one["type"] for one in events), "message_stop"]
    deltas = [one["delta"] for one in shown if one["type"] == "content_block_delta"]
    assert "".join(one.get("thinking", "") for one in deltas) == "[EMAIL]?"
    assert "".join(one.get("text", "") for one in deltas) == "Ask [EMAIL]"
    assert [one["signature"] for one in deltas if "signature" in one] == [""]
    blocked, _ = looked_at(guardrails("block"), events, "anthropic_messages")
    assert [one["type"] for one in blocked] == [
        *("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")
    ]
    assert blocked[-2]["delta"]["stop_reason"] == "refusal"


def response(*texts: str) -> list[dict[str, Any]]:
    part = {"type": "output_text", "text": "", "annotations": []}
    item = {"id": "msg", "type": "message", "role": "assistant", "content": []}
    whole = {"object": "response", "id": "resp", "instructions": MAIL, "output": []}
    of = {"item_id": "msg", "output_index": 0, "content_index": 0}
    text = "".join(texts)
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": whole},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **of, "part": part},
        *({"type": "response.output_text.delta", **of, "delta": one, "logprobs": []} for one in texts),
        {"type": "response.output_text.done", **of, "text": text},
        {"type": "response.output_item.done", "output_index": 0, "item": item | {"content": [part | {"text": text}]}},
    ]
    events.append({"type": "response.completed", "response": whole | {"output": [events[-1]["item"]]}})
    return [one | {"sequence_number": at} for at, one in enumerate(events)]


def test_a_response_repeats_what_was_masked_and_not_what_it_was_asked() -> None:
    events = response("Ask bob@", "example.com", " now")
    shown, _ = looked_at(guardrails("mask"), events[:-1], "openai_responses", last=frame(events[-1]))
    assert [one["type"] for one in shown] == [one["type"] for one in events]
    assert "".join(one.get("delta", "") for one in shown) == "Ask [EMAIL] now"
    assert shown[-3]["text"] == "Ask [EMAIL] now"
    assert shown[-1]["response"]["output"][0]["content"][0]["text"] == "Ask [EMAIL] now"
    assert shown[-1]["response"]["instructions"] == MAIL


def test_a_response_that_is_blocked_is_incomplete() -> None:
    events = response("Hello ", MAIL, " bye")
    shown, _ = looked_at(guardrails("block"), events, "openai_responses")
    assert [one["type"].removeprefix("response.") for one in shown] == [
        *("created", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "incomplete"),
    ]
    assert [one["sequence_number"] for one in shown] == list(range(8))
    ended = shown[-1]["response"]
    assert (ended["status"], ended["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert ended["output"][0]["content"][0]["text"] == "Hello "


class Broken(Guardrail):
    """Cannot say anything from the second piece of a text on."""

    def scan(self) -> Any:
        return self

    async def feed(self, piece: str, *, last: bool) -> Scanned:
        if "b" in piece:
            raise GuardrailFailed("it is broken")
        return Scanned(0)

    async def find(self, texts: Sequence[str]) -> list[Sequence[Span]]:
        return [() for _ in texts]

    async def close(self) -> None: ...


def test_what_cannot_be_looked_at_passes_or_ends_the_answer() -> None:
    events = [chunk(content="a"), chunk(content="b"), chunk(content="c"), chunk(reason="stop")]
    found: list[Found] = []
    shown, counts = looked_at(guardrails("mask", Broken(), found=found, on_failure="open"), events)
    assert (shown, counts) == (events, [0, 2, 3, 4])
    assert [one.outcome for one in found] == ["failed"]
    with pytest.raises(GatewayError) as raised:
        looked_at(guardrails("mask", Broken()), events)
    assert raised.value.code == "guardrail_unavailable"


def test_several_guardrails_one_after_the_other() -> None:
    found: list[Found] = []
    both = guardrails("mask", stage=("during", "after"), found=found)
    shown, _ = looked_at(both, [chunk(content="bob@exam"), chunk(content="ple.com"), chunk(reason="stop")])
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in shown) == "[EMAIL]"
    assert [(one.stage, one.outcome, one.kinds) for one in found] == [("during", "masked", "email:1")]


def test_a_stream_may_end_without_a_last_event() -> None:
    shown, _ = looked_at(guardrails("mask"), [chunk(content="a"), chunk(reason="stop")], last=b"")
    assert shown == [chunk(content="a"), chunk(reason="stop")]


def test_what_is_logged_is_not_changed() -> None:
    found: list[Found] = []
    events = [chunk(content=f"to {MAIL}"), chunk(reason="stop")]
    shown, counts = looked_at(guardrails("log", found=found), events)
    assert (shown, counts) == (events, [1, 2])
    assert [(one.outcome, one.kinds) for one in found] == [("logged", "email:1")]


def test_what_only_has_the_name_of_something_else_is_a_text() -> None:
    events = [chunk(signature=f"to {MAIL}"), chunk(index=10**30, content=MAIL)]
    shown, _ = looked_at(guardrails("mask"), events)
    assert shown[0]["choices"][0]["delta"] == {"signature": "to [EMAIL]"}
    assert shown[1]["choices"][0]["delta"] == {"content": "[EMAIL]"}


def test_a_whole_answer_is_masked_in_place() -> None:
    body = (
        b'{ "id":"x","choices":[{"message":{"content":"to bob@example.com","tool_calls":[{"function":{"arguments":'
        b'"{\\"to\\": \\"bob@example.com\\"}"}}],"reasoning_details":[{"text":"bob@example.com","signature":"a+/="}]},'
        b'"index":0,"logprobs":{"content":[{"token":"bob"}]}} ],"zz":[1E2,-0.0]}'
    )

    async def run() -> tuple[dict[int, str], set[int], int]:
        guards = guarding(guardrails("mask"), PRINCIPAL, Target("m", Scripted()), "r")
        assert guards is not None
        found = (await answered(body)).found
        texts, blocked = await guards.check_answer(found)
        return texts, blocked, len(found)

    texts, blocked, count = asyncio.run(run())
    assert (sorted(texts.values()), blocked, count) == (["[EMAIL]", "to [EMAIL]", '{"to": "[EMAIL]"}'], set(), 5)


def test_pieces_that_look_like_words_are_looked_at() -> None:
    said = [chunk(reasoning_details=[{"type": "s", "summary": one}]) for one in ("bob", "@", "example", ".com", " ok")]
    shown, _ = looked_at(guardrails("mask"), said)
    summaries = [one["choices"][0]["delta"]["reasoning_details"][0]["summary"] for one in shown]
    assert "".join(summaries) == "[EMAIL] ok"
