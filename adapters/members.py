"""The members of a large JSON object, read once and without what stands in its long texts, which is most of it."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

# Texts longer than LONG_BYTES are cut to KEPT_BYTES, more than any field of ours may have. Looking at a text takes as
# long as decoding some kilobytes, so that where they are short on average not all are looked at.
LONG_BYTES = 4096
KEPT_BYTES = 1024
CUT_BYTES_MIN = 64 * 1024
BYTES_PER_TEXT = 4096
# The longest escape in a text.
_ESCAPE_BYTES = 6
_BACKSLASH = 0x5C

Cut = tuple[int, int]


class Members(msgspec.Struct, frozen=True):
    """The `values` are those of `outline`, which is the object with its long texts cut. Each of `cuts` is a place in
    that, and how many bytes are left out up to there."""

    values: dict[str, msgspec.Raw]
    outline: bytes
    cuts: tuple[Cut, ...] = ()

    def place(self, at: int) -> int:
        """Where in the object a place of the outline is."""
        before = bisect_right(self.cuts, at, key=lambda cut: cut[0])
        return at + self.cuts[before - 1][1] if before else at


def outlined(body: bytes) -> tuple[bytes, tuple[Cut, ...]]:
    """A JSON text with its long texts cut, and where. Where it is not all ASCII nothing is, as its bytes would have to
    be looked at anyway."""
    if len(body) < CUT_BYTES_MIN or not body.isascii():
        return body, ()
    pieces: list[bytes] = []
    cuts: list[Cut] = []
    at = kept = left_out = 0
    for _ in range(len(body) // BYTES_PER_TEXT):
        begin = body.find(b'"', at)
        end = _end_of(body, begin + 1)
        if begin < 0 or end < 0:
            break
        cut = begin + KEPT_BYTES
        if end - begin > LONG_BYTES and body.find(b"\\", cut - _ESCAPE_BYTES, cut) < 0:
            pieces.append(body[kept:cut])
            left_out += end - cut
            cuts.append((end - left_out, left_out))
            kept = end
        at = end + 1
    return b"".join((*pieces, body[kept:])), tuple(cuts)


def _end_of(body: bytes, begin: int) -> int:
    """Where the text ends whose first byte is at `begin`; -1 where it does not."""
    end = body.find(b'"', begin)
    while end > begin and body[end - 1] == _BACKSLASH:
        first = end - 1
        while first > begin and body[first - 1] == _BACKSLASH:
            first -= 1
        if (end - first) % 2 == 0:
            break
        end = body.find(b'"', end + 1)
    return end
