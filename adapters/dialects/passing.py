"""What it takes to pass requests of a dialect on as they came: a head, the routed fields, and what was used."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from adapters.dialects.client import Style
from adapters.dialects.splicing import Parts
from adapters.types import Head, Inbound, Kind, Usage

# Names and types of what a provider keeps or does beside answering: tools that it runs itself, and their credentials.
_ACTS = re.compile(
    rb'"(?:store|background|container|shell|local_shell|mcp\w*|computer\w*|file_search|image_generation'
    rb'|code_interpreter|(?:web_search|web_fetch|code_execution)\w*)"'
)


def acts(inbound: Inbound) -> bool:
    """Whether a provider may do more for a request than answer it: yes where in doubt."""
    return b"\\u00" in inbound.body or _ACTS.search(inbound.body) is not None


class Watch(Protocol):
    """Looks at a stream on its way to the client."""

    usage: Usage
    done: bool

    def passed(self, frames: bytes, events: int) -> tuple[bytes, int]:
        """What of the next `events` is shown to the client, and how many tokens are in it at least.

        `frames` are whole events, each line of data in one piece. Raises `AdapterError` when one of them is an error.
        """
        ...

    def end(self) -> bytes:
        """The last event, held back until now. Raises `BrokeOff` when the stream ended before it."""
        ...


class Passing(msgspec.Struct, frozen=True):
    """One dialect.

    `read_head` raises `InvalidRequest` for what is not a JSON object of the dialect; `rewrite` gives a body with the
    target's name for the model and whatever else is needed to know what was used; `usage_of` reads a unary answer and
    raises `AdapterError` when it is none. `may_need` says whether a request could need any of some capabilities: yes
    where in doubt. `neutral` are the members that make no difference to an answer, the model's name among them;
    `spoilt` is found in an answer that somebody kept from ending as it should.
    """

    kind: Kind
    read_head: Callable[[bytes], Head]
    rewrite: Callable[[Inbound, str, Style], Parts]
    watch: Callable[[Inbound], Watch]
    usage_of: Callable[[bytes], Usage]
    may_need: Callable[[Inbound, Collection[str]], bool]
    neutral: frozenset[str]
    spoilt: re.Pattern[bytes]
