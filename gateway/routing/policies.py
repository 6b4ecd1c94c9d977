"""How a group of targets is ordered for a request: pure functions, whose first choice is tried first.

`weighted`   smooth weighted round robin, as nginx spreads requests over upstreams
`random`     by chance, in proportion to the weights (Efraimidis and Spirakis, "Weighted random sampling", 2006)
`priority`   as they are listed
`least_busy` the fewest running requests for its weight
`fastest`    the better of two drawn by chance (Mitzenmacher, "The power of two choices", 2001), by the time to its
             first output times the requests it has; one that was never measured is as good as the best
`cheapest`   the lowest price of this request
`sticky`     by a rendezvous hash of the conversation (Thaler and Ravishankar, 1998; weighted as by Schindelhauer and
             Schomaker, 2005), so that it returns to the target that keeps it; `weighted` without a conversation
`overflow`   as they are listed, those first whose queue is short enough
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.config_providers import Policy as Policy


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A target as it stands at a moment.

    `identity` is the same on all replicas. `turn` is what it has saved up in round robin, `cost_nano` what the request
    would cost there at most (None: unknown), `eta_s` how long it would wait in a queue there (None: nobody knows).
    """

    identity: str
    weight: float = 1.0
    running: int = 0
    turn: float = 0.0
    first_output_s: float | None = None
    cost_nano: int | None = None
    eta_s: float | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a request: its conversation, how long it may wait, and draws from [0, 1) for chance."""

    draws: tuple[float, ...]
    conversation: str | None = None
    eta_s_max: float = 5.0


def order(policy: Policy, candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    """The places of all candidates, the one to try first at the front. `draws` has to hold one for each of them."""
    assert len(wish.draws) >= len(candidates)
    return _ORDERS[policy](candidates, wish)


def address(candidates: Sequence[Candidate], wish: Wish) -> int:
    """Which of the addresses of one target to take: the conversation's own, else the least busy.

    Their weight is how warm they are. A cold one sits most of the requests out, or else it would be given all new ones
    at once for having none; conversations move there one after the other, as its weight grows.
    """
    if wish.conversation is not None:
        return _sticky(candidates, wish)[0]
    awake = [i for i, one in enumerate(candidates) if wish.draws[i] < one.weight] or list(range(len(candidates)))
    return min(awake, key=lambda i: (candidates[i].running, wish.draws[i] / candidates[i].weight))


def turns(candidates: Sequence[Candidate], chosen: int) -> list[float]:
    """What each candidate has saved up after the round robin chose one: its weight more, the chosen one all less."""
    total = math.fsum(one.weight for one in candidates)
    return [one.turn + one.weight - total * (i == chosen) for i, one in enumerate(candidates)]


def _by(candidates: Sequence[Candidate], rank: Callable[[int], tuple[float, ...]]) -> list[int]:
    return sorted(range(len(candidates)), key=rank)


def _weighted(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    return _by(candidates, lambda i: (-(candidates[i].turn + candidates[i].weight), i))


def _random(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    return _by(candidates, lambda i: (-math.log1p(-wish.draws[i]) / candidates[i].weight, i))


def _priority(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    return list(range(len(candidates)))


def _least_busy(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    return _by(candidates, lambda i: ((candidates[i].running + 1) / candidates[i].weight, wish.draws[i]))


def _fastest(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    best = min((one.first_output_s for one in candidates if one.first_output_s is not None), default=0.0)

    def expected_s(i: int) -> float:
        measured = candidates[i].first_output_s
        return (best if measured is None else measured) * (candidates[i].running + 1) / candidates[i].weight

    drawn = _by(candidates, lambda i: (wish.draws[i],))
    return sorted(drawn[:2], key=expected_s) + drawn[2:]


def _cheapest(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    def cost(i: int) -> float:
        nano = candidates[i].cost_nano
        return math.inf if nano is None else nano

    return _by(candidates, lambda i: (cost(i), wish.draws[i]))


def _sticky(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    conversation = wish.conversation
    if conversation is None:
        return _weighted(candidates, wish)
    return _by(candidates, lambda i: (-_affinity(candidates[i], conversation), i))


def _affinity(candidate: Candidate, conversation: str) -> float:
    digest = hashlib.blake2b(f"{candidate.identity}\0{conversation}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 0.5) / 2.0**64
    return -candidate.weight / math.log(uniform)


def _overflow(candidates: Sequence[Candidate], wish: Wish) -> list[int]:
    return _by(candidates, lambda i: ((candidates[i].eta_s or 0.0) > wish.eta_s_max, i))


_ORDERS: Mapping[Policy, Callable[[Sequence[Candidate], Wish], list[int]]] = {
    "weighted": _weighted,
    "random": _random,
    "priority": _priority,
    "least_busy": _least_busy,
    "fastest": _fastest,
    "cheapest": _cheapest,
    "sticky": _sticky,
    "overflow": _overflow,
}
