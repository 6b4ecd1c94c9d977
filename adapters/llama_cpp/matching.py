"""Which kept conversation a prompt continues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapters.llama_cpp.kept import PUBLIC, Int32s, Kept, Owner, common_prefix


def longest(kept: Iterable[Kept], owner: Owner, tokens: Int32s, *, partial: bool) -> tuple[Kept | None, int]:
    """The conversation with the longest usable prefix of `tokens`, and its length; at equal length the one of that
    key. Without `partial`, the model can only go on from its end or from a checkpoint."""
    best, best_rank = None, (0, False)
    for one in _seen_by(owner, kept):
        size = common_prefix(one.tokens, tokens)
        if size < len(one.tokens) and not partial:
            size = max((at for at in one.positions if at <= size), default=0)
        rank = (size, owner.key is not None and one.owner.key == owner.key)
        if size and rank > best_rank:
            best, best_rank = one, rank
    return best, best_rank[0]


def meant(kept: Iterable[Kept], owner: Owner, tokens: Int32s) -> Kept | None:
    """The tenant's own conversation that a prompt was probably meant to continue: the latest of that key, or else the
    one that begins most alike."""
    own = [one for one in _seen_by(owner, kept) if one.owner.tenant == owner.tenant]
    named = [one for one in own if owner.key is not None and one.owner.key == owner.key]
    if named:
        return max(named, key=lambda one: one.used_us)
    alike = max(own, key=lambda one: common_prefix(one.tokens, tokens), default=None)
    return alike if alike is not None and common_prefix(alike.tokens, tokens) else None


def continues(new: Kept, old: Kept) -> bool:
    """Whether `new` makes `old` superfluous: it holds all of it, or it is a later form of the same conversation. One
    of another name stays, however alike they are."""
    if (new.owner.tenant, new.owner.variant) != (old.owner.tenant, old.owner.variant):
        return False
    if old.owner.key not in (None, new.owner.key):
        return False
    size = common_prefix(old.tokens, new.tokens)
    return size == len(old.tokens) or (old.owner.key is not None and size * 2 >= len(old.tokens))


def _seen_by(owner: Owner, kept: Iterable[Kept]) -> Iterator[Kept]:
    for one in kept:
        if one.owner.variant == owner.variant and one.owner.tenant in (owner.tenant, PUBLIC):
            yield one
