"""The answers that dialects write as bytes, described by hand for the OpenAPI document. A test holds them against real
answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.http import Doc

Schema = Mapping[str, Any]

EVENTS = ("application/json", "text/event-stream")
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {}
IDEMPOTENT: Mapping[str, str] = {
    "Idempotency-Key": "Runs once however often it is sent; later answers repeat the first.",
    "X-Session-Id": "The conversation that this continues.",
}


def thing(optional: str = "", **properties: Schema) -> dict[str, Any]:
    """An object with these properties, of which the ones named in `optional` can be missing."""
    required = [name for name in properties if name not in optional.split()]
    return {"type": "object", "required": required, "properties": properties}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def listed(items: Schema, optional: str = "", **more: Schema) -> dict[str, Any]:
    return thing(optional, object={"const": "list"}, data=many(items), **more)


def chat(body: type) -> Doc:
    message = thing(
        "reasoning_content tool_calls annotations",
        role=TEXT,
        content=or_null(TEXT),
        refusal=or_null(TEXT),
        annotations=many(ANY),
        reasoning_content=TEXT,
        tool_calls=many(
            thing(id=TEXT, type={"const": "function"}, function=thing(name=TEXT, arguments=TEXT)),
        ),
    )
    choice = thing(index=COUNT, message=message, logprobs=or_null(thing(content=many(ANY))), finish_reason=TEXT)
    example = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    return _generation("chat", "chat.completion", body, choice, example)


def messages(body: type) -> Doc:
    usage = thing(input_tokens=COUNT, output_tokens=COUNT, cache_read_input_tokens=COUNT)
    answer = thing(
        id=TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=TEXT,
        content=many(thing("", type=TEXT)),
        stop_reason=or_null(TEXT),
        stop_sequence=or_null(TEXT),
        usage=usage,
    )
    about = (
        "Anthropic's API. With `stream` the answer comes in parts, as its server-sent events; errors have its shape."
    )
    example = {"model": "demo", "max_tokens": 32, "messages": [{"role": "user", "content": "Hello"}]}
    return Doc(
        "messages", body=body, answer=answer, media=EVENTS, headers=dict(IDEMPOTENT), description=about, example=example
    )


def responses(body: type) -> Doc:
    details = {"type": "object"}
    usage = thing(
        input_tokens=COUNT,
        input_tokens_details=details,
        output_tokens=COUNT,
        output_tokens_details=details,
        total_tokens=COUNT,
    )
    answer = thing(
        id=TEXT,
        object={"const": "response"},
        created_at=COUNT,
        status={"enum": ["completed", "incomplete"]},
        model=TEXT,
        output=many(thing(id=TEXT, type=TEXT)),
        incomplete_details=or_null(thing(reason=TEXT)),
        error=or_null(details),
        store={"const": False},
        usage=usage,
    )
    about = (
        "OpenAI's Responses API. Nothing is kept: send the whole conversation as `input`. With `stream` the answer "
        "comes as numbered events, of which the last is `response.completed`, `response.incomplete` or `error`."
    )
    example = {"model": "demo", "input": "Hello", "max_output_tokens": 32}
    return Doc(
        "responses",
        body=body,
        answer=answer,
        media=EVENTS,
        headers=dict(IDEMPOTENT),
        description=about,
        example=example,
    )


def compaction(body: type) -> Doc:
    answer = thing(id=TEXT, object={"const": "response.compaction"}, created_at=COUNT, output=many({"type": "object"}))
    about = (
        "A conversation in fewer tokens, to be sent back as `input`. Only providers that have the API answer it; what "
        "they say is passed on as it is."
    )
    example = {"model": "gpt", "input": [{"role": "user", "content": "Hello"}]}
    return Doc("responses", body=body, answer=answer, headers=dict(IDEMPOTENT), description=about, example=example)


def response_tokens(body: type) -> Doc:
    answer = thing(object={"const": "response.input_tokens"}, input_tokens=COUNT)
    return Doc("responses", body=body, answer=answer, example={"model": "demo", "input": "Hello"})


def message_tokens(body: type) -> Doc:
    example = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    return Doc("messages", body=body, answer=thing(input_tokens=COUNT), example=example)


def completions(body: type) -> Doc:
    choice = thing(text=TEXT, index=COUNT, logprobs=or_null({"type": "object"}), finish_reason=TEXT)
    example = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 32}
    return _generation("completions", "text_completion", body, choice, example)


def _generation(tag: str, kind: str, body: type, choice: Schema, example: Schema) -> Doc:
    details = or_null({"type": "object"})
    usage = thing(
        "prompt_tokens_details completion_tokens_details",
        prompt_tokens=COUNT,
        completion_tokens=COUNT,
        total_tokens=COUNT,
        prompt_tokens_details=details,
        completion_tokens_details=details,
    )
    answer = thing(
        "system_fingerprint",
        id=TEXT,
        object={"const": kind},
        created=COUNT,
        model=TEXT,
        system_fingerprint=or_null(TEXT),
        choices=many(choice),
        usage=usage,
    )
    about = "With `stream` the answer comes in parts, as server-sent events that end with `[DONE]`."
    return Doc(
        tag, body=body, answer=answer, media=EVENTS, headers=dict(IDEMPOTENT), description=about, example=example
    )


def embeddings(body: type) -> Doc:
    vector = {"anyOf": [many(NUMBER), {"type": "string", "contentEncoding": "base64"}]}
    item = thing(object={"const": "embedding"}, index=COUNT, embedding=vector)
    usage = thing(prompt_tokens=COUNT, total_tokens=COUNT)
    answer = listed(item, model=TEXT, usage=usage)
    example = {"model": "demo", "input": ["a text", "another"]}
    return Doc("embeddings", body=body, answer=answer, headers=dict(IDEMPOTENT), example=example)


def rerank(body: type) -> Doc:
    result = thing("document", index=COUNT, relevance_score=NUMBER, document=thing(text=TEXT))
    usage = thing(prompt_tokens=COUNT, total_tokens=COUNT)
    answer = thing(id=TEXT, object={"const": "list"}, model=TEXT, results=many(result), usage=usage)
    example = {"model": "demo", "query": "a question", "documents": ["one answer", "another"]}
    return Doc("rerank", body=body, answer=answer, headers=dict(IDEMPOTENT), example=example)


def model() -> dict[str, Any]:
    return thing(
        "context_length parameters size_bytes description capabilities parent",
        id=TEXT,
        object={"const": "model"},
        created=COUNT,
        owned_by=TEXT,
        context_length=COUNT,
        parameters=COUNT,
        size_bytes=COUNT,
        description=TEXT,
        capabilities=many(TEXT),
        parent=TEXT,
    )


def session(kind: str = "session", optional: str = "deleted", **more: Schema) -> dict[str, Any]:
    return thing(
        optional,
        id=TEXT,
        object={"const": kind},
        key=or_null(TEXT),
        model=TEXT,
        owner=TEXT,
        tokens=COUNT,
        tier=TEXT,
        size_bytes=COUNT,
        created_at=COUNT,
        last_used_at=COUNT,
        pinned=FLAG,
        **more,
    )


def request_entry() -> dict[str, Any]:
    usage = thing(
        prompt_tokens=INTEGER,
        cached_tokens=INTEGER,
        completion_tokens=INTEGER,
        reasoning_tokens=INTEGER,
        estimated=FLAG,
    )
    return thing(
        id=TEXT,
        object={"const": "request"},
        entry=TEXT,
        corrects=or_null(TEXT),
        created_at=TEXT,
        status=TEXT,
        outcome=TEXT,
        key=TEXT,
        model=TEXT,
        target=TEXT,
        provider=TEXT,
        kind=TEXT,
        usage=usage,
        cost_usd=or_null(TEXT),
        charged_usd=TEXT,
        items=many(cost_item()),
        price_table=or_null(TEXT),
        latency_ms=NUMBER,
        first_token_ms=or_null(NUMBER),
        cache=TEXT,
        attempts=COUNT,
    )


def cost_item() -> dict[str, Any]:
    return thing(item=TEXT, tokens=INTEGER, usd_per_million=TEXT, usd=TEXT)


def own_usage() -> dict[str, Any]:
    budget = thing(account=TEXT, spent_usd=TEXT, limit_usd=TEXT, remaining_usd=TEXT, resets_at=or_null(TEXT))
    sums = {"type": "object", "required": ["requests", "prompt_tokens", "completion_tokens", "cost_usd"]}
    return thing(object={"const": "usage"}, key=TEXT, data=many(sums), budgets=many(budget))


def decision() -> dict[str, Any]:
    some = {"message": TEXT, "cost_usd_max": TEXT}
    attempt = thing(" ".join(some), target=TEXT, outcome=TEXT, waited_ms=NUMBER, took_ms=NUMBER, **some)
    reasons = {"type": "object", "additionalProperties": TEXT}
    return thing(
        id=TEXT, object={"const": "decision"}, route=TEXT, policy=TEXT, attempts=many(attempt), passed_over=reasons
    )


def cost() -> dict[str, Any]:
    return thing(object={"const": "cost"}, model=TEXT, cost_usd=TEXT, items=many(cost_item()), price_table=TEXT)


def health() -> Doc:
    state = thing(state=TEXT, progress=NUMBER)
    models = {"type": "object", "additionalProperties": state}
    return Doc("server", answer=thing("error", status=TEXT, models=models, error={"type": "object"}))
