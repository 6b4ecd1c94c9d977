"""What can be said of a request before anything is computed: its tokens, and what its answer is held to. All of it runs
on tokeniser threads."""

from __future__ import annotations

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.loading import Loaded
from adapters.llama_cpp.lora import UnknownLora
from adapters.llama_cpp.messages import (
    ChatPrompt,
    Detokenize,
    Embed,
    Inspect,
    Inspected,
    Prepare,
    Prepared,
    Rerank,
    TextPrompt,
    TokenPrompt,
)
from adapters.llama_cpp.prompts import Refusal
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.thoughts import Thoughts


class Preparation:
    """Prepares requests for one model. Its methods raise Refusal."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._thoughts_end: list[int] = []
        if loaded.reasoning is not None:
            ended_by = loaded.reasoning.ended_by
            ending = loaded.vocabulary.tokenize(ended_by, add_special=False, parse_special=True)
            self._thoughts_end = ending.tolist()

    def sequences(self, command: Prepare) -> tuple[list[Sequence], Prepared]:
        """The choices of a request, and what the gateway is told of it."""
        loaded = self._loaded
        try:
            adapters = loaded.loras.chosen(command.generation.loras)
        except UnknownLora as error:
            raise Refusal("invalid_value", str(error), "lora") from None
        prompt = loaded.prompts.prepare(command)
        plan = loaded.guidance.plan(command)
        sequences = [
            Sequence(
                command.id,
                choice,
                prompt.tokens,
                command.generation,
                tenant=command.tenant,
                session_key=command.session_key,
                max_tokens=prompt.max_tokens,
                pieces=loaded.vocabulary,
                echo=prompt.echo,
                recommended=loaded.recommended,
                adapters=adapters,
                thoughts=self._thoughts(command, prompt.thinking),
                guide=loaded.guidance.guide(command, plan, thinking=prompt.thinking, answering=prompt.answering),
                explain=command.explain,
                spans=prompt.spans,
            )
            for choice in range(command.generation.n)
        ]
        told = Prepared(command.id, len(prompt.tokens), prompt.max_tokens, prompt.thinking, prompt.message_ends)
        return sequences, told

    def _thoughts(self, command: Prepare, thinking: bool) -> Thoughts | None:
        """What follows the thoughts of one choice of a conversation, for a model that has any."""
        reasoning = self._loaded.reasoning
        if reasoning is None or not isinstance(command.prompt, ChatPrompt):
            return None
        most = command.generation.reasoning_tokens_max
        return Thoughts(reasoning, self._thoughts_end, thinking=thinking, tokens_max=most)

    def inputs(self, command: Embed | Rerank) -> list[Int32s]:
        """What an embedder computes for a request."""
        prompts = self._loaded.prompts
        if isinstance(command, Rerank):
            pairs = prompts.pairs(command.query, command.documents)
            return self._bounded(pairs, "The query with document", "documents")
        inputs = [
            prompts.tokens(TextPrompt(one, special=False) if isinstance(one, str) else TokenPrompt(one))
            for one in command.inputs
        ]
        return self._bounded(inputs, "Input", "input")

    def _bounded(self, inputs: list[Int32s], noun: str, param: str) -> list[Int32s]:
        limit = self._loaded.info.context_tokens
        for index, tokens in enumerate(inputs):
            if not 0 < len(tokens) <= limit:
                raise Refusal(
                    "context_length_exceeded" if len(tokens) else "invalid_value",
                    f"{noun} {index} has {len(tokens)} tokens; between 1 and {limit} are possible.",
                    param,
                )
        return inputs

    def inspected(self, command: Inspect | Detokenize) -> Inspected:
        """Text as tokens, or tokens as text."""
        prompts = self._loaded.prompts
        if isinstance(command, Detokenize):
            return Inspected(command.id, b"", prompts.text(command.tokens))
        text = prompts.show(command.prompt) if isinstance(command.prompt, ChatPrompt) else ""
        tokens = prompts.tokens(command.prompt, special=command.special)
        return Inspected(command.id, tokens.tobytes(), text)
