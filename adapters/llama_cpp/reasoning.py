"""The markers that families of models think between, chosen from the chat template."""

from __future__ import annotations

import msgspec


class ReasoningFormat(msgspec.Struct, frozen=True):
    """Thoughts stand between `begin` and `end`; with `anywhere` they may come again after other text.

    A chat template that holds one of `marks` belongs to a model that thinks this way. `ended_by` is what is written to
    make a model stop thinking, up to where its answer begins. `answer` is what every answer follows where that is
    more than the end of thoughts.
    """

    name: str
    marks: tuple[str, ...]
    begin: str
    end: str
    ended_by: str
    anywhere: bool = False
    answer: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """What must show in output for thoughts to be recognised."""
        return self.begin, self.end


FORMATS = (
    ReasoningFormat(
        "harmony",
        ("<|channel|>",),
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|end|><|start|>assistant",
        anywhere=True,
        answer="<|channel|>final<|message|>",
    ),
    ReasoningFormat(
        "kimi-k3",
        ("<|end_of_msg|>", "<|open|>think<|sep|>"),
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|close|>think<|sep|>",
        answer="<|open|>response<|sep|>",
    ),
    ReasoningFormat(
        "solar",
        ("<|think|>",),
        "<|think|>",
        "<|end|>",
        "<|end|><|begin|>assistant",
        anywhere=True,
        answer="<|content|>",
    ),
    ReasoningFormat(
        "hy3",
        ("<think{}>", "<think:opensource>"),
        "<think:opensource>",
        "</think:opensource>",
        "</think:opensource>",
    ),
    ReasoningFormat(
        "muse",
        (" to=self<|message|>",),
        " to=self<|message|>",
        "<|eom|>",
        "<|eom|><|start|>assistant",
        anywhere=True,
        answer=" to=user<|message|>",
    ),
    ReasoningFormat("minimax-m3", ("<mm:think>",), "<mm:think>", "</mm:think>", "</mm:think>"),
    ReasoningFormat("gemma", ("<|channel>",), "<|channel>thought", "<channel|>", "<channel|>", anywhere=True),
    ReasoningFormat(
        "command", ("<|START_THINKING|>",), "<|START_THINKING|>", "<|END_THINKING|>", "<|END_THINKING|>", anywhere=True
    ),
    ReasoningFormat("mistral", ("[THINK]",), "[THINK]", "[/THINK]", "[/THINK]"),
    ReasoningFormat("seed", ("<seed:think>", "seed:think"), "<seed:think>", "</seed:think>", "</seed:think>\n"),
    ReasoningFormat("apertus", ("<|inner_prefix|>",), "<|inner_prefix|>", "<|inner_suffix|>", "<|inner_suffix|>"),
    ReasoningFormat(
        "apriel",
        ("[BEGIN FINAL RESPONSE]",),
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        "\n[BEGIN FINAL RESPONSE]\n",
    ),
    ReasoningFormat("think", ("<think>", "</think>"), "<think>", "</think>", "\n</think>\n\n"),
)

NONE = "none"
"""As a setting: thoughts, if there are any, are left in the text."""

NAMES = (*(row.name for row in FORMATS), NONE)


def sniff(template_source: str) -> str | None:
    """The name of the way of thinking that a chat template shows, None if it shows none."""
    return next((row.name for row in FORMATS if any(mark in template_source for mark in row.marks)), None)


def named(name: str) -> ReasoningFormat:
    """The row of that name."""
    return next(row for row in FORMATS if row.name == name)


def begun(row: ReasoningFormat, prompt: str) -> bool:
    """Whether a prompt ends where the model is to think."""
    return prompt.rstrip().endswith(row.begin)


def ended(row: ReasoningFormat, prompt: str) -> bool:
    """Whether a prompt ends where an answer is to begin, as it does where a template closes thoughts before they
    begin."""
    return prompt.rstrip().endswith(row.answer or row.end)
