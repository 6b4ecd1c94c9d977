"""Where the messages of a conversation end in the prompt that it becomes."""

from __future__ import annotations

import itertools
import re
import uuid
from bisect import bisect_left
from collections.abc import Callable, Sequence

import msgspec

from adapters.types import Message


def message_ends(
    messages: tuple[Message, ...], text: str, render: Callable[[tuple[Message, ...]], str]
) -> tuple[int, ...]:
    """Where each message ends in `text`, which `render` gave for the messages; in characters.

    It is rendered once more with marks in it. What a template writes between two messages belongs to the later one, but
    tool calls belong to theirs. Empty where the template does more with contents than show them in their order.
    """
    secret = uuid.uuid4().hex
    marked, owners = _marked(messages, secret)
    pieces = re.split(rf"\[{secret}:(\d+)\]", render(marked))
    if "".join(pieces[::2]) != text or pieces[1::2] != [str(owner) for owner in owners]:
        return ()
    known = dict(zip(owners, itertools.accumulate(map(len, pieces[::2])), strict=False))
    ends = [len(text)] * (len(messages) + 1)
    for index in reversed(range(len(messages))):
        ends[index] = known.get(index, ends[index + 1])
    return tuple(ends[:-1])


def in_tokens(ends: Sequence[int], text: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """How many tokens it takes to each of the `ends`; `sizes` are the bytes of the tokens that `text` became."""
    # A start token that the tokeniser adds, or a space that it begins with, is not in the text.
    before = sum(sizes) - len(text.encode())
    reached = list(itertools.accumulate(sizes))
    return tuple(bisect_left(reached, before + len(text[:end].encode())) + 1 for end in ends)


def _marked(messages: Sequence[Message], secret: str) -> tuple[tuple[Message, ...], list[int]]:
    """The messages with a mark `[secret:index]` wherever a message ends, and which message each mark ends.

    Templates trim contents and ask whether they are empty, so that marks stand inside of the outermost letters.
    """
    marked, owners = [], []
    for index, message in enumerate(messages):
        content = message.content
        if isinstance(content, str) and (core := content.strip()):
            before, after = content.split(core, 1)
            if index and messages[index - 1].tool_calls:
                core = f"[{secret}:{index - 1}]{core}"
                owners.append(index - 1)
            if not message.tool_calls:
                core += f"[{secret}:{index}]"
                owners.append(index)
            content = before + core + after
        marked.append(msgspec.structs.replace(message, content=content))
    return tuple(marked), owners
