"""What it takes to pass requests of a dialect on as they came: a head, the routed fields, and what was used."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol, TypeVar

import msgspec

from adapters.dialects.client import Style
from adapters.dialects.endings import Ending
from adapters.dialects.plain import searched
from adapters.dialects.splicing import Parts, escaped
from adapters.errors import BrokeOff, UpstreamInvalid
from adapters.public import leads_inside
from adapters.types import Head, Inbound, Kind, Usage

T = TypeVar("T")

# Names and types of what a provider keeps or does beside answering: tools that it runs itself, and their credentials.
_ACTS = re.compile(
    rb'"(?:store|background|container|shell|local_shell|mcp\w*|computer\w*|file_search|image_generation'
    rb'|code_interpreter|(?:web_search|web_fetch|code_execution)\w*)"'
)


def acts(inbound: Inbound) -> bool:
    """Whether a provider may do more for a request than answer it: yes where in doubt."""
    return b"\\u00" in inbound.body or _ACTS.search(inbound.body) is not None


def decoded(decoder: msgspec.json.Decoder[T], payload: bytes) -> T:
    """An answer, or the payload of an event; raises `UpstreamInvalid` for what is none of the dialect."""
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise strange() from None


def strange() -> UpstreamInvalid:
    return UpstreamInvalid("The provider's answer is not what was agreed on.")


class Addresses(msgspec.Struct, frozen=True):
    """What requests of a dialect have fetched by its address: `found` gives the addresses in a body, which has one of
    the `signs` wherever there is one."""

    signs: tuple[bytes, ...]
    found: Callable[[bytes], Iterable[str]]

    def any(self, inbound: Inbound) -> bool:
        """Whether anything is to be fetched; what is not as it should be counts as that."""
        if inbound.head.plain:
            return False
        members = inbound.head.members
        outline = inbound.body if members is None else members.outline
        try:
            signed = stands_in(outline, self.signs) or escaped(outline)
            return signed and any(True for _ in self.found(outline))
        except (msgspec.DecodeError, RecursionError):
            return True

    def inside(self, inbound: Inbound) -> bool:
        """Whether any address is none of the public internet. What is not as it should be is for others to refuse, but
        nothing is passed on that is too deep to be looked through."""
        try:
            # Of a long address the outline has only the beginning, which may not be where it leads.
            return self.any(inbound) and any(map(leads_inside, self.found(inbound.body)))
        except msgspec.DecodeError:
            return False
        except RecursionError:
            return True


def stands_in(body: bytes, signs: Iterable[bytes]) -> bool:
    """Whether any of the signs does. `in` would take twice as long for a body of usual size: it tries each sign as a
    number first, and drops the exception that comes of that."""
    for sign in signs:  # noqa: SIM110 - a generator would take as long as what it asks for.
        if body.find(sign) >= 0:
            return True
    return False


class Signs:
    """What stands in a request that needs a capability, by capability. `said` are the members that need not be searched
    where there is nothing but text in them."""

    def __init__(self, table: Mapping[str, tuple[bytes, ...]], said: Collection[str], addresses: Addresses) -> None:
        self.table = table
        self._said = said
        self._addresses = addresses

    def may_need(self, inbound: Inbound, capabilities: Collection[str]) -> bool:
        """Goes by the bytes of names and values anywhere in the body; escaped ones count as any."""
        if "image_urls" in capabilities and self._addresses.any(inbound):
            return True
        if "n" in capabilities and inbound.head.n > 1:
            return True
        signs = _signs(self, frozenset(capabilities))
        if not signs:
            return False
        body = searched(inbound, self._said)
        return escaped(body) or stands_in(body, signs)


@functools.lru_cache(256)
def _signs(signs: Signs, capabilities: frozenset[str]) -> tuple[bytes, ...]:
    return tuple(sign for capability in capabilities for sign in signs.table.get(capability, ()))


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


class Reading(Protocol):
    """What the events of one stream say of its use and its end."""

    usage: Usage

    def ends(self, payload: bytes) -> bool:
        """Note what an event says; whether it is the last one. Raises `AdapterError` when it is an error."""
        ...


class NamedWatch:
    """`Watch` of a dialect whose streams end with an event of theirs.

    Frames without any of the signs in `told` are shown as they come, the others read one by one; `outputs` stands in an
    event that brings at least one token.
    """

    def __init__(self, told: tuple[bytes, ...], outputs: bytes, reading: Reading) -> None:
        self.usage = Usage()
        self.done = False
        self._told = told
        self._outputs = outputs
        self._reading = reading
        self._last = b""

    def passed(self, frames: bytes, events: int) -> tuple[bytes, int]:
        if self.done:
            return b"", 0
        if stands_in(frames, self._told):
            frames = b"".join(frame + b"\n\n" for frame in frames[:-2].split(b"\n\n") if self._wanted(frame))
        return frames, frames.count(self._outputs)

    def _wanted(self, frame: bytes) -> bool:
        if not self.done:
            if self._reading.ends(frame[frame.index(b"data: ") + 6 :]):
                self.done, self._last = True, frame + b"\n\n"
            self.usage = self._reading.usage
        return not self.done

    def end(self) -> bytes:
        if not self.done:
            raise BrokeOff("The provider's answer broke off.")
        return self._last


class Passing(msgspec.Struct, frozen=True, kw_only=True):
    """One dialect.

    `read_head` raises `InvalidRequest` for what is not a JSON object of the dialect; `rewrite` gives a body with the
    target's name for the model and whatever else is needed to know what was used; `usage_of` reads a unary answer and
    raises `AdapterError` when it is none. `may_need` says whether a request could need any of some capabilities: yes
    where in doubt. `neutral` are the members that make no difference to an answer, the model's name among them;
    `inside` says whether something is to be fetched that is not on the public internet;
    `spoilt` is found in an answer that somebody kept from ending as it should; `ending` ends one early.
    """

    kind: Kind
    read_head: Callable[[bytes], Head]
    rewrite: Callable[[Inbound, str, Style], Parts]
    watch: Callable[[Inbound], Watch]
    usage_of: Callable[[bytes], Usage]
    may_need: Callable[[Inbound, Collection[str]], bool]
    neutral: frozenset[str]
    spoilt: re.Pattern[bytes]
    inside: Callable[[Inbound], bool]
    ending: Callable[[Inbound], Ending]
