"""What the tokens of a prompt say about its messages, with the demo model's own tokeniser and template."""

from __future__ import annotations

from pathlib import Path

import pytest

import adapters
from adapters.llama_cpp.messages import ChatPrompt, Prepare, TextPrompt
from adapters.llama_cpp.native import Model, quiet
from adapters.llama_cpp.prompts import Prompts, Refusal
from adapters.llama_cpp.templates import CHATML, ChatTemplate
from adapters.llama_cpp.tools import named
from adapters.types import Message, Tool, ToolCall, ToolChoice

MESSAGES = (
    Message("system", "You are a helpful assistant."),
    Message("user", "What is the capital of France?"),
    Message("assistant", "It is Paris. 🗼"),
    Message("user", "And of Italy?"),
)


@pytest.fixture(scope="module", params=["hermes", "generic"])
def prompts(request: pytest.FixtureRequest) -> Prompts:
    quiet()
    tool_format = named(request.param)
    path = Path(adapters.__path__[0]) / "llama_cpp" / "demo" / "demo.gguf"
    vocabulary = Model(path, gpu_layers=0, progress=lambda fraction: None).vocabulary
    return Prompts(vocabulary, ChatTemplate(CHATML, bos_token="", eos_token=""), 2048, tool_format, None)


def test_an_explained_chat_says_where_its_messages_end(prompts: Prompts) -> None:
    prepared = prompts.prepare(Prepare(1, "a", ChatPrompt(MESSAGES, (Tool("weather"),)), explain=True))
    assert len(prepared.message_ends) == len(MESSAGES)
    for end, message in zip(prepared.message_ends, MESSAGES, strict=True):
        assert prompts.text(tuple(prepared.tokens[:end].tolist())).rstrip().endswith(message.text)


def test_the_template_is_told_whether_a_call_is_asked_for(prompts: Prompts) -> None:
    source = "{{ tool_choice }}|" + CHATML
    told = Prompts(prompts._vocabulary, ChatTemplate(source, bos_token="", eos_token=""), 2048, named("hermes"), None)
    for mode in ("auto", "none", "required"):
        assert told.render(ChatPrompt(MESSAGES, (), ToolChoice(mode))).startswith(f"{mode}|")


def test_tools_that_a_template_fails_on_are_told_in_words(prompts: Prompts) -> None:
    source = "{% for tool in tools or [] %}{{ tool.function.parameters.properties.a.type + '' }}{% endfor %}" + CHATML
    told = Prompts(prompts._vocabulary, ChatTemplate(source, bos_token="", eos_token=""), 2048, named("hermes"), None)
    tool = Tool("look", "Looks.", b'{"type":"object","properties":{"a":{"type":["string","null"]}}}')
    assert "Looks." in told.render(ChatPrompt(MESSAGES, (tool,)))
    refusing = source.replace("{% for", "{{ raise_exception('no') if messages|length > 1 }}{% for", 1)
    never = Prompts(
        prompts._vocabulary, ChatTemplate(refusing, bos_token="", eos_token=""), 2048, named("hermes"), None
    )
    with pytest.raises(Refusal, match="refuses these messages: no"):
        never.render(ChatPrompt(MESSAGES, (tool,)))


def test_others_do_not(prompts: Prompts) -> None:
    assert prompts.prepare(Prepare(1, "a", ChatPrompt(MESSAGES))).message_ends == ()
    assert prompts.prepare(Prepare(1, "a", TextPrompt("Hello"), explain=True)).message_ends == ()


def test_what_the_template_leaves_out_is_told_in_words(prompts: Prompts) -> None:
    call = Message("assistant", tool_calls=(ToolCall("call_1", "weather", '{"city": "Paris"}'),))
    result = Message("tool", "sunny", tool_call_id="call_1")
    text = prompts.render(ChatPrompt((*MESSAGES[:2], call, result), (Tool("weather", "How it is outside."),)))
    for told in (
        MESSAGES[0].text,
        "How it is outside.",
        '{"name": "weather", "arguments": {"city": "Paris"}}',
        "sunny",
    ):
        assert told in text
