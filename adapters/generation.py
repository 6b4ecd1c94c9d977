"""How an answer is to be generated: its length, how tokens are drawn, what it has to match, how it is thought about."""

from __future__ import annotations

from typing import Literal

import msgspec

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Constraint(msgspec.Struct, frozen=True):
    """What the whole text of an answer must match.

    `source` is a JSON Schema as JSON text, a regular expression, a JSON array of strings (choice), a Lark or a GBNF
    grammar; empty for json_object. `strict` refuses a schema with keywords that cannot be enforced; otherwise these are
    left unenforced. `param` names the request's field in errors.
    """

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark", "gbnf"]
    source: str = ""
    strict: bool = True
    param: str = "response_format"


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is drawn. The temperature is applied first, then top_k, min_p and top_p.

    None leaves a value to the model's own recommendation, or to 1, 1, 0 and 0 where it makes none. `temperature` 0 is
    greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch these filters off; the penalties count the generated tokens only;
    `logit_bias` maps token ids to an addition in logits.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}


class Lora(msgspec.Struct, frozen=True):
    """An adapter over the model's weights, by its name or its place in the configuration.

    `scale` multiplies what it adds; None: as configured.
    """

    adapter: str | int
    scale: float | None = None


class Thinking(msgspec.Struct, frozen=True):
    """How a model is to think, as far as the request says it; `enabled` None leaves that to the model.

    `tokens_max` is the budget, `shown` False asks that the thoughts are not told.
    """

    enabled: bool | None = None
    effort: Effort | None = None
    tokens_max: int | None = None
    shown: bool | None = None


class Generation(msgspec.Struct, frozen=True):
    """What both kinds of text request share.

    `max_tokens` None means as many as the context allows. `logprobs` None is off, k asks for the k likeliest
    alternatives of each token besides the token itself. After `reasoning_tokens_max` tokens of thinking the model is
    made to end it and to answer. `loras` are applied together; empty is the model as it is.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    reasoning_tokens_max: int | None = None
    loras: tuple[Lora, ...] = ()
