"""Random requests and streams within what a dialect can say, for tests that nothing of them is lost on the way."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

import msgspec
from hypothesis import strategies as st

from adapters.types import (
    CacheLifetime,
    ChatRequest,
    ChoiceFinished,
    Constraint,
    DocumentPart,
    Effort,
    Event,
    Finished,
    Generation,
    ImagePart,
    ImageUrl,
    Message,
    Part,
    ReasoningDelta,
    RefusalDelta,
    Sampling,
    Started,
    TextDelta,
    TextPart,
    Thinking,
    Thought,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """What a dialect has words for; see each dialect's list of what is lost."""

    model: str
    lifetimes: tuple[CacheLifetime, ...] = ()
    tool_markers: bool = False
    call_markers: bool = False
    media_types: tuple[str, ...] = ("image/png", "image/jpeg", "image/webp")
    image_urls: bool = False
    documents: bool = False
    document_urls: bool = False
    tool_images: bool = False
    tool_errors: bool = False
    result_markers: bool = True
    forbids_calls: bool = True
    prompt_known: bool = True
    forced_thinking: bool = False
    signature: str = ""
    redacted: bool = False
    call_signatures: bool = False
    parallel: bool = False
    strict: bool = False
    narrowed: bool = False
    temperature_max: float = 1.0
    both_filters: bool = False
    top_k: bool = True
    seed: bool = False
    penalties: bool = False
    efforts: tuple[Effort, ...] = ()
    budgets: bool = False
    hides: bool = False
    stops: bool = True
    schema_param: str = ""
    json_object: bool = False
    end_user: bool = False
    choices_max: int = 1
    stop_sequence: bool = False
    details: tuple[ChoiceFinished, ...] = ()
    refusals: bool = False
    cache_writes: bool = False
    long_writes: bool = False
    audio: bool = False
    reasoning_usage: bool = False
    whole_calls: bool = False


texts = st.text(min_size=1, max_size=20)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,12}\Z", fullmatch=True)
ids = st.from_regex(r"[a-zA-Z0-9_-]{1,20}\Z", fullmatch=True)
opaque = st.binary(min_size=1, max_size=9).map(lambda data: b64encode(data).decode())
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
# In a stream, line ends of Unicode are escaped, so that JSON that holds them is the same but not spelled the same.
objects = (
    st.dictionaries(texts, values, max_size=3)
    .map(lambda value: compact(value))
    .filter(lambda text: not any(letter in text for letter in "\x85\u2028\u2029"))
)


def compact(value: object) -> str:
    return msgspec.json.encode(value).decode()


def maybe(strategy: st.SearchStrategy[object], possible: bool) -> st.SearchStrategy[object]:
    return st.none() | strategy if possible else st.none()


def lifetimes(words: Words) -> st.SearchStrategy[CacheLifetime | None]:
    return st.sampled_from([None, *words.lifetimes])


@st.composite
def parts(draw: st.DrawFn, words: Words, *, images: bool = True) -> Part:
    cache = draw(lifetimes(words))
    kinds = ["text"] + ["image"] * images + ["url"] * (images and words.image_urls)
    kinds += ["document"] * (images and words.documents) + ["document_url"] * (images and words.document_urls)
    match draw(st.sampled_from(kinds)):
        case "image":
            return ImagePart(draw(st.binary(min_size=1, max_size=9)), draw(st.sampled_from(words.media_types)), cache)
        case "url":
            return ImageUrl(f"https://example.com/{draw(ids)}.png", cache=cache)
        case "document":
            return DocumentPart(draw(st.binary(min_size=1, max_size=9)), "application/pdf", cache=cache)
        case "document_url":
            return DocumentPart(b"", "application/pdf", f"https://example.com/{draw(ids)}.pdf", cache=cache)
    return TextPart(draw(texts), cache)


def content_of(given: Sequence[Part]) -> str | tuple[Part, ...]:
    """Content as canonical requests have it."""
    plain = [part.text for part in given if isinstance(part, TextPart) and part.cache is None]
    return "\n".join(plain) if len(plain) == len(given) else tuple(given)


def contents(words: Words, *, images: bool = True) -> st.SearchStrategy[str | tuple[Part, ...]]:
    return st.lists(parts(words, images=images), min_size=1, max_size=3).map(content_of)


@st.composite
def thoughts(draw: st.DrawFn, words: Words) -> tuple[Thought, ...]:
    signed = st.builds(Thought, texts, opaque.map(lambda text: words.signature + text))
    redacted = st.builds(Thought, st.just(""), st.none(), opaque)
    return tuple(draw(st.lists(signed | redacted if words.redacted else signed, max_size=2)))


@st.composite
def exchanges(draw: st.DrawFn, words: Words, tools: Sequence[Tool]) -> list[Message]:
    """What a user says and an assistant answers, perhaps with calls and their results."""
    asked = Message("user", draw(contents(words)))
    called = st.builds(
        ToolCall,
        ids,
        st.sampled_from([tool.name for tool in tools] or ["gone"]),
        objects,
        maybe(opaque.map(lambda text: words.signature + text), words.call_signatures),
        lifetimes(words) if words.call_markers else st.none(),
    )
    calls = draw(st.lists(called, max_size=2, unique_by=lambda call: call.id))
    thought = draw(thoughts(words))
    said = draw(contents(words, images=False)) if not calls or draw(st.booleans()) else None
    reasoning = "\n".join(one.text for one in thought if one.text) or None
    answer = Message("assistant", said, tool_calls=tuple(calls), reasoning=reasoning, thoughts=thought)
    inner = words if words.result_markers else msgspec.structs.replace(words, lifetimes=())
    results = [
        Message(
            "tool",
            draw(contents(inner, images=words.tool_images)) if words.tool_images else draw(texts),
            tool_call_id=call.id,
            is_error=draw(st.booleans()) and words.tool_errors,
            cache=draw(lifetimes(words)) if words.tool_markers else None,
        )
        for call in calls
    ]
    return [asked, answer, *results]


@st.composite
def tool_lists(draw: st.DrawFn, words: Words) -> tuple[Tool, ...]:
    schema = st.builds(
        lambda fields: compact(
            {"type": "object", "properties": {name: {"type": "string"} for name in fields}}
        ).encode(),
        st.lists(names, max_size=2),
    )
    strict = st.booleans() if words.strict else st.just(False)
    cache = lifetimes(words) if words.tool_markers else st.none()
    made = st.builds(Tool, names, st.just("") | texts, schema, strict, cache)
    return tuple(draw(st.lists(made, max_size=3, unique_by=lambda tool: tool.name)))


@st.composite
def choices(draw: st.DrawFn, words: Words, tools: Sequence[Tool]) -> ToolChoice:
    if not tools:
        return ToolChoice()
    mode = draw(st.sampled_from(["auto", "required"] + ["none"] * words.forbids_calls))
    parallel = mode == "none" or not words.parallel or draw(st.booleans())
    named: tuple[str, ...] = ()
    if mode == "required":
        count = len(tools) if words.narrowed else 1
        named = tuple(draw(st.lists(st.sampled_from([tool.name for tool in tools]), max_size=count, unique=True)))
    return ToolChoice(mode, named, parallel)  # type: ignore[arg-type]


@st.composite
def samplings(draw: st.DrawFn, words: Words) -> Sampling:
    temperature = draw(st.none() | st.floats(0, words.temperature_max))
    with_top_p = words.both_filters or temperature is None
    small = st.floats(-2, 2) if words.penalties else st.just(0.0)
    return Sampling(
        temperature=temperature,
        top_p=draw(st.none() | st.floats(0.01, 1)) if with_top_p else None,
        top_k=draw(st.none() | st.integers(1, 100)) if words.top_k else None,
        seed=draw(st.none() | st.integers(0, 2**31 - 1)) if words.seed else None,
        presence_penalty=draw(small),
        frequency_penalty=draw(small),
    )


@st.composite
def thinkings(draw: st.DrawFn, words: Words) -> Thinking:
    shown = draw(st.none() | st.booleans()) if words.hides else None
    kinds = ["none"] + ["effort"] * bool(words.efforts) + ["budget"] * words.budgets
    match draw(st.sampled_from(kinds)):
        case "effort":
            return Thinking(True, draw(st.sampled_from(words.efforts)), shown=shown)
        case "budget":
            return Thinking(True, tokens_max=draw(st.integers(1024, 4096)), shown=shown)
    return draw(
        st.just(Thinking()) | st.just(Thinking(False)) if words.efforts or words.budgets else st.just(Thinking())
    )


@st.composite
def requests(draw: st.DrawFn, words: Words) -> ChatRequest:
    tools = draw(tool_lists(words))
    system = draw(st.none() | contents(words, images=False))
    messages = [Message("system", system)] if system is not None else []
    for exchange in draw(st.lists(exchanges(words, tools), max_size=2)):
        messages += exchange
    messages.append(Message("user", draw(contents(words))))
    choice = draw(choices(words, tools))
    thinking = draw(thinkings(words))
    if choice.mode == "required" and thinking.enabled and not words.forced_thinking:
        thinking = Thinking()
    constraints: list[Constraint | None] = [None]
    if words.schema_param:
        constraints.append(Constraint("json_schema", '{"type":"object"}', True, words.schema_param))
    if words.json_object:
        constraints.append(Constraint("json_object", param=words.schema_param))
    return ChatRequest(
        words.model,
        tuple(messages),
        tools=tools,
        tool_choice=choice,
        generation=Generation(
            max_tokens=draw(st.integers(5000, 100_000)),
            stop=tuple(draw(st.lists(texts, max_size=3))) if words.stops else (),
            n=draw(st.integers(1, words.choices_max)),
            sampling=Sampling() if thinking.enabled else draw(samplings(words)),
            constraint=draw(st.sampled_from(constraints)),
        ),
        thinking=thinking,
        end_user=draw(maybe(ids, words.end_user)),  # type: ignore[arg-type]
    )


@st.composite
def usages(draw: st.DrawFn, words: Words) -> Usage:
    cached, written, fresh, thought, said = draw(st.tuples(*[st.integers(0, 10_000)] * 5))
    if not words.cache_writes:
        written = 0
    thought = thought if words.reasoning_usage else 0
    return Usage(
        prompt_tokens=cached + written + fresh,
        completion_tokens=thought + said,
        cached_tokens=cached,
        reasoning_tokens=thought,
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.integers(0, written)) if words.long_writes else 0,
    )


@st.composite
def streams(draw: st.DrawFn, words: Words) -> list[Event]:
    """The events of one answer, as fine as they come out of a parser."""
    usage = draw(usages(words))
    known = words.prompt_known
    events: list[Event] = [Started(usage.prompt_tokens, usage.cached_tokens) if known else Started(0)]
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "thought", "call"]), max_size=5)):
        match kind:
            case "text":
                events += [TextDelta(0, text) for text in draw(st.lists(texts, min_size=1, max_size=3))]
            case "thought":
                events += [ReasoningDelta(0, text) for text in draw(st.lists(texts, min_size=1, max_size=3))]
                events.append(ReasoningDelta(0, "", words.signature + draw(opaque)))
                if words.redacted and draw(st.booleans()):
                    events.append(ReasoningDelta(0, "", redacted=draw(opaque)))
            case "call":
                events += draw(calls_of(words, calls))
                calls += 1
    ends = [ChoiceFinished(0, "stop"), ChoiceFinished(0, "length"), *words.details]
    if words.stop_sequence:
        ends.append(ChoiceFinished(0, "stop", stop_sequence=draw(texts)))
    end = ChoiceFinished(0, "tool_calls") if calls else draw(st.sampled_from(ends))
    if words.refusals and end.reason == "content_filter" and draw(st.booleans()):
        events.append(RefusalDelta(0, draw(texts)))
    return [*events, end, Finished(usage)]


@st.composite
def calls_of(draw: st.DrawFn, words: Words, index: int) -> list[Event]:
    id, name, arguments = draw(ids), draw(names), draw(objects)
    signature = words.signature + draw(opaque) if words.call_signatures and draw(st.booleans()) else None
    if words.whole_calls:
        return [ToolCallDelta(0, index, arguments, id, name, signature)]
    at = draw(st.integers(1, len(arguments)))
    pieces = [piece for piece in (arguments[:at], arguments[at:]) if piece]
    return [ToolCallDelta(0, index, "", id, name, signature), *(ToolCallDelta(0, index, piece) for piece in pieces)]


def for_providers(request: ChatRequest) -> ChatRequest:
    """The request without what is only said to local engines."""
    generation = msgspec.structs.replace(request.generation, reasoning_tokens_max=None)
    return msgspec.structs.replace(request, template_arguments={}, generation=generation)
