"""Which kept conversation a prompt continues, and which one makes room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.kept import PUBLIC, Kept, Owner, common_prefix

# Reads for requests that still wait: how many at a time, since those that have their turn read after them, and which
# part of the memory they leave to what is copied out of the context meanwhile.
READS_AHEAD_MAX = 2
READS_AHEAD_SHARE = 2
# The end of a conversation that another one has all the rest of is at most one in so many of its tokens.
TAIL_SHARE = 8


def longest(
    kept: Iterable[Kept], owner: Owner, tokens: Int32s, cut_min: Callable[[Kept], int]
) -> tuple[Kept | None, int]:
    """The conversation with the longest usable prefix of `tokens`, and its length; at equal length the one of that
    key. Where it cannot be cut to so few, it can only be continued from its end or from a checkpoint."""
    best, best_rank = None, (0, False)
    seen = list(_seen_by(owner, kept))
    if owner.key is not None:
        seen.sort(key=lambda one: one.owner.key != owner.key)
    for one in seen:
        # Those of the key come first, so that most others are ruled out by one token: there are thousands.
        if best is not None and not _alike_at(best_rank[0], one.tokens, tokens):
            continue
        size = common_prefix(one.tokens, tokens)
        if 0 < size < len(one.tokens) and size < cut_min(one):
            size = max((at for at in one.positions if at <= size), default=0)
        rank = (size, owner.key is not None and one.owner.key == owner.key)
        if size and rank > best_rank:
            best, best_rank = one, rank
    return best, best_rank[0]


def _alike_at(place: int, left: Int32s, right: Int32s) -> bool:
    return bool(place < len(left) and place < len(right) and left[place] == right[place])


def meant(kept: Iterable[Kept], owner: Owner, tokens: Int32s) -> Kept | None:
    """The tenant's own conversation that a prompt was probably meant to continue: the latest of that key, or else the
    one that begins most alike."""
    own = [one for one in _seen_by(owner, kept) if one.owner.tenant == owner.tenant]
    named = [one for one in own if owner.key is not None and one.owner.key == owner.key]
    if named:
        return max(named, key=lambda one: one.used_us)
    alike = max(own, key=lambda one: common_prefix(one.tokens, tokens), default=None)
    return alike if alike is not None and common_prefix(alike.tokens, tokens) else None


def continues(new: Kept, old: Kept, tail_max: int) -> bool:
    """Whether `new` makes `old` superfluous: it holds all of it but an end of at most `tail_max` tokens, or it is a
    later form of the same conversation. One of another name stays, however alike they are."""
    if (new.owner.tenant, new.owner.variant) != (old.owner.tenant, old.owner.variant):
        return False
    if old.owner.key not in (None, new.owner.key):
        return False
    size = common_prefix(old.tokens, new.tokens)
    tail = len(old.tokens) - size
    if old.owner.key is not None and size >= tail:
        return True
    return tail <= min(tail_max, size // TAIL_SHARE)


def first_to_go(kept: Iterable[Kept], loose: Iterable[Kept], size: Callable[[Kept], int]) -> Kept:
    """Of those that are `loose`: one of the tenant that holds most of all that is kept, and of its own the one that was
    not used for longest."""
    held: dict[str, int] = {}
    for one in kept:
        held[one.owner.tenant] = held.get(one.owner.tenant, 0) + size(one)
    return min(loose, key=lambda one: (-held[one.owner.tenant], one.used_us))


def room_ahead(kept: Collection[Kept], ram_bytes: int, now_us: int) -> int:
    """How many bytes may be read for a request that still waits; -1 while the disk reads enough as it is."""
    reading = [one.disk_bytes for one in kept if one.fetching_us]
    staying = [one.blob.size_bytes for one in kept if one.blob is not None and one.stays(now_us)]
    return -1 if len(reading) >= READS_AHEAD_MAX else ram_bytes // READS_AHEAD_SHARE - sum(reading) - sum(staying)


def _seen_by(owner: Owner, kept: Iterable[Kept]) -> Iterator[Kept]:
    for one in kept:
        if one.owner.variant == owner.variant and one.owner.tenant in (owner.tenant, PUBLIC):
            yield one
