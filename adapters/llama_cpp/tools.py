"""The formats that families of models write tool calls in: one table, from which calls are parsed and constrained."""

from __future__ import annotations

from typing import Literal

import msgspec

from adapters.llama_cpp.formats.literals import PYTHON, Style
from adapters.llama_cpp.formats.tagged import Tags

NUMBER = "{n}"
"""Stands in `middle` and `prefix` for the position of the call, counted from 0."""


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models writes calls: `open`, then for each `begin`, the call, `end`, with `between` in between,
    then `close`. Spaces around the markers count when a call is written, not when it is read.

    The call is, by `body`: an `object` with a name and arguments under the two keys; a name, `middle`, and arguments as
    `json` or between `tags`; or `code` in a style. `middle_end` is how `middle` ends however it begins. A chat template
    that holds all of `marks` and none of `unless`, or one of `also`, teaches this format.

    `trigger` is what begins calls in a text, `triggers` are other beginnings that are understood, after which a call
    follows at once; with `anchored` these count at the start of an answer only. `primed` is how far the prompt has
    already begun a call. `skips` frame text and are not shown, nor are `opening_skips` at the start of an answer.
    """

    name: str
    marks: tuple[str, ...]
    unless: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    body: Literal["object", "json", "tagged", "code"]
    open: str = ""
    begin: str = ""
    middle: str = ""
    middle_end: str = ""
    end: str = ""
    between: str = ""
    close: str = ""
    trigger: str
    triggers: tuple[str, ...] = ()
    anchored: bool = False
    primed: str = ""
    single: bool = False
    prefix: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    tags: Tags | None = None
    style: Style | None = None
    skips: tuple[str, ...] = ()
    opening_skips: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Whatever this format writes around calls and text, so that control tokens among it can be shown."""
        tags = self.tags
        around = (self.open, self.begin, self.middle, self.end, self.between, self.close, self.trigger, self.primed)
        parts = (tags.begin, tags.middle, tags.end) if tags else ()
        quotes = self.style.quotes if self.style else ()
        return tuple(text for text in (*around, *self.triggers, *self.skips, *parts, *quotes) if text.strip())


FORMATS = (
    ToolFormat(
        name="harmony",
        marks=("<|channel|>", "<|message|>"),
        body="json",
        begin="<|channel|>commentary to=functions.",
        middle=" <|constrain|>json<|message|>",
        middle_end="<|message|>",
        end="<|call|>",
        trigger="<|channel|>commentary to=functions.",
        triggers=("<|channel|>analysis to=functions.", " to=functions."),
        single=True,
        skips=(
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>final <|constrain|>json<|message|>",
            "<|channel|>commentary<|message|>",
            "<|channel|>commentary to=assistant",
            "<|end|>",
            "<|return|>",
        ),
    ),
    ToolFormat(
        name="deepseek-v3.2",
        marks=("DSML", "function_calls"),
        body="tagged",
        open="<｜DSML｜function_calls>\n",
        begin='<｜DSML｜invoke name="',
        middle='">\n',
        end="</｜DSML｜invoke>",
        between="\n",
        close="\n</｜DSML｜function_calls>",
        trigger="<｜DSML｜function_calls>",
        tags=Tags('<｜DSML｜parameter name="', '" string="{string}">', "</｜DSML｜parameter>\n"),
    ),
    ToolFormat(
        name="deepseek-v4",
        marks=("DSML", "tool_calls"),
        body="tagged",
        open="<｜DSML｜tool_calls>\n",
        begin='<｜DSML｜invoke name="',
        middle='">\n',
        end="</｜DSML｜invoke>",
        between="\n",
        close="\n</｜DSML｜tool_calls>",
        trigger="<｜DSML｜tool_calls>",
        tags=Tags('<｜DSML｜parameter name="', '" string="{string}">', "</｜DSML｜parameter>\n"),
    ),
    ToolFormat(
        name="deepseek-v3",
        marks=("<｜tool▁calls▁begin｜>", "```json"),
        body="json",
        open="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        middle="\n```json\n",
        end="\n```<｜tool▁call▁end｜>",
        between="\n",
        close="<｜tool▁calls▁end｜>",
        trigger="<｜tool▁calls▁begin｜>",
    ),
    ToolFormat(
        name="deepseek-v3.1",
        marks=("<｜tool▁calls▁begin｜>",),
        body="json",
        open="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁call▁begin｜>",
        middle="<｜tool▁sep｜>",
        end="<｜tool▁call▁end｜>",
        close="<｜tool▁calls▁end｜>",
        trigger="<｜tool▁calls▁begin｜>",
    ),
    ToolFormat(
        name="kimi-k2",
        marks=("<|tool_calls_section_begin|>",),
        body="json",
        open="<|tool_calls_section_begin|>",
        begin="<|tool_call_begin|>functions.",
        middle=":{n}<|tool_call_argument_begin|>",
        middle_end="<|tool_call_argument_begin|>",
        end="<|tool_call_end|>",
        close="<|tool_calls_section_end|>",
        trigger="<|tool_calls_section_begin|>",
        triggers=("<|tool_call_begin|>functions.",),
    ),
    ToolFormat(
        name="glm",
        marks=("<arg_key>", "<tool_call>"),
        body="tagged",
        begin="<tool_call>",
        middle="\n",
        end="</tool_call>",
        between="\n",
        trigger="<tool_call>",
        tags=Tags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    ),
    ToolFormat(
        name="minimax-m2",
        marks=("minimax:tool_call", "<invoke"),
        body="tagged",
        open="<minimax:tool_call>\n",
        begin='<invoke name="',
        middle='">\n',
        end="</invoke>",
        between="\n",
        close="\n</minimax:tool_call>",
        trigger="<minimax:tool_call>",
        tags=Tags('<parameter name="', '">', "</parameter>\n"),
    ),
    ToolFormat(
        name="seed-oss",
        marks=("seed:tool_call", "<function="),
        body="tagged",
        begin="<seed:tool_call>\n<function=",
        middle=">\n",
        end="</function>\n</seed:tool_call>",
        between="\n",
        trigger="<seed:tool_call>",
        tags=Tags("<parameter=", ">", "</parameter>\n"),
    ),
    ToolFormat(
        name="qwen3-coder",
        marks=("<tool_call>", "<function="),
        body="tagged",
        begin="<tool_call>\n<function=",
        middle=">\n",
        end="</function>\n</tool_call>",
        between="\n",
        trigger="<tool_call>",
        triggers=("<function=",),
        tags=Tags("<parameter=", ">\n", "\n</parameter>\n"),
    ),
    ToolFormat(
        name="minicpm",
        marks=('<function name="', '<param name="'),
        body="tagged",
        begin='<function name="',
        middle='">',
        end="</function>",
        between="\n",
        trigger='<function name="',
        tags=Tags('<param name="', '">', "</param>", ("<![CDATA[", "]]>")),
    ),
    ToolFormat(
        name="gemma-4",
        marks=("<|tool_call>", "call:"),
        body="code",
        begin="<|tool_call>call:",
        end="<tool_call|>",
        trigger="<|tool_call>",
        style=Style("{", "}", ":", ('<|"|>',)),
        skips=("<channel|>",),
    ),
    ToolFormat(
        name="function-gemma",
        marks=("<start_function_call>",),
        body="code",
        begin="<start_function_call>call:",
        end="<end_function_call>",
        trigger="<start_function_call>",
        style=Style("{", "}", ":", ("<escape>",)),
    ),
    ToolFormat(
        name="gemma-code",
        marks=("<start_of_turn>", "```tool_code"),
        body="code",
        open="```tool_code\n",
        between="\n",
        close="\n```",
        trigger="```tool_code",
        style=PYTHON,
    ),
    ToolFormat(
        name="phi-4",
        marks=("<|tool|>", "<|/tool|>"),
        body="object",
        open="<|tool_call|>[",
        between=", ",
        close="]<|/tool_call|>",
        trigger="<|tool_call|>",
        triggers=("functools",),
    ),
    ToolFormat(
        name="granite-3",
        marks=("<|tool_call|>",),
        body="object",
        open="<|tool_call|>[",
        between=", ",
        close="]",
        trigger="<|tool_call|>",
        triggers=("<tool_call>",),
        skips=("<response>", "</response>"),
    ),
    ToolFormat(
        name="mistral",
        marks=("[TOOL_CALLS]", "[ARGS]"),
        body="json",
        begin="[TOOL_CALLS]",
        middle="[ARGS]",
        trigger="[TOOL_CALLS]",
    ),
    ToolFormat(
        name="mistral-list",
        marks=("[TOOL_CALLS]",),
        body="object",
        open="[TOOL_CALLS][",
        between=", ",
        close="]",
        trigger="[TOOL_CALLS]",
    ),
    ToolFormat(
        name="command-r7b",
        marks=("<|START_ACTION|>",),
        body="object",
        open="<|START_ACTION|>[\n    ",
        prefix='"tool_call_id": "{n}", ',
        between=",\n    ",
        close="\n]<|END_ACTION|>",
        trigger="<|START_ACTION|>",
        name_key="tool_name",
        arguments_key="parameters",
        skips=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    ToolFormat(
        name="command-r",
        marks=("Action:", "directly"),
        body="object",
        open="Action:\n```json\n[\n    ",
        between=",\n    ",
        close="\n]```",
        trigger="Action:\n```json",
        triggers=("Action: ```json", "Action:```json"),
        name_key="tool_name",
        arguments_key="parameters",
    ),
    ToolFormat(
        name="apertus",
        marks=("<|tools_prefix|>",),
        body="json",
        open="<|tools_prefix|>[",
        begin='{"',
        middle='": ',
        end="}",
        between=", ",
        close="]<|tools_suffix|>",
        trigger="<|tools_prefix|>",
    ),
    ToolFormat(
        name="gigachat-3.1",
        marks=("<|function_call|>",),
        body="object",
        begin="<|function_call|>",
        trigger="<|function_call|>",
        single=True,
    ),
    ToolFormat(
        name="gigachat-3",
        marks=("<|role_sep|>", "<|message_sep|>", "function call"),
        body="object",
        begin="<|message_sep|>\n\nfunction call<|role_sep|>\n",
        trigger="<|message_sep|>\n\nfunction call<|role_sep|>",
        single=True,
    ),
    ToolFormat(
        name="functionary-v3.2",
        marks=(">>>all", ">>>"),
        body="json",
        begin=">>>",
        middle="\n",
        trigger=">>>",
        triggers=("",),
        primed=">>>",
        skips=(">>>all\n",),
        opening_skips=("all\n",),
    ),
    ToolFormat(
        name="functionary-v3.1",
        marks=("<function=", "</function>"),
        unless=("<parameter=",),
        body="json",
        begin="<function=",
        middle=">",
        end="</function>",
        trigger="<function=",
    ),
    ToolFormat(
        name="lfm2",
        marks=("<|tool_list_start|>",),
        also=("<|tool_call_start|>", "List of tools: ["),
        body="code",
        open="<|tool_call_start|>[",
        between=", ",
        close="]<|tool_call_end|>",
        trigger="<|tool_call_start|>",
        style=PYTHON,
    ),
    ToolFormat(
        name="firefunction",
        marks=("functools[",),
        body="object",
        open=" functools[",
        between=", ",
        close="]",
        trigger="functools",
    ),
    ToolFormat(
        name="nemotron",
        marks=("<TOOLCALL>",),
        body="object",
        open="<TOOLCALL>[",
        between=", ",
        close="]</TOOLCALL>",
        trigger="<TOOLCALL>",
    ),
    ToolFormat(
        name="tool-calls-list",
        marks=("<tool_calls>[",),
        body="object",
        open="<tool_calls>[",
        between=", ",
        close="]</tool_calls>",
        trigger="<tool_calls>",
    ),
    ToolFormat(
        name="minimax-m1",
        marks=("<tool_calls>", "</tool_calls>"),
        body="object",
        open="<tool_calls>\n",
        between="\n",
        close="\n</tool_calls>",
        trigger="<tool_calls>",
    ),
    ToolFormat(
        name="hermes",
        marks=("<tool_call>", "</tool_call>"),
        # Others write other things between the same tags.
        unless=("<invoke", "<|tool_call"),
        body="object",
        begin="<tool_call>\n",
        end="\n</tool_call>",
        between="\n",
        trigger="<tool_call>",
    ),
    ToolFormat(
        name="llama-pythonic",
        marks=("func_name1(",),
        body="code",
        open="[",
        between=", ",
        close="]",
        trigger="[",
        triggers=("<|python_start|>", "<|python_tag|>"),
        anchored=True,
        style=PYTHON,
    ),
    ToolFormat(
        name="llama-json",
        marks=("<|start_header_id|>", '"parameters"'),
        body="object",
        between="; ",
        trigger="{",
        triggers=("<|python_tag|>",),
        anchored=True,
        arguments_key="parameters",
    ),
)

GENERIC = ToolFormat(
    name="generic",
    marks=(),
    body="object",
    begin="<tool_call>\n",
    end="\n</tool_call>",
    between="\n",
    trigger="<tool_call>",
)
"""What models are taught by instructions when their template knows no tools."""

NAMES = (*(row.name for row in FORMATS), GENERIC.name)


def sniff(template_source: str) -> str | None:
    """The name of the format that a chat template teaches its model, None if no known one."""
    for row in FORMATS:
        marked = all(mark in template_source for mark in row.marks)
        if marked and not any(mark in template_source for mark in row.unless):
            return row.name
        if any(mark in template_source for mark in row.also):
            return row.name
    return None


def named(name: str) -> ToolFormat:
    """The row of that name."""
    return next(row for row in (*FORMATS, GENERIC) if row.name == name)
