"""What requests with tools are held to, over the vocabulary of the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.llama_cpp import reasoning
from adapters.llama_cpp.grammar import Compiler
from adapters.llama_cpp.guidance import PLANS_MAX, Guidance
from adapters.llama_cpp.messages import ChatPrompt, Prepare, TextPrompt
from adapters.llama_cpp.native import Model, quiet
from adapters.llama_cpp.prompts import Refusal
from adapters.llama_cpp.tools import named
from adapters.types import Constraint, Generation, Message, Tool, ToolChoice

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER = Tool("weather", "", json.dumps(SCHEMA | {"additionalProperties": False}).encode())
CLOCK = Tool("now")
UNKNOWN = {"type": "object", "properties": {"at": {"type": "string", "format": "no-such-format"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOT_A_CALL = CALL.replace("Paris", "Oslo")


@pytest.fixture(scope="module")
def model() -> Model:
    quiet()
    path = Path(__file__).parents[3] / "adapters/llama_cpp/demo/demo.gguf"
    return Model(path, gpu_layers=0, progress=lambda fraction: None)


@pytest.fixture(scope="module")
def compiler(model: Model) -> Iterator[Compiler]:
    made = Compiler(model.vocabulary)
    yield made
    made.close()


@pytest.fixture
def guidance(model: Model, compiler: Compiler) -> Guidance:
    return Guidance(compiler, model.vocabulary, named("hermes"), None)


def request(choice: ToolChoice, *tools: Tool, constraint: Constraint | None = None) -> Prepare:
    prompt = ChatPrompt((Message("user", "Hi"),), tools, choice)
    return Prepare(1, "a", prompt, Generation(constraint=constraint))


def takes(model: Model, guidance: Guidance, wanted: Prepare, text: str, *, thinking: bool = False) -> bool:
    """Whether an answer may be `text`, token by token."""
    guide = guidance.guide(wanted, guidance.plan(wanted), thinking=thinking)
    if guide is None:
        return True
    vocabulary = model.vocabulary
    for marker in ("<tool_call>", "</tool_call>", "<think>", "</think>"):
        vocabulary.show(marker)
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=True).tolist()
    while tokens:
        token = tokens.pop(0)
        if guide.active and guide.matcher.deep_copy().try_consume_tokens([token]) == 0:
            return False
        kept = guide.accept(token, vocabulary.piece(token))
        if kept != [token]:
            rest = vocabulary.piece(token).removeprefix(b"".join(map(vocabulary.piece, kept))).decode()
            tokens = vocabulary.tokenize(rest, add_special=False, parse_special=True).tolist() + tokens
    return guide.may_end if not guide.active else guide.matcher.is_accepting()


REQUIRED = ToolChoice("required")


def test_thoughts_that_the_prompt_began_end_before_a_forced_call(model: Model, compiler: Compiler) -> None:
    guidance = Guidance(compiler, model.vocabulary, named("kimi-k3"), reasoning.named("kimi-k3"))
    wanted = request(REQUIRED, CLOCK)
    call = '<|open|>tools<|sep|><|open|>call tool="now" index="1"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
    assert takes(model, guidance, wanted, f"Hm.<|close|>think<|sep|>{call}", thinking=True)
    assert not takes(model, guidance, wanted, "Hm.<|close|>think<|sep|>Hello", thinking=True)
    assert takes(model, guidance, wanted, call)


def test_an_answer_begins_with_its_marker_unless_the_prompt_has_written_it(model: Model, compiler: Compiler) -> None:
    thoughts = reasoning.named("kimi-k3")
    guidance = Guidance(compiler, model.vocabulary, named("kimi-k3"), thoughts)
    wanted = request(ToolChoice(), constraint=Constraint("json_schema", '{"type":"boolean"}', param="response_format"))
    assert takes(model, guidance, wanted, f"Hm.{thoughts.end}{thoughts.answer}true", thinking=True)
    assert not takes(model, guidance, wanted, f"Hm.{thoughts.end}{thoughts.answer}Hello", thinking=True)
    assert reasoning.ended(thoughts, f"<|close|>message<|sep|>{thoughts.answer}")
    guide = guidance.guide(wanted, guidance.plan(wanted), thinking=False, answering=True)
    assert guide is not None and guide.active


def test_forced_calls(model: Model, guidance: Guidance) -> None:
    wanted = request(REQUIRED, WEATHER, CLOCK)
    assert takes(model, guidance, wanted, CALL)
    assert takes(model, guidance, wanted, f"{CALL}\n{CALL}")
    for text in ("Hello", f"Hello {CALL}", NOT_A_CALL, CALL.replace("weather", "other"), CALL[:-1]):
        assert not takes(model, guidance, wanted, text)
    assert not takes(model, guidance, request(ToolChoice("required", parallel=False), WEATHER), f"{CALL}\n{CALL}")


def test_named_and_allowed_functions(model: Model, guidance: Guidance) -> None:
    now = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for names, text, allowed in [(("now",), now, True), (("now",), CALL, False), (("now", "weather"), CALL, True)]:
        assert takes(model, guidance, request(ToolChoice("required", names), WEATHER, CLOCK), text) == allowed
    auto = request(ToolChoice("auto", ("now",)), WEATHER, CLOCK)
    assert takes(model, guidance, auto, f"Hello {now}") and not takes(model, guidance, auto, f"Hello {CALL}")


def test_calls_in_free_text(model: Model, guidance: Guidance) -> None:
    wanted = request(ToolChoice(), WEATHER)
    for text in ("Hello", CALL, f"Let me see.\n{CALL}", f"{CALL}\n{CALL}", f"{CALL} And now: {CALL} Done."):
        assert takes(model, guidance, wanted, text)
    for text in (NOT_A_CALL, f"Hello {NOT_A_CALL}", f"{CALL} {NOT_A_CALL}", "<tool_call>no"):
        assert not takes(model, guidance, wanted, text)


def test_calls_or_an_answer_of_a_shape(model: Model, guidance: Guidance) -> None:
    wanted = request(ToolChoice(), WEATHER, constraint=Constraint("regex", "yes|no"))
    assert takes(model, guidance, wanted, CALL) and takes(model, guidance, wanted, "yes")
    assert not takes(model, guidance, wanted, "maybe")
    forced = request(REQUIRED, WEATHER, constraint=Constraint("regex", "yes|no"))
    assert takes(model, guidance, forced, CALL) and not takes(model, guidance, forced, "yes")


def test_forced_calls_follow_thoughts(model: Model, compiler: Compiler) -> None:
    guidance = Guidance(compiler, model.vocabulary, named("hermes"), reasoning.named("think"))
    wanted = request(REQUIRED, WEATHER)
    assert takes(model, guidance, wanted, f"Hm, {NOT_A_CALL}.</think>{CALL}", thinking=True)
    assert not takes(model, guidance, wanted, "Hm.</think>Hello", thinking=True)
    assert takes(model, guidance, wanted, CALL)


def test_a_prompt_that_ended_the_thoughts_leaves_none(model: Model, compiler: Compiler) -> None:
    row = msgspec.structs.replace(reasoning.named("think"), begin="<|im_start|>")
    guidance = Guidance(compiler, model.vocabulary, named("hermes"), row)
    wanted = request(ToolChoice("none"), constraint=Constraint("regex", "yes|no"))
    begin = model.vocabulary.tokenize("<|im_start|>", add_special=False, parse_special=True).tolist()
    for answering, opening in ((False, begin[0]), (True, None)):
        guide = guidance.guide(wanted, guidance.plan(wanted), thinking=False, answering=answering)
        assert guide is not None and guide.active and guide.opening == opening


def test_strict_functions_and_others(model: Model, guidance: Guidance) -> None:
    loose = Tool("weather", "", json.dumps(UNKNOWN).encode())
    assert takes(model, guidance, request(REQUIRED, loose), NOT_A_CALL.replace('{"city": "Oslo"}', '{"at": "nowhere"}'))
    strict = Tool("weather", "", json.dumps(UNKNOWN).encode(), strict=True)
    for choice in (REQUIRED, ToolChoice()):
        with pytest.raises(Refusal) as caught:
            guidance.plan(request(choice, CLOCK, strict))
        assert caught.value.param == "tools[1].function.parameters"


def test_what_is_not_held_to_anything(guidance: Guidance) -> None:
    assert guidance.plan(request(ToolChoice())) is None
    assert guidance.plan(Prepare(1, "a", TextPrompt("Hi"))) is None


def test_too_many_schemas_together_are_left_to_the_model(model: Model, guidance: Guidance) -> None:
    def tool(number: int, **more: Any) -> Tool:
        words = [f"word number {number} {index}" for index in range(200)]
        schema = {"type": "object", "properties": {"a": {"enum": words}}}
        return Tool(f"f{number}", "", json.dumps(schema).encode(), **more)

    tools = [tool(number) for number in range(64)]
    forced = request(REQUIRED, *tools)
    assert takes(model, guidance, forced, '<tool_call>\n{"name": "f7", "arguments": {"a": "other"}}\n</tool_call>')
    assert not takes(model, guidance, forced, "Hello")


def test_plans_are_kept_but_not_for_ever(guidance: Guidance) -> None:
    first = request(REQUIRED, CLOCK)
    plan = guidance.plan(first)
    assert guidance.plan(first) is plan
    for number in range(PLANS_MAX):
        guidance.plan(request(REQUIRED, Tool(f"f{number}")))
    assert guidance.plan(first) is not plan
