"""What a request says about kept answers in its `Cache-Control` header (RFC 9111, section 5.2.1)."""

from __future__ import annotations

import re

import msgspec

_DIRECTIVE = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^,\s]*))?\s*(?:,|$)""")


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """`no_cache`: what is kept is not good enough. `no_store`: nothing of this is to be kept. `only_if_cached`: nobody
    else is to be asked. Ages in seconds."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    age_s_max: int | None = None
    fresh_s_min: int = 0

    def takes(self, age_s: float, ttl_s: float) -> bool:
        """Whether an answer of this age is good enough, when those older than `ttl_s` are good for nobody."""
        if self.no_cache or age_s + self.fresh_s_min >= ttl_s:
            return False
        return self.age_s_max is None or age_s <= self.age_s_max


PLAIN = Control()


def control_of(header: str) -> Control:
    """The directives of a header. Unknown ones mean nothing; of a value that is none the safe side is taken."""
    if not header:
        return PLAIN
    given = {name.lower(): value.strip('"') for name, value in _DIRECTIVE.findall(header)}
    age_s, fresh_s = _seconds(given.get("max-age")), _seconds(given.get("min-fresh"))
    return Control(
        no_cache="no-cache" in given
        or ("max-age" in given and not age_s)
        or ("min-fresh" in given and fresh_s is None),
        no_store="no-store" in given,
        only_if_cached="only-if-cached" in given,
        age_s_max=age_s,
        fresh_s_min=fresh_s or 0,
    )


def _seconds(text: str | None) -> int | None:
    """RFC 9111's delta-seconds; what is larger than any age counts as 2**31."""
    if text is None or not (text.isascii() and text.isdecimal()):
        return None
    return 2**31 if len(text) > 9 else int(text)
