"""Structured output: constraints compiled by llguidance, and the masks of allowed tokens they give at each step.

A `Compiler` turns constraints into `Compiled` grammars, each of which gives a `Guide` to every sequence that must keep
to it; `Masks` computes the masks of all guides of a step beside the decode. The only module that loads llguidance.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from adapters.llama_cpp.arrays import Float32s
from adapters.llama_cpp.gbnf import to_lark
from adapters.llama_cpp.messages import GrammarCounters
from adapters.llama_cpp.native import Vocabulary
from adapters.llama_cpp.prompts import Refusal
from adapters.llama_cpp.schema import SOURCE_BYTES_MAX, check_pattern, check_schema, unsupported
from adapters.llama_cpp.sequence import Guide as AnyGuide
from adapters.llama_cpp.vetting import LEXER_STATES_MAX
from adapters.types import Constraint

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

GRAMMAR_BYTES_MAX = 64 << 10
CHOICES_MAX = 10_000
CACHE_BYTES_MAX = 64 << 20
# What a compiled grammar takes beside its source, mostly the automata that grow while it is used.
COMPILED_BYTES_GUESS = 1 << 20
VET_TIMEOUT_S = 10.0
REFUSED_MAX = 256
FORCED_TOKENS_MAX = 16_384
# One optional space, or a new line with its indent: what models write, without room for endless blanks.
JSON_SPACE = r"[ ]|\n[ \t]{0,32}"

_UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[(.*)\]")
_UNENFORCEABLE = {
    "oneOf constraints": "'oneOf' whose options are not plainly apart",
    "Unknown format": "'format' with that name",
    "look-around": "a look-around in a pattern",
    "lookarounds": "a look-around in a pattern",
}

_TOO_COMPLEX = ("too big", "too large", "fuel", "limit", "oo many", "max is", "Unable to determine")


class Compiled(msgspec.Struct, frozen=True):
    """A grammar ready for use; its automata are shared by all guides and grow as they go."""

    matcher: LLMatcher
    size_bytes: int


class Compiler:
    """Compiles and caches the constraints of one model. Safe from any thread.

    The tables of the vocabulary take up to a second, in which the GIL is held; `prepare` makes them at a good moment.
    `counters` is replaced whole, so that reading it never waits for them.
    """

    def __init__(self, vocabulary: Vocabulary, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.counters = GrammarCounters()
        self._vocabulary = vocabulary
        self._clock_ns = clock_ns
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.RLock()
        self._cache: OrderedDict[bytes, Compiled] = OrderedDict()
        self._cached_bytes = 0
        # What was refused lately, and why, so that asking again costs nothing.
        self._refused: OrderedDict[bytes, str] = OrderedDict()
        self._vetter = _Vetter()
        self._limits = LLParserLimits(verbose_errors=False, max_lexer_states=LEXER_STATES_MAX)

    @property
    def prepared(self) -> bool:
        return self._tokenizer is not None

    def close(self) -> None:
        """Ends the process that compiles first."""
        self._vetter.close()

    def prepare(self) -> LLTokenizer:
        """The vocabulary's tables, made at the first call."""
        with self._lock:
            if self._tokenizer is None:
                vocabulary = self._vocabulary
                address, tokenize = vocabulary.foreign()
                self._tokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
                    tokens=[_marked(vocabulary, token) for token in range(vocabulary.size)],
                    vocab_ptr=address,
                    tokenize_fptr=tokenize,
                    eos_token=sorted(vocabulary.end),
                )
            return self._tokenizer

    def compile(self, constraint: Constraint, *, content: Constraint | None = None) -> Compiled:
        """The grammar of `constraint`; a Lark one may refer to that of `content` as `@content`.

        Raises Refusal: `invalid_schema` for what makes no sense, `unsupported_schema` for what cannot be enforced or
        is past a limit. Takes milliseconds for what is in use, and at most a second or two for what is made to take
        long.
        """
        try:
            return self._compiled(constraint, content)
        except Refusal:
            self._count("refused")
            raise

    def _compiled(self, constraint: Constraint, content: Constraint | None) -> Compiled:
        grammar = _source(constraint)
        if content is not None:
            inner = [{**one, "name": "content"} for one in _parts(_source(content))]
            grammar = json.dumps({"grammars": [*_parts(grammar), *inner]})
        digest = sha256(grammar.encode()).digest()
        with self._lock:
            compiled = self._cache.get(digest)
            if compiled is not None:
                self._cache.move_to_end(digest)
                self._count("reused")
                return compiled
            complaint = self._refused.get(digest, "")
        matcher = None
        began_ns = self._clock_ns()
        if not complaint and not (complaint := self._vetter.complaint(grammar)):
            matcher, complaint = self._matcher(grammar)
        with self._lock:
            self._count("compile_us", (self._clock_ns() - began_ns) // 1000)
            if matcher is None or complaint:
                self._refused[digest] = complaint
                if len(self._refused) > REFUSED_MAX:
                    self._refused.popitem(last=False)
                raise _refusal(complaint, constraint.param)
            compiled = Compiled(matcher, COMPILED_BYTES_GUESS + 16 * len(grammar))
            self._keep(digest, compiled)
            self._count("compiled")
        return compiled

    def guide(
        self,
        compiled: Compiled,
        *,
        after: bytes = b"",
        again: bool = False,
        anchored: bool = False,
        opening: int | None = None,
    ) -> Guide:
        """A guide for one sequence; see `Guide`."""
        matcher, tokenizer = compiled.matcher, self.prepare()
        return Guide(matcher, tokenizer, after=after, again=again, anchored=anchored, opening=opening)

    def marker(self, text: str) -> int | None:
        """The token that a marker begins with, if text cannot contain it."""
        tokens = self._vocabulary.tokenize(text, add_special=False, parse_special=True)
        first = int(tokens[0]) if len(tokens) else None
        return first if first is not None and self.prepare().is_special_token(first) else None

    def _matcher(self, grammar: str) -> tuple[LLMatcher, str]:
        """The grammar, and what is wrong with it."""
        matcher = LLMatcher(self.prepare(), grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            # What no text can match shows with the first mask only, and what leaves no choice may go on for ever.
            matcher.compute_bitmask()
            if len(matcher.compute_ff_tokens()) > FORCED_TOKENS_MAX:
                return matcher, f"too many tokens are forced, more than {FORCED_TOKENS_MAX}"
        return matcher, matcher.get_error()

    def _count(self, what: str, amount: int = 1) -> None:
        with self._lock:
            self.counters = msgspec.structs.replace(self.counters, **{what: getattr(self.counters, what) + amount})

    def _keep(self, digest: bytes, compiled: Compiled) -> None:
        if digest in self._cache:
            return
        self._cache[digest] = compiled
        self._cached_bytes += compiled.size_bytes
        while self._cached_bytes > CACHE_BYTES_MAX:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.size_bytes


def _marked(vocabulary: Vocabulary, token: int) -> bytes:
    """A token's bytes as they come out. Control tokens and markers, which text must not produce, begin with 0xFF."""
    piece = vocabulary.text(token, special=False)
    if not piece or (piece.startswith(b"<") and piece.endswith(b">") and vocabulary.is_marker(token)):
        shown = vocabulary.text(token)
        return b"\xff" + shown if shown else b""
    return piece


# From a constraint to a grammar


def _source(constraint: Constraint) -> str:
    """The grammar in llguidance's JSON form, after the checks that native code does not make."""
    source, param = constraint.source, constraint.param
    match constraint.kind:
        case "json_object":
            return _json_grammar('{"type":"object"}', strict=True)
        case "json_schema":
            return _json_grammar(check_schema(source, param), strict=constraint.strict)
        case "choice":
            return _lark_grammar(_choice(source, param))
    if len(source) > GRAMMAR_BYTES_MAX:
        raise unsupported(f"it is larger than {GRAMMAR_BYTES_MAX >> 10} KiB", param)
    match constraint.kind:
        case "regex":
            check_pattern(source, param)
            grammar: str = LLMatcher.grammar_from_regex(source)
            return grammar
        case "gbnf":
            return _lark_grammar(to_lark(source, param))
    return _lark_grammar(source)


def _json_grammar(schema: str, *, strict: bool) -> str:
    options: JsonCompileOptions = {"whitespace_pattern": JSON_SPACE, "lenient": not strict, "coerce_one_of": not strict}
    grammar: str = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    return grammar


def _lark_grammar(lark: str) -> str:
    grammar: str = LLMatcher.grammar_from_lark(lark)
    return grammar


def _parts(grammar: str) -> list[dict[str, object]]:
    """The grammars of llguidance's JSON form; it takes one in Lark as it is, too."""
    if not grammar.startswith("{"):
        return [{"lark_grammar": grammar}]
    parts: list[dict[str, object]] = json.loads(grammar)["grammars"]
    return parts


def _choice(source: str, param: str) -> str:
    options = msgspec.json.decode(source, type=list[str])
    if not 1 <= len(options) <= CHOICES_MAX or len(source) > SOURCE_BYTES_MAX:
        raise unsupported(f"between 1 and {CHOICES_MAX} choices are possible", param)
    return "start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options)


def _refusal(complaint: str, param: str) -> Refusal:
    """What the compiler says, in our codes; its messages quote nothing but the grammar."""
    unimplemented = _UNIMPLEMENTED.search(complaint)
    if unimplemented:
        keywords = unimplemented[1].replace('"', "'")
        return unsupported(f"{keywords} cannot be enforced", param)
    for mark, what in _UNENFORCEABLE.items():
        if mark in complaint:
            return unsupported(f"{what} cannot be enforced ({_short(complaint)})", param)
    if any(mark in complaint for mark in _TOO_COMPLEX):
        return unsupported(f"it is too complex ({_short(complaint)})", param)
    if "NoExtension" in complaint:
        complaint = "no text can match it"
    return Refusal("invalid_schema", f"Invalid schema or grammar for '{param}': {_short(complaint)}.", param)


def _short(complaint: str) -> str:
    return " ".join(complaint.replace("<non-verbose/>", "").split())[:200].rstrip(".")


class _Vetter:
    """A process that compiles first, so that what never ends there never begins here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def complaint(self, grammar: str) -> str:
        """What is wrong with a grammar, empty when nothing is."""
        raw = grammar.encode()
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end(self._process)
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            timer = threading.Timer(VET_TIMEOUT_S, process.kill)
            timer.start()
            try:
                process.stdin.write(struct.pack("<I", len(raw)) + raw)
                process.stdin.flush()
                head = process.stdout.read(4)
                if len(head) == 4:
                    return process.stdout.read(struct.unpack("<I", head)[0]).decode("utf-8", "replace")
            except BrokenPipeError:
                pass
            finally:
                timer.cancel()
            self._end(process)
        return "fuel exhausted: it takes too long to compile"

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("vetting.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Where the compiler panics it shows a piece of the schema, which is not for the log.
            stderr=subprocess.DEVNULL,
            env={},
        )
        return self._process


# At each step


class Guide:
    """What one sequence may write.

    With `after` it lets everything pass until these bytes were written, and holds the sequence to the grammar from
    there on; the answer may not end before. With `opening` as well it waits for them only where the sequence begins
    with that token, and is held to the grammar from the start where it does not. With `again` the text may end at any
    time, and after each match of the grammar everything passes again until the next `after`: that is how calls hide in
    free text. `anchored`: the text has to begin with `after`, but for spaces, or everything passes.
    """

    def __init__(
        self,
        base: LLMatcher,
        tokenizer: LLTokenizer,
        *,
        after: bytes = b"",
        again: bool = False,
        anchored: bool = False,
        opening: int | None = None,
    ) -> None:
        self._base = base
        self._tokenizer = tokenizer
        self._after = after
        self._again = again
        self._anchored = anchored
        self._passes = False
        self._tail = b""
        self.matcher = base.deep_copy()
        self.opening = opening
        self.active = not after or opening is not None

    @property
    def may_end(self) -> bool:
        """Whether the text may end here, as far as no mask says it."""
        return self.active or self._again

    @property
    def complete(self) -> bool:
        """Whether the grammar is matched and nothing can follow."""
        return self.active and not self._again and self.opening is None and self.matcher.is_stopped()

    @property
    def failure(self) -> str | None:
        """Why the grammar cannot be followed any further."""
        return _short(self.matcher.get_error()) if self.matcher.is_error() else None

    def accept(self, token: int, piece: bytes) -> list[int]:
        """Takes a sampled token in; returns the tokens to keep, which differ where a token ran past the marker."""
        opening, self.opening = self.opening, None
        if not self.active or token == opening:
            self.active = False
            return self._watch(token, piece)
        self.matcher.consume_token(token)
        self._rearm()
        return [token]

    def forced(self, most: int) -> list[int]:
        """Takes in and returns up to `most` tokens that the grammar leaves no choice about, split as the tokeniser
        itself would split them."""
        if not self.active or self.opening is not None or self.matcher.is_stopped():
            return []
        tokens: list[int] = self.matcher.compute_ff_tokens()[:most]
        if tokens:
            self.matcher.consume_tokens(tokens)
            self._rearm()
        return tokens

    def _watch(self, token: int, piece: bytes) -> list[int]:
        written = self._tail + piece
        at = written.find(self._after)
        if self._anchored:
            written, at = written.lstrip(), 0 if written.lstrip().startswith(self._after) else -1
            self._passes = self._passes or not (at == 0 or self._after.startswith(written))
            if self._passes:
                return [token]
            if at < 0:
                self._tail = written
                return [token]
        if at < 0:
            self._tail = written[-len(self._after) + 1 :] if len(self._after) > 1 else b""
            return [token]
        self.active, self._tail = True, b""
        past = len(written) - at - len(self._after)
        return [token] if not past else self._tokenizer.tokenize_bytes(piece[: len(piece) - past], parse_special=True)

    def _rearm(self) -> None:
        if self._again and self.matcher.is_stopped() and not self.matcher.is_error():
            self.active = False
            self._passes = self._anchored
            self.matcher = self._base.deep_copy()


class Masks:
    """The masks of a step, computed on a thread of their own while the main one decodes.

    They are given as ceilings of the logits, 32 bits per token instead of one, because a minimum takes the same 15 us
    for any mask of 152,000 tokens. Writing where a mask says so was measured to take 40 us, and 600 for one without a
    pattern, whose branches no processor predicts.
    """

    def __init__(self, vocabulary_size: int, rows: int) -> None:
        self._size = vocabulary_size
        self._words = np.zeros((rows, -(-vocabulary_size // 32)), np.uint32)
        self._ceilings = np.empty((rows, self._words.shape[1] * 32), np.float32)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        self._of_bytes = np.where(bits, np.float32(np.inf), np.float32(-np.inf))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: LLExecutor | None = None
        self._pending: Future[Float32s] | None = None

    def begin(self, guides: list[AnyGuide]) -> None:
        """Starts on the masks of `guides`, which nobody may touch before `end`."""
        self._pending = self._thread.submit(self._compute, [guide.matcher for guide in guides])

    def end(self) -> Float32s:
        """Waits; infinity for tokens that are allowed and minus infinity for others, shape (guides, vocabulary), valid
        until the next `begin`."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        self._thread.shutdown()

    def _compute(self, matchers: list[LLMatcher]) -> Float32s:
        words = self._words[: len(matchers)]
        if len(matchers) == 1:
            matchers[0].unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        else:
            executor = self._executor = self._executor or LLExecutor(num_threads=1)
            rows = list(zip(matchers, range(len(matchers)), strict=True))
            executor.unsafe_compute_mask_ptr(rows, words.ctypes.data, words.shape[1] * 4, len(matchers))
        ceilings = self._ceilings[: len(matchers)]
        octets = words.view(np.uint8)
        np.take(self._of_bytes, octets, axis=0, out=ceilings.reshape(*octets.shape, 8), mode="clip")
        return ceilings[:, : self._size]
