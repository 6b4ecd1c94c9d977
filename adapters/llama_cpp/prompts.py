"""From what a client sent to checked token ids: rendering, tokenising, fill-in-the-middle, bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec
import numpy as np
from msgspec.structs import replace

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.boundaries import in_tokens, message_ends
from adapters.llama_cpp.formats.row import ToolFormat
from adapters.llama_cpp.images import Shown, Sight, Span, marked, shown, split
from adapters.llama_cpp.kept import common_prefix
from adapters.llama_cpp.messages import ChatPrompt, Prepare, Prompt, TextPrompt
from adapters.llama_cpp.native import TOKEN_NULL, Vocabulary
from adapters.llama_cpp.reasoning import ReasoningFormat, begun, ended
from adapters.llama_cpp.teaching import spell, teach
from adapters.llama_cpp.templates import ChatTemplate, Switches, TemplateError
from adapters.llama_cpp.tools import GENERIC
from adapters.types import Message, Tool


class Refusal(Exception):
    """The request cannot be served, and why; becomes a `Refused` report."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Prepared(msgspec.Struct, frozen=True):
    """A prompt that fits: its tokens, the most that may be generated after it, the text to echo, whether it has begun
    the model's thoughts, where in the tokens the messages of an explained chat end, whether it has ended the thoughts,
    so that the answer comes next, and where its images are."""

    tokens: Int32s
    max_tokens: int
    echo: str | None
    thinking: bool = False
    message_ends: tuple[int, ...] = ()
    answering: bool = False
    spans: tuple[Span, ...] = ()


def _bad_image(image: Shown, reason: str) -> Refusal:
    return Refusal("invalid_value", f"Invalid value for '{image.param}': {reason}.", image.param)


class Prompts:
    """Turns prompts into tokens for one model. Safe from any thread."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        context_tokens: int,
        tool_format: ToolFormat,
        reasoning: ReasoningFormat | None,
        rerank_template: str = "",
        sight: Sight | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._sight = sight
        self._template = template
        self._context_tokens = context_tokens
        self._rerank_template = rerank_template
        self._tool_format = tool_format
        self._reasoning = reasoning

    def prepare(self, request: Prepare) -> Prepared:
        """Raises Refusal when the request cannot be generated from."""
        self._check_bias(request)
        chat = request.prompt if isinstance(request.prompt, ChatPrompt) else None
        images = shown(chat.messages) if chat is not None else []
        text = self.render(chat, images) if chat is not None else ""
        spans: tuple[Span, ...] = ()
        if chat is not None:
            tokens, spans = self._chat_tokens(text, images, request.tenant)
        else:
            tokens = self.tokens(request.prompt)
        reasoning = self._reasoning if chat is not None else None
        thinking = reasoning is not None and begun(reasoning, text)
        answering = reasoning is not None and ended(reasoning, text)
        param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
        if not len(tokens):
            # A model needs one token to continue from: its start token, or the end of the text before.
            vocabulary = self._vocabulary
            start = vocabulary.bos if vocabulary.bos != TOKEN_NULL else vocabulary.eos
            if start == TOKEN_NULL:
                raise Refusal("invalid_value", "The prompt is empty and this model has no start token.", param)
            tokens = np.array([start], np.int32)
        room = self._context_tokens - len(tokens)
        wanted = request.generation.max_tokens
        if room < (1 if wanted != 0 else 0):
            raise Refusal(
                "context_length_exceeded",
                f"This model's maximum context length is {self._context_tokens} tokens. However, your {param} "
                f"resulted in {len(tokens)} tokens. Please reduce the length of the {param}.",
                param,
            )
        max_tokens = room if wanted is None else min(wanted, room)
        echo = self._echo(request, tokens) if request.echo else None
        ends = self._message_ends(chat, text, tokens) if chat is not None and request.explain and not images else ()
        return Prepared(tokens, max_tokens, echo, thinking, ends, answering, spans)

    def tokens(self, prompt: Prompt, *, special: bool = True) -> Int32s:
        """The token ids of a prompt, shape (n,); negative numbers stand for images."""
        vocabulary = self._vocabulary
        if isinstance(prompt, ChatPrompt):
            images = shown(prompt.messages)
            return self._chat_tokens(self.render(prompt, images), images, "")[0]
        if isinstance(prompt, TextPrompt):
            if prompt.suffix is not None:
                return self._fill_in(prompt.text, prompt.suffix)
            return vocabulary.tokenize(prompt.text, add_special=special, parse_special=prompt.special)
        outside = next((token for token in prompt.tokens if not 0 <= token < vocabulary.size), None)
        if outside is not None:
            raise Refusal("invalid_value", f"Token {outside} is not in the vocabulary of {vocabulary.size}.", "prompt")
        return np.array(prompt.tokens, np.int32)

    def _chat_tokens(self, text: str, images: list[Shown], tenant: str) -> tuple[Int32s, tuple[Span, ...]]:
        """The tokens of a rendered conversation. Texts around images are tokenised one by one, as llama.cpp does."""
        vocabulary, spans = self._vocabulary, list[Span]()
        if not images:
            return vocabulary.tokenize(text, add_special=True, parse_special=True), ()
        if self._sight is None:
            raise _bad_image(images[0], "this model does not take images")
        texts = split(text, images)
        if texts is None:
            raise _bad_image(images[0], "the model's chat template does not keep images in their place")
        runs = [np.array([vocabulary.bos] if vocabulary.adds_bos else [], np.int32)]
        runs.append(vocabulary.tokenize(texts[0], add_special=False, parse_special=True))
        for image, after in zip(images, texts[1:], strict=True):
            try:
                tokens, found = self._sight.read(image.part.data, tenant, sum(map(len, runs)))
            except ValueError as error:
                raise _bad_image(image, str(error)) from error
            spans += found
            runs += [tokens, vocabulary.tokenize(after, add_special=False, parse_special=True)]
        return np.concatenate(runs), tuple(spans)

    def beginning(self, prompt: ChatPrompt | TextPrompt) -> Int32s:
        """The tokens that all prompts have in common which begin with this one, and no more; shape (n,)."""
        ends = ("1", "A user")
        if isinstance(prompt, TextPrompt):
            longer: list[Prompt] = [TextPrompt(prompt.text + end, special=prompt.special) for end in ends]
        else:
            longer = [ChatPrompt((*prompt.messages, Message("user", end)), prompt.tools) for end in ends]
        first, second = map(self.tokens, longer)
        common = first[: common_prefix(first, second)]
        if len(common) >= self._context_tokens:
            raise Refusal("context_length_exceeded", f"A public prefix of {len(common)} tokens leaves no room.")
        return common

    def show(self, prompt: ChatPrompt) -> str:
        """The prompt text of a conversation for people, with `<image>` in the place of each image."""
        images = shown(prompt.messages)
        text = self.render(prompt, images)
        for image in images:
            text = text.replace(image.marker, "<image>")
        return text

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], switches: Switches) -> str:
        """Some templates spell schemas out and fail on one that they do not know, such as a type that may be null; its
        tools are then explained in words too."""
        try:
            return self._template.render(tuple(messages), tuple(tools), switches)
        except TemplateError:
            if not tools:
                raise
            with suppress(TemplateError):
                return self._template.render(teach(messages, tools, self._tool_format), (), switches)
            raise

    def render(self, prompt: ChatPrompt, images: Sequence[Shown] = ()) -> str:
        """The prompt text of a conversation with the markers of its `images`, without the start token that the
        tokeniser adds itself."""
        messages = marked(prompt.messages, images) if images else prompt.messages
        row, tools = self._tool_format, prompt.tools
        if row is GENERIC or not self._template.shows_calls:
            messages = spell(messages, row)
        if row is GENERIC or not self._template.shows_tools:
            messages, tools = teach(messages, tools, row), ()
        switches = {**prompt.arguments, "tool_choice": prompt.tool_choice.mode}
        try:
            text = self._render(messages, tools, switches)
        except TemplateError as error:
            raise Refusal(error.code, error.message, error.param or "messages") from error
        if self._vocabulary.adds_bos:
            text = text.removeprefix(self._vocabulary.text(self._vocabulary.bos).decode())
        return text

    def _message_ends(self, chat: ChatPrompt, text: str, tokens: Int32s) -> tuple[int, ...]:
        """How many of the tokens it takes to the end of each message."""
        try:
            ends = message_ends(chat.messages, text, lambda messages: self.render(replace(chat, messages=messages)))
        except Refusal:
            # The marks were too much for the template; the request itself is none the worse for it.
            return ()
        return in_tokens(ends, text, [len(self._vocabulary.text(token)) for token in tokens.tolist()])

    def text(self, tokens: tuple[int, ...]) -> str:
        """The text that tokens stand for, control tokens spelt out."""
        outside = next((token for token in tokens if not 0 <= token < self._vocabulary.size), None)
        if outside is not None:
            raise Refusal("invalid_value", f"Token {outside} is not in the vocabulary.", "tokens")
        pieces = {token: self._vocabulary.text(token) for token in set(tokens)}
        return b"".join(map(pieces.__getitem__, tokens)).decode("utf-8", "replace")

    def pairs(self, query: str, documents: Iterable[str]) -> list[Int32s]:
        """Each document with the query as a reranker wants to see them: in its own template, or else between the
        marks that its tokeniser puts around two texts. BERT's closes the second one too: [CLS] a [SEP] b [SEP]."""
        if self._rerank_template:
            return [self._filled(query, document) for document in documents]
        vocabulary = self._vocabulary
        first = [vocabulary.bos] * vocabulary.adds_bos
        between = [vocabulary.eos] * vocabulary.adds_eos + [vocabulary.sep] * vocabulary.adds_sep
        last = between[:1]
        asked = vocabulary.tokenize(query, add_special=False, parse_special=False).tolist()
        texts = [vocabulary.tokenize(one, add_special=False, parse_special=False).tolist() for one in documents]
        return [np.array([*first, *asked, *between, *text, *last], np.int32) for text in texts]

    def _filled(self, query: str, document: str) -> Int32s:
        values = {"{query}": query, "{document}": document}
        text = re.sub(r"\{query\}|\{document\}", lambda found: values[found[0]], self._rerank_template)
        return self._vocabulary.tokenize(text, add_special=False, parse_special=True)

    def _fill_in(self, prefix: str, suffix: str) -> Int32s:
        before, after, middle = self._vocabulary.fim
        if TOKEN_NULL in (before, after, middle):
            raise Refusal(
                "invalid_value", "This model has no fill-in-the-middle tokens, so it takes no suffix.", "suffix"
            )
        parts = [
            np.array([before], np.int32),
            self._vocabulary.tokenize(prefix, add_special=False, parse_special=False),
            np.array([after], np.int32),
            self._vocabulary.tokenize(suffix, add_special=False, parse_special=False),
            np.array([middle], np.int32),
        ]
        if self._vocabulary.adds_bos:
            parts.insert(0, np.array([self._vocabulary.bos], np.int32))
        return np.concatenate(parts)

    def _echo(self, request: Prepare, tokens: Int32s) -> str:
        if isinstance(request.prompt, TextPrompt):
            return request.prompt.text
        return self.text(tuple(tokens.tolist()))

    def _check_bias(self, request: Prepare) -> None:
        for token in request.generation.sampling.logit_bias:
            if not 0 <= token < self._vocabulary.size:
                raise Refusal(
                    "invalid_value", f"Token {token} is not in the vocabulary of {self._vocabulary.size}.", "logit_bias"
                )
