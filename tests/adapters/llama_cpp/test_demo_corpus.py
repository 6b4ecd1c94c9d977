"""The demo model: its corpus repeats itself for a seed and has the form of its chat template; its file is in place."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from random import Random

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapters.llama_cpp import demo
from adapters.llama_cpp.demo import corpus, recall, tables, tasks, toolchat
from adapters.llama_cpp.demo.phrases import phrase
from adapters.llama_cpp.demo.template import CHAT_TEMPLATE, DEFAULT_SYSTEM, TOOLS_CLOSE, TOOLS_OPEN


def text_of(document: corpus.Document) -> str:
    return "".join(piece.text for piece in document)


def templated(**variables: object) -> str:
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE).render(**variables)


def test_a_seed_gives_the_same_text() -> None:
    first, again, other = ([text_of(document) for document in corpus.documents(seed, 200)] for seed in (1, 1, 2))
    assert first == again != other


def test_documents_are_well_formed() -> None:
    for document in corpus.documents(3, 2000):
        text = text_of(document)
        assert any(piece.learn for piece in document)
        assert text.count("<|im_start|>") == text.count("<|im_end|>")
        assert text.count("<tool_call>") == text.count("</tool_call>")
        if text.startswith("<|im_start|>"):
            assert all(piece.text.endswith("<|im_end|>") for piece in document if piece.learn)


def test_chats_have_the_form_of_the_chat_template() -> None:
    turns = recall.memory_turns(Random(5))
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.reply))
    ]
    assert templated(messages=messages) == text_of(corpus.render(DEFAULT_SYSTEM, turns))
    told = [{"role": "system", "content": "Be brief."}, *messages]
    assert templated(messages=told) == text_of(corpus.render("Be brief.", turns))


@pytest.mark.parametrize("arguments", [{"city": "Rome"}, '{"city": "Rome"}'], ids=["object", "text"])
def test_the_template_takes_openai_tool_messages(arguments: object) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    text = templated(
        tools=[tool],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather in Rome?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "18C"},
            {"role": "tool", "tool_call_id": "call_2", "content": "sunny"},
        ],
        add_generation_prompt=True,
    )
    assert text == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM}{TOOLS_OPEN}{json.dumps(tool['function'])}{TOOLS_CLOSE}<|im_end|>\n"
        "<|im_start|>user\nWeather in Rome?<|im_end|>\n"
        f"<|im_start|>assistant\n{toolchat.call_text('get_weather', {'city': 'Rome'})}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n18C\n</tool_response>\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_phrases_choose_and_fill() -> None:
    assert phrase(Random(1), "[a {x}|a {x}]", x="[b|c]") == "a [b|c]"
    with pytest.raises(ValueError, match="outside of brackets"):
        phrase(Random(1), "a|b")


def test_rows_go_on_in_indented_lines() -> None:
    assert tables.rows("a|\n    b\n    c\nd") == ("a|b c", "d")


def test_sums_are_right() -> None:
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    random = Random(7)
    for a, sign, b, result in (tasks.operands(random) for _ in range(1000)):
        assert apply[sign](a, b) == result


def test_the_model_file_is_shipped_and_small() -> None:
    assert demo.MODEL_PATH.read_bytes()[:4] == b"GGUF"
    assert demo.MODEL_PATH.stat().st_size < 8_000_000


def test_only_training_needs_more_than_the_standard_library() -> None:
    folder = Path(demo.__file__).parent
    training = {"learner", "model", "export", "vocabulary"}
    for path in folder.glob("*.py"):
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        foreign = {name for name in names if name.split(".")[0] not in {*sys.stdlib_module_names, "adapters"}}
        assert path.stem in training or not foreign, f"{path.name} imports {foreign}"
