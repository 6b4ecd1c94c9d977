"""How long a conversation is, asked of those who have the model's tokeniser: requests and answers of such questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from adapters.dialects import anthropic_messages, bedrock_converse, gemini, openai_responses
from adapters.dialects.client import Style
from adapters.dialects.openai_usage import reported
from adapters.errors import UpstreamInvalid
from adapters.types import ChatRequest

CountDialect = Literal["anthropic_messages", "gemini", "vertex", "bedrock_converse", "openai_responses"]
Fields = dict[str, object]

_ANTHROPIC = ("anthropic_version", "messages", "system", "tools", "tool_choice", "thinking", "output_config")
_VERTEX = ("contents", "systemInstruction", "tools", "generationConfig")
_BEDROCK = ("messages", "system", "toolConfig", "additionalModelRequestFields")
_RESPONSES = ("model", "input", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning")

_encode = msgspec.json.Encoder().encode
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Counting(msgspec.Struct, frozen=True):
    """One way to ask. `question` gives the body for a request and what it would be as one for an answer; `tokens` is
    the field of the answer."""

    render: Callable[[ChatRequest, Style], bytes]
    question: Callable[[str, Mapping[str, msgspec.Raw]], Fields]
    tokens: str

    def ask(self, request: ChatRequest, style: Style) -> bytes:
        """The body of the question. Raises `InvalidRequest` for what the dialect cannot say."""
        return _encode(self.question(request.model, _fields_decoder.decode(self.render(request, style))))

    def read(self, answer: bytes) -> int:
        """The number of tokens."""
        try:
            found = msgspec.json.decode(answer, type=dict[str, msgspec.Raw]).get(self.tokens, msgspec.Raw(b"null"))
            count = msgspec.json.decode(found, type=int)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamInvalid("The provider did not say how many tokens there are.") from None
        return reported(count)


def _only(*names: str) -> Callable[[str, Mapping[str, msgspec.Raw]], Fields]:
    return lambda model, fields: {name: value for name, value in fields.items() if name in names}


def _anthropic(model: str, fields: Mapping[str, msgspec.Raw]) -> Fields:
    return {"model": model, **_only(*_ANTHROPIC)(model, fields)}


def _gemini(model: str, fields: Mapping[str, msgspec.Raw]) -> Fields:
    return {"generateContentRequest": {"model": f"models/{model}", **fields}}


def _bedrock(model: str, fields: Mapping[str, msgspec.Raw]) -> Fields:
    return {"input": {"converse": _only(*_BEDROCK)(model, fields)}}


COUNTINGS: Mapping[CountDialect, Counting] = {
    "anthropic_messages": Counting(anthropic_messages.render_request, _anthropic, "input_tokens"),
    "gemini": Counting(gemini.render_request, _gemini, "totalTokens"),
    "vertex": Counting(gemini.render_request, _only(*_VERTEX), "totalTokens"),
    "bedrock_converse": Counting(bedrock_converse.render_request, _bedrock, "inputTokens"),
    "openai_responses": Counting(openai_responses.render_request, _only(*_RESPONSES), "input_tokens"),
}
