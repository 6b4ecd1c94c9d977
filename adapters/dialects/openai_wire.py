"""What the OpenAI dialects share: a strict decode, the fields of every generation, usage, frames and the fold."""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, Protocol, TypeVar, cast

import msgspec
from msgspec import Meta

from adapters.choices import WRONG, choices
from adapters.dialects import structured
from adapters.errors import InvalidRequest
from adapters.nesting import too_deep
from adapters.types import (
    CacheDiagnosis,
    ChoiceFinished,
    Event,
    Finished,
    FinishReason,
    Generation,
    Lora,
    ReasoningDelta,
    RefusalDelta,
    Sampling,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

T = TypeVar("T")
RequestT = TypeVar("RequestT")

CHOICES_MAX = 1024
DONE = b"data: [DONE]\n\n"
FRAME_END = b"\n\n"
LOGPROB_MIN = -9999.0

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
SessionKey = Annotated[str, Meta(max_length=512)]
Tokens = Annotated[list[TokenId], Meta(max_length=2**20)]
TextOrTokens = str | Annotated[list[str | TokenId | Tokens], Meta(max_length=2**20)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]

_encode = msgspec.json.Encoder().encode


class Inbound(msgspec.Struct, Generic[RequestT], frozen=True):
    """A parsed request and what the HTTP side must know beside it."""

    request: RequestT
    stream: bool = False
    include_usage: bool = False
    session_key: str | None = None


class ResponseHead(msgspec.Struct, frozen=True):
    """What every chunk of an answer repeats; `created` is in Unix seconds."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class EventRenderer(Protocol):
    """Turns the events of one stream, in order, into ready frames; some events have none (`b""`)."""

    def render(self, event: Event) -> bytes: ...


# Parsing


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class WireLora(msgspec.Struct):
    """As llama-server spells it; a name says more than a place in somebody else's configuration."""

    id: Annotated[int, Meta(ge=0, le=1023)] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    scale: Annotated[float, Meta(ge=-100, le=100)] | None = None


class RequestFields(msgspec.Struct, kw_only=True):
    """What any request may hold. The last four would redirect it, so they must never look as if they had worked."""

    user: str | None = None
    api_base: Any = None
    base_url: Any = None
    api_key: Any = None
    extra_headers: Any = None


class GenerationFields(RequestFields, kw_only=True):
    """What chat and legacy completions share: OpenAI's ranges, and the extra names of vLLM and llama-server."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    lora: Annotated[list[WireLora], Meta(max_length=16)] | None = None
    prompt_cache_key: SessionKey | None = None
    session_id: SessionKey | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    response_format: structured.ResponseFormat | None = None
    structured_outputs: structured.StructuredOutputs | None = None
    grammar: str | None = None
    json_schema: msgspec.Raw = msgspec.field(default_factory=structured.absent)
    guided_json: msgspec.Raw = msgspec.field(default_factory=structured.absent)
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None


NO_TEMPLATES = "the template comes with the model and cannot be replaced"
_REDIRECTING = ("api_base", "base_url", "api_key", "extra_headers")


def decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, path: str = "") -> T:
    """The body, or what stands in it at `path`, as the decoder's type; what is wrong becomes an `InvalidRequest`."""
    try:
        if type(body) is bytes and too_deep(body):  # Its parts were looked at with it.
            raise RecursionError
        if type(body) is not bytes or not body.isascii():
            str(body, "utf-8")  # The decoder skips unknown fields without looking at their bytes.
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        raise explained(str(exc), path, decoder.type) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body of your request is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The JSON body of your request is nested too deeply.", code="invalid_json") from None
    except msgspec.DecodeError as exc:
        message = f"We could not parse the JSON body of your request: {exc}."
        raise InvalidRequest(message, code="invalid_json") from None


_NOUNS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def _noun(types: str) -> str:
    """`int | null`, as msgspec writes it, in words; an optional field is described by what it holds."""
    names = types.split(" | ")
    if len(names) > 1:
        names = [name for name in names if name != "null"]
    return " or ".join(_NOUNS.get(name, name) for name in names)


def explained(complaint: str, path: str = "", kind: Any = Any) -> InvalidRequest:
    """msgspec's "Expected `int`, got `str` - at `$.messages[0].n`" in OpenAI's manner, with the field's path, and for a
    body of a `kind` with what else could be there."""
    detail, _, place = complaint.partition(" - at ")
    inside = place.rpartition("`$")[2].rstrip("`")
    param = (path + inside.replace("[...]", "")).lstrip(".") or None
    missing = re.fullmatch(r"Object missing required field `(\w+)`", detail)
    if missing:
        name = f"{param}.{missing[1]}" if param else missing[1]
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name)
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", detail, re.DOTALL)
    if unknown:
        name = f"{param}.{unknown[1]}" if param else unknown[1]
        return InvalidRequest(f"Unknown parameter: '{name[:100]}'.", code="unknown_parameter", param=name[:100])
    shown = f"'{param}'" if param else "the request body"
    if place.startswith("`key`"):
        shown = f"a key of {shown}"
    wrong = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)`", detail)
    if wrong:
        message = f"Invalid type for {shown}: expected {_noun(wrong[1])}, but got {_noun(wrong[2])} instead."
        return InvalidRequest(message, param=param)
    if detail.startswith(WRONG) and (possible := choices(kind, inside)):
        detail = f"expected one of {', '.join(map(repr, possible))}, but got {detail.removeprefix(WRONG)[:100]} instead"
    bounded = re.sub(r"^Expected `([^`]+)`", lambda match: f"expected {_noun(match[1])}", detail)
    return InvalidRequest(f"Invalid value for {shown}: {bounded}.", param=param)


def refuse_redirects(body: RequestFields) -> None:
    """Refuse fields that some clients' libraries send on to a transport."""
    if body.api_base is body.base_url is body.api_key is body.extra_headers is None:
        return
    for name in _REDIRECTING:
        if getattr(body, name) is not None:
            raise InvalidRequest(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)


def parse_generation(body: GenerationFields, *, max_tokens: int | None, logprobs: int | None) -> Generation:
    """The shared fields in canonical form; `max_tokens` and `logprobs` are spelled differently per dialect."""
    refuse_redirects(body)
    if body.stream_options is not None and not body.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise InvalidRequest(message, param="stream_options")
    stop = body.stop or ()
    return Generation(
        max_tokens=max_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        n=_given(body.n, 1),
        logprobs=logprobs,
        ignore_eos=bool(body.ignore_eos),
        sampling=_sampling(body),
        loras=tuple(_lora(lora, f"lora[{index}]") for index, lora in enumerate(body.lora or [])),
        constraint=structured.parse_constraint(body),
    )


def _lora(lora: WireLora, path: str) -> Lora:
    adapter = lora.id if lora.name is None else lora.name
    if adapter is None or (lora.id is not None and lora.name is not None):
        raise InvalidRequest(f"Invalid value for '{path}': expected either a 'name' or an 'id'.", param=path)
    return Lora(adapter, lora.scale)


def _sampling(body: GenerationFields) -> Sampling:
    """A `top_p` of 0 leaves only the likeliest token, which is what greedy means here."""
    greedy = body.top_p == 0
    return Sampling(
        temperature=0.0 if greedy else body.temperature,
        top_p=None if greedy else body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        seed=body.seed,
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        logit_bias=_given(body.logit_bias, {}),
    )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def inbound(body: GenerationFields, request: RequestT) -> Inbound[RequestT]:
    """`request` with what the body says about its delivery."""
    return Inbound(
        request,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        session_key=body.prompt_cache_key or body.session_id or None,
    )


def parse_texts(given: TextOrTokens, param: str, count_max: int) -> tuple[str | tuple[int, ...], ...]:
    """A text, several texts, token ids or several lists of them, as `prompt` and `input` take them. None is empty."""
    items: list[str | int | list[int]] = [given] if isinstance(given, str) else given
    if items and all(isinstance(item, int) for item in items):
        items = [cast("list[int]", items)]
    texts: list[str | tuple[int, ...]] = []
    for item in items:
        if isinstance(item, int) or type(item) is not type(items[0]):
            message = (
                f"Invalid type for '{param}': expected a string, strings, token ids or lists of token ids, not a mix."
            )
            raise InvalidRequest(message, param=param)
        if not item:
            raise InvalidRequest(f"Invalid value for '{param}': it must not be empty.", param=param)
        texts.append(item if isinstance(item, str) else tuple(item))
    if not 1 <= len(texts) <= count_max:
        message = f"Invalid value for '{param}': expected between 1 and {count_max} items, but got {len(texts)}."
        raise InvalidRequest(message, param=param)
    return tuple(texts)


# Rendering


def quoted(text: str) -> bytes:
    """`text` as JSON on one line."""
    encoded = _encode(text)
    return encoded if text.isascii() else one_line(encoded)


def one_line(encoded: bytes) -> bytes:
    """JSON with Unicode's line ends escaped, as some readers of event streams split lines at them."""
    return (
        encoded.replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
        .replace(b"\xc2\x85", b"\\u0085")
    )


def token_text(raw: bytes) -> str:
    """A token as text; one that is a piece of a character as OpenAI writes it: `bytes:\\xe2\\x82`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def usage_fields(usage: Usage) -> dict[str, object]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": usage.prompt_audio_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.completion_audio_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def gateway_fields(cache: CacheDiagnosis | None) -> dict[str, object]:
    """What is ours and not OpenAI's: the top-level field `gateway`, which is there only when it was asked for."""
    return {} if cache is None else {"gateway": {"cache": cache}}


def head_fields(head: ResponseHead, kind: str) -> dict[str, object]:
    """The fields that open every answer and chunk; `kind` is OpenAI's `object`."""
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.system_fingerprint,
    }


class Chunks:
    """The bytes around the choices of one stream's chunks, encoded once: `before` + a choice + `after`."""

    def __init__(self, head: ResponseHead, kind: str, include_usage: bool) -> None:
        fields = head_fields(head, kind)
        self.before = b"data: " + _encode(fields)[:-1] + b',"choices":['
        self.after = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._fields = fields
        self._include_usage = include_usage

    def after_first(self, cache: CacheDiagnosis | None) -> bytes:
        """What stands in the first chunk in place of `after`: a client that folds the stream keeps its fields."""
        if cache is None:
            return self.after
        fields = one_line(_encode(gateway_fields(cache)))
        return self.after.removesuffix(b"}" + FRAME_END) + b"," + fields[1:] + FRAME_END

    def end(self, usage: Usage) -> bytes:
        """What follows the last choice: the usage, if it was asked for, and the end of the stream."""
        if not self._include_usage:
            return DONE
        last = {**self._fields, "choices": [], "usage": usage_fields(usage)}
        return b"data: " + _encode(last) + FRAME_END + DONE


class FoldedChoice:
    """One choice of an answer that is being folded."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.thoughts: list[ReasoningDelta] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, ToolCall] = {}
        self.refusals: list[str] = []
        self.reason: FinishReason | None = None
        self.malformed_call = False
        self.stop_sequence: str | None = None
        self.detail: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        return "".join(piece.text for piece in self.thoughts)

    @property
    def refusal(self) -> str:
        return "".join(self.refusals)


class Folded:
    """The events of a stream, folded into the state a unary answer is rendered from."""

    def __init__(self, choices: int) -> None:
        self.choices = [FoldedChoice() for _ in range(choices)]
        self.usage = Usage()
        self.cache: CacheDiagnosis | None = None

    def add(self, event: Event) -> None:
        """Take in the next event; the stream's order is the caller's business."""
        match event:
            case TextDelta():
                choice = self.choices[event.choice]
                choice.parts.append(event.text)
                choice.logprobs.extend(event.logprobs)
            case ReasoningDelta():
                self.choices[event.choice].thoughts.append(event)
            case ToolCallDelta():
                calls = self.choices[event.choice].calls
                known = calls.get(event.index, ToolCall("", "", ""))
                calls[event.index] = ToolCall(
                    event.id or known.id,
                    event.name or known.name,
                    known.arguments + event.arguments,
                    event.signature or known.signature,
                )
            case ChoiceFinished():
                choice = self.choices[event.choice]
                choice.reason, choice.malformed_call = event.reason, event.malformed_call
                choice.stop_sequence, choice.detail = event.stop_sequence, event.detail
            case RefusalDelta():
                self.choices[event.choice].refusals.append(event.text)
            case Finished():
                self.usage = event.usage
            case Started():
                self.cache = event.cache
