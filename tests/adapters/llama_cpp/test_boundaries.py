"""Where messages end in prompts of templates of several manners."""

from __future__ import annotations

import pytest

from adapters.llama_cpp.boundaries import in_tokens, message_ends
from adapters.llama_cpp.templates import CHATML
from adapters.types import Message, TextPart
from tests.adapters.llama_cpp.test_templates import (
    ASSISTANT,
    CALL,
    GEMMA,
    LLAMA,
    MISTRAL,
    RESULT,
    SYSTEM,
    USER,
    template,
)


def found(source: str, messages: tuple[Message, ...]) -> tuple[str, tuple[int, ...]]:
    chat = template(source)
    text = chat.render(messages)
    return text, message_ends(messages, text, chat.render)


@pytest.mark.parametrize("source", [CHATML, LLAMA, GEMMA])
def test_each_message_ends_with_its_content(source: str) -> None:
    messages = (SYSTEM, USER, ASSISTANT, Message("user", "  More? \n"))
    text, ends = found(source, messages)
    assert sorted(ends) == list(ends)
    for message, end in zip(messages, ends, strict=True):
        assert text[:end].endswith(message.text.strip())


def test_a_message_without_content_ends_with_its_calls() -> None:
    text, ends = found(LLAMA, (USER, CALL, RESULT, Message("user", "")))
    assert [text[:end].rsplit(">", 1)[-1] for end in ends] == ["\n\nHi", "\n\n", "\n\nsunny", "\n\n"]
    assert "Zürich" in text[ends[0] : ends[1]]


def test_a_final_answer_that_is_continued() -> None:
    text, ends = found(CHATML, (USER, ASSISTANT))
    assert ends[1] == len(text)


def test_content_in_parts_ends_with_the_message_after_it() -> None:
    text, ends = found(CHATML, (Message("user", (TextPart("one"),)), ASSISTANT, USER))
    assert ends[0] == ends[1] < ends[2] and text[: ends[1]].endswith("Hello")


def test_a_template_that_moves_messages_does_not_tell() -> None:
    assert found(MISTRAL, (SYSTEM, USER, ASSISTANT, USER))[1] == ()
    assert message_ends((USER,), "another text", template(CHATML).render) == ()


def test_ends_in_tokens() -> None:
    text = "Zürich is far"
    pieces = ["<s>", "Z", "ü", "rich", " is", " far"]
    sizes = [len(piece.encode()) for piece in pieces]
    assert in_tokens([0, 6, 8, 9, 13], text, sizes) == (1, 4, 5, 5, 6)
