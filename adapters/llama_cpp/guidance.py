"""What holds an answer to what its request asks for: a constraint, calls of tools, or one of both."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from adapters.llama_cpp.formats.row import ToolFormat
from adapters.llama_cpp.grammar import Compiled, Compiler, Guide
from adapters.llama_cpp.messages import ChatPrompt, Prepare
from adapters.llama_cpp.native import Vocabulary
from adapters.llama_cpp.prompts import Refusal
from adapters.llama_cpp.reasoning import ReasoningFormat
from adapters.llama_cpp.tool_grammar import Start, Word, tool_grammar, trigger_of
from adapters.types import Constraint, Tool, ToolChoice

PLANS_MAX = 32


class Plan(msgspec.Struct, frozen=True):
    """A grammar for an answer; with a `trigger` only for what follows that in it, each time."""

    grammar: Compiled
    trigger: bytes = b""
    anchored: bool = False


class Guidance:
    """Plans and guides for the requests of one model. Safe from any thread."""

    def __init__(
        self, compiler: Compiler, vocabulary: Vocabulary, tool_format: ToolFormat, reasoning: ReasoningFormat | None
    ) -> None:
        self._compiler = compiler
        self._vocabulary = vocabulary
        self._format = tool_format
        self._reasoning = reasoning
        self._lock = threading.Lock()
        self._plans: OrderedDict[bytes, Plan | None] = OrderedDict()

    def plan(self, request: Prepare) -> Plan | None:
        """What a request has to be held to, None where it may write anything.

        Raises Refusal for a constraint or a strict function that cannot be compiled. The arguments of other functions
        are any objects then.
        """
        constraint = request.generation.constraint
        tools = self._callable(request)
        if not tools:
            return None if constraint is None else Plan(self._compiler.compile(constraint))
        assert isinstance(request.prompt, ChatPrompt)
        choice = request.prompt.tool_choice
        # Agents send the same tools again with every turn, and many of them take a while to write down.
        key = sha256(msgspec.msgpack.encode((request.prompt.tools, choice, constraint))).digest()
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = self._plan(tools, choice, constraint)
        with self._lock:
            self._plans[key] = plan
            if len(self._plans) > PLANS_MAX:
                self._plans.popitem(last=False)
        return plan

    def _plan(self, tools: list[tuple[Tool, str]], choice: ToolChoice, constraint: Constraint | None) -> Plan | None:
        if choice.mode == "required":
            return Plan(self._calls(tools, choice.parallel, "answer"))
        if constraint is not None:
            return Plan(self._calls(tools, choice.parallel, "answer", constraint))
        trigger = trigger_of(self._format)
        if not trigger:
            return None
        try:
            calls = self._calls(tools, choice.parallel, "trigger")
        except Refusal:
            if any(tool.strict for tool, _ in tools):
                raise
            return None
        return Plan(calls, trigger.encode(), self._format.anchored)

    def guide(self, request: Prepare, plan: Plan | None, *, thinking: bool, answering: bool = False) -> Guide | None:
        """What holds one choice to its plan, which is about the answer and not the thoughts before, if there can be
        any: `thinking` and `answering` say that the prompt has begun or ended them."""
        reasoning, compiler = self._reasoning, self._compiler
        if plan is None:
            return None
        if plan.trigger:
            return compiler.guide(plan.grammar, after=plan.trigger, again=True, anchored=plan.anchored)
        if reasoning is None or not isinstance(request.prompt, ChatPrompt) or answering:
            return compiler.guide(plan.grammar)
        if reasoning.answer and request.prompt.tools and request.prompt.tool_choice.mode == "required":
            # A forced call stands where the answer would, with a marker of its own.
            return compiler.guide(plan.grammar, after=reasoning.end.encode() if thinking else b"")
        after = (reasoning.answer or reasoning.end).encode()
        if thinking or reasoning.answer:
            return compiler.guide(plan.grammar, after=after)
        opening = compiler.marker(reasoning.begin)
        return compiler.guide(plan.grammar, after=after if opening is not None else b"", opening=opening)

    def _callable(self, request: Prepare) -> list[tuple[Tool, str]]:
        """The tools a request leaves to choose from, each with its place in the request."""
        if not isinstance(request.prompt, ChatPrompt):
            return []
        names = request.prompt.tool_choice.names
        tools = enumerate(request.prompt.tools)
        return [(tool, f"tools[{index}]") for index, tool in tools if not names or tool.name in names]

    def _calls(
        self, tools: list[tuple[Tool, str]], parallel: bool, start: Start, content: Constraint | None = None
    ) -> Compiled:
        typed = frozenset(tool.name for tool, place in tools if self._is_typed(tool, place))
        strict = frozenset(tool.name for tool, _ in tools if tool.strict)
        try:
            return self._compiled(tools, parallel, start, content, typed)
        except Refusal:
            # Schemas that are fine one by one can be too much together.
            if typed <= strict:
                raise
            return self._compiled(tools, parallel, start, content, strict)

    def _compiled(
        self,
        tools: list[tuple[Tool, str]],
        parallel: bool,
        start: Start,
        content: Constraint | None,
        typed: frozenset[str],
    ) -> Compiled:
        lark = tool_grammar(
            self._format,
            [tool for tool, _ in tools],
            self._words,
            parallel=parallel,
            start=start,
            typed=typed,
            content=content is not None,
        )
        return self._compiler.compile(Constraint("lark", lark, param="tools"), content=content)

    def _is_typed(self, tool: Tool, place: str) -> bool:
        """Whether the grammar can hold arguments to the function's schema; one that is strict is refused if not."""
        source = tool.parameters.decode()
        try:
            self._compiler.compile(Constraint("json_schema", source, tool.strict, f"{place}.function.parameters"))
        except Refusal:
            if tool.strict:
                raise
            return False
        return True

    def _words(self, text: str) -> Sequence[Word]:
        """Control tokens in a marker must be named to a grammar, since no text can match them."""
        special = self._compiler.prepare().is_special_token
        words = []
        for token in self._vocabulary.tokenize(text, add_special=False, parse_special=True).tolist():
            shown = self._vocabulary.text(token).decode("utf-8", "replace")
            if special(token) and shown in text:
                before, _, text = text.partition(shown)
                words += [Word(before), Word(shown, token)] if before else [Word(shown, token)]
        return [*words, Word(text)] if text else words
