"""Which conversation a prompt continues, held against looking at every one of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from adapters.llama_cpp.arrays import Int32s
from adapters.llama_cpp.kept import Kept, Owner, common_prefix
from adapters.llama_cpp.matching import longest

KEYS = st.sampled_from([None, "one", "two"])
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12).map(lambda tokens: np.array(tokens, np.int32))
KEPT = st.lists(st.tuples(st.sampled_from("ab"), KEYS, TOKENS, st.integers(0, 12)), max_size=8)


@given(KEPT, KEYS, TOKENS)
def test_the_longest_is_found_among_all(
    found: list[tuple[str, str | None, Int32s, int]], key: str | None, prompt: Int32s
) -> None:
    """Each conversation can be cut down to so many tokens at the fewest."""
    kept = {Kept(Owner(tenant, name), tokens, 0): cut_min for tenant, name, tokens, cut_min in found}
    best, size = longest(kept, Owner("a", key), prompt, lambda one: kept[one])

    def usable(one: Kept) -> int:
        common = common_prefix(one.tokens, prompt)
        return common if common in (0, len(one.tokens)) or common >= kept[one] else 0

    ranks = [(usable(one), key is not None and one.owner.key == key) for one in kept if one.owner.tenant == "a"]
    wanted = max(ranks, default=(0, False))
    assert size == wanted[0]
    assert (best is not None) == (size > 0)
    if best is not None:
        assert (usable(best), key is not None and best.owner.key == key) == wanted
