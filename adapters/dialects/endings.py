"""How an answer that is passed on ends where somebody ended it: what is shown instead of its rest."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import msgspec

from adapters.dialects import openai_wire as wire
from adapters.types import Inbound, Usage

Fields = dict[str, Any]

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Fields).decode


class Ending(Protocol):
    """Of one answer."""

    def opened(self, payload: bytes) -> None:
        """The first event came."""
        ...

    def noted(self, payload: bytes) -> None:
        """An event was shown."""
        ...

    def blocked(self, choice: int) -> bytes:
        """The events that end a choice of a stream with the reason that is a filter's."""
        ...

    def end(self, usage: Usage) -> bytes:
        """The last events of a stream whose choices have all ended like that."""
        ...

    def whole(self, body: bytes, choices: Collection[int]) -> bytes:
        """A whole answer without what is said in these choices."""
        ...


def framed(fields: Fields, kind: str = "") -> bytes:
    """An event of a stream."""
    name = b"event: %b\n" % kind.encode() if kind else b""
    return b"%bdata: %b\n\n" % (name, wire.one_line(encode(fields)))


class OpenAIEnding:
    """Of chat completions and of completions."""

    def __init__(self, inbound: Inbound) -> None:
        self._text = inbound.dialect == "openai_completions"
        self._usage_wanted = inbound.head.usage_wanted
        self._head: Fields = {}

    def opened(self, payload: bytes) -> None:
        chunk = decode(payload)
        known = ("id", "object", "created", "model", "system_fingerprint")
        self._head = {name: chunk[name] for name in known if name in chunk}

    def noted(self, payload: bytes) -> None:
        """Its head says it all."""

    def blocked(self, choice: int) -> bytes:
        said: Fields = {"text": ""} if self._text else {"delta": {}}
        ended = {"index": choice, **said, "logprobs": None, "finish_reason": "content_filter"}
        return framed({**self._head, "choices": [ended]})

    def end(self, usage: Usage) -> bytes:
        used = framed({**self._head, "choices": [], "usage": wire.usage_fields(usage)}) if self._usage_wanted else b""
        return used + b"data: [DONE]\n\n"

    def whole(self, body: bytes, choices: Collection[int]) -> bytes:
        answer = decode(body)
        message = {"role": "assistant", "content": "", "refusal": None}
        said: Fields = {"text": ""} if self._text else {"message": message}
        ended = {**said, "logprobs": None, "finish_reason": "content_filter"}
        given = msgspec.convert(answer.get("choices"), list[Fields])
        answer["choices"] = [one | ended if one.get("index", 0) in choices else one for one in given]
        return encode(answer)
