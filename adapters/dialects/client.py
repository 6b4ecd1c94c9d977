"""The half of a dialect that speaks to a provider: canonical requests to bytes, and its stream back to events.

Each dialect has beside its server side

    render_request(request, style) -> bytes         the body; raises `InvalidRequest` for what it cannot say
    EventParser(request)                            the events of one stream, fed with its payloads in order

where `request` is the canonical request of its kind. Providers are always asked for streams: a unary answer is a folded
stream. What a dialect cannot say and may leave out is listed in its docstring as lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from adapters.types import Event


class Style(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider departs from the OpenAI dialects; the other dialects have one provider each.

    `max_tokens` and `seed` are how it calls these fields. `usage_option`: it takes `stream_options`. `developer_role`
    and `names`: it knows that role, and names of speakers. `short_ids`: ids of calls are nine letters and digits.
    `reasoning` is where it takes how much to think: `reasoning_effort`, OpenRouter's object `reasoning`, or nowhere.
    `thoughts` is the field where it wants what was thought before an earlier answer. `grammars` is the field for
    constraints other than JSON, and with it whose way it is. `extra_sampling`: it takes `top_k` and `min_p`.
    `template_arguments`: it takes `chat_template_kwargs`. `anthropic_version` is what the body of a message says in the
    place of the model, where that stands in the address. `thoughtful` is a regular expression of the models that can
    be asked for their thoughts encrypted, where others refuse that.
    """

    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: Literal["seed", "random_seed"] = "seed"
    usage_option: bool = True
    developer_role: bool = False
    names: bool = True
    short_ids: bool = False
    reasoning: Literal["reasoning_effort", "reasoning", ""] = "reasoning_effort"
    thoughts: Literal["reasoning_content", "reasoning", "reasoning_details", ""] = ""
    grammars: Literal["structured_outputs", "grammar", "response_format", ""] = ""
    cache_control: bool = False
    extra_sampling: bool = False
    template_arguments: bool = False
    anthropic_version: str = ""
    thoughtful: str = ""


class EventParser(Protocol):
    """Turns the payloads of one stream into its events, from `Started` to `Finished`."""

    @property
    def done(self) -> bool:
        """Whether all has come that belongs to the answer, whatever the connection does then."""
        ...

    def feed(self, kind: str, payload: bytes) -> Sequence[Event]:
        """The events of the next payload: `data` of a server-sent event (`kind` is its `event`, mostly empty) or of a
        message of an event stream (`kind` is its type).

        Raises `AdapterError` when the payload is an error, `UpstreamInvalid` when it is not what the dialect says.
        """
        ...

    def end(self) -> Sequence[Event]:
        """What is due when the stream is over. Raises `UpstreamInvalid` when it broke off."""
        ...
