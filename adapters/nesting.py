"""How deep JSON is nested, looked at before it is decoded.

Decoders stop where the interpreter that runs them does, which is after nearly a thousand levels in Python 3.11, after
ten thousand in later releases of 3.12 and in 3.13, and from 3.14 on where its stack ends.
"""

from __future__ import annotations

# Deeper than anybody needs. A low bound would cost more than it saves: bodies without so many brackets are done with,
# and in one that has source code in its texts there are a thousand soon.
DEPTH_MAX = 5_000
# After so many brackets it is looked at how deep they are; in between it can have been deeper by less than that.
STRIDE = 250
_FOLDED = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)).difference(b"{}[]"))


def too_deep(body: bytes) -> bool:
    """Whether a JSON text has more levels than DEPTH_MAX: by STRIDE more always counts, fewer never do. In a time that
    grows with its length and no faster. Of what is broken only the part before that counts, as for a decoder."""
    if len(body) <= 2 * DEPTH_MAX or not _has_many(body):
        return False
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Each second piece is what lies between two texts.
    brackets = b"".join(body.split(b'"')[::2]).translate(_FOLDED, _OTHERS)
    depth = 0
    for at in range(0, len(brackets), STRIDE):
        some = brackets[at : at + STRIDE]
        depth += 2 * some.count(b"[") - len(some)
        if depth > DEPTH_MAX:
            return True
    return False


def _has_many(body: bytes) -> bool:
    """Whether more brackets open than levels are allowed, those in texts included. Counting would look at every byte
    by itself, which takes far longer than finding the few that there are."""
    left = DEPTH_MAX
    for opening in (b"[", b"{"):
        at = body.find(opening)
        while at >= 0:
            if not left:
                return True
            left -= 1
            at = body.find(opening, at + 1)
    return False
