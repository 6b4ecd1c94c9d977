"""Compiles grammars in a process that may be lost: `python -I vetting.py`, grammars in, verdicts out.

A native compile cannot be interrupted, and a few lines of schema can keep it busy for hours. What takes more than its
share of processor time or memory here ends this process and nothing else. Frames on both sides are 4 bytes of
little-endian length and UTF-8 text: a grammar on standard input; on standard output what is wrong with it, empty when
nothing is.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys

CPU_S_MAX = 0.5
MEMORY_BYTES_MAX = 1 << 30
LEXER_STATES_MAX = 50_000


def main() -> None:
    """Answers until standard input ends."""
    from llguidance import LLMatcher, LLParserLimits

    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    limits = LLParserLimits(verbose_errors=False, max_lexer_states=LEXER_STATES_MAX)
    while len(head := sys.stdin.buffer.read(4)) == 4:
        grammar = sys.stdin.buffer.read(struct.unpack("<I", head)[0]).decode()
        # Without a handler SIGPROF ends the process, in the middle of native code as well.
        signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX)
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdict = "\n".join(messages).encode() if failed else b""
        sys.stdout.buffer.write(struct.pack("<I", len(verdict)) + verdict)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
