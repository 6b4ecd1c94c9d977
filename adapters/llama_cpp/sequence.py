"""One sequence being computed: its tokens, where they stand, and the text that comes out of them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from adapters.llama_cpp.arrays import Float32s, Int32s
from adapters.llama_cpp.images import Span, position
from adapters.llama_cpp.kept import Checkpoint, Kept, Owner, State
from adapters.llama_cpp.lora import NO_ADAPTERS, AdapterSet
from adapters.llama_cpp.messages import CacheReport, Delta
from adapters.llama_cpp.sampling import NO_ADVICE, Recommended, Sampler, log_normaliser, top
from adapters.llama_cpp.text import TextAssembler
from adapters.llama_cpp.thoughts import Thoughts
from adapters.types import FinishReason, Generation, TokenLogprob, TopLogprob

JUMP_TOKENS_MAX = 64


class Guide(Protocol):
    """What holds a sequence to a grammar; `active` while it does so. Each token is taken in exactly once. `opening` is
    a token that is allowed besides, as it leads to something else first."""

    active: bool
    opening: int | None

    @property
    def matcher(self) -> Any: ...

    @property
    def may_end(self) -> bool: ...

    @property
    def complete(self) -> bool: ...

    @property
    def failure(self) -> str | None: ...

    def accept(self, token: int, piece: bytes) -> list[int]: ...

    def forced(self, most: int) -> list[int]: ...


class Pieces(Protocol):
    """The vocabulary as far as output needs it."""

    end: frozenset[int]

    def piece(self, token: int) -> bytes: ...

    def text(self, token: int, *, special: bool = True) -> bytes: ...


class Sequence:
    """One choice of one request.

    `tokens[:length]` are known, `tokens[:computed]` of them have cells; `length - computed` is pending, and computing
    the last pending token gives the logits of the next. A decoding sequence has one pending token, or the few more
    that its grammar forced. `spans` are the images of the prompt, in order. The first `shared` cells are counted with
    the slot `lender` that they were shared from. `luck` is the part of the guesses that were right of late.
    """

    def __init__(
        self,
        request: int,
        choice: int,
        prompt: Int32s,
        generation: Generation,
        *,
        tenant: str,
        session_key: str | None,
        max_tokens: int,
        pieces: Pieces,
        echo: str | None = None,
        recommended: Recommended = NO_ADVICE,
        adapters: AdapterSet = NO_ADAPTERS,
        thoughts: Thoughts | None = None,
        guide: Guide | None = None,
        explain: bool = False,
        spans: tuple[Span, ...] = (),
    ) -> None:
        self.request = request
        self.choice = choice
        self.spans = spans
        self.owner = Owner(tenant, session_key, adapters.variant)
        self.adapters = adapters
        self.tokens = np.empty(len(prompt) + max_tokens + 1, np.int32)
        self.tokens[: len(prompt)] = prompt
        self.length = self.prompt_length = len(prompt)
        self.computed = self.cached = self.shared = 0
        self.lender = -1
        self.source: Kept | None = None
        self.checkpoints: list[Checkpoint] = []
        self.stops: list[int] = []
        # Whether its owner still wants the conversation kept when it ends.
        self.keeps = True
        self.explain = explain and choice == 0
        self.ends = pieces.end
        self.text = pieces.text
        self.cache: CacheReport | None = None
        self.slot = -1
        self.state: State | None = None
        self.order = self.arrived_us = 0
        self.awaited_us = self.begun_us = self.first_us = 0
        self.luck = 1.0
        self.finish: FinishReason | None = None
        self.failure: str | None = None
        self.guide = guide
        # An explicit seed promises the same text on an idle engine. Cells computed in other batch shapes differ in
        # their last bits, so such a request computes its prompt afresh, unless it names the session to continue.
        self.fresh = generation.sampling.seed is not None and session_key is None
        self.scores_prompt = echo is not None and generation.logprobs is not None
        self._max_tokens = max_tokens
        self._logprobs = generation.logprobs
        self._ignores_end = generation.ignore_eos
        self._pieces = pieces
        self._text = TextAssembler(generation.stop)
        self._echo = echo
        self._thoughts = thoughts
        self._thoughts_reported = 0
        self._scores: list[TokenLogprob] = []
        self._produced = self._unreported = 0
        # Whether anything was reported, and whether the model ended the text, with a token that counts and has none.
        self._reported_start = self._ended = False
        # Tokens since the last report; several where a grammar forced them, but one at a time when they are scored.
        self._latest: list[int] = []
        self._row: Float32s | None = None
        # Tokens that are known to come next and wait only for the logits that score them.
        self._coming: list[int] = []
        self._end = np.fromiter(pieces.end, np.int64)
        banned = self._end if generation.ignore_eos else np.empty(0, np.int64)
        self._sampler = Sampler(generation.sampling, banned, recommended, choice)

    @property
    def pending(self) -> int:
        return self.length - self.computed

    @property
    def image(self) -> Span | None:
        """The image that is computed next, or after the text before it."""
        return next((span for span in self.spans if span.end > self.computed), None)

    @property
    def run(self) -> int:
        """How many of the pending tokens can be computed now as text; 0 where an image is next."""
        image = self.image
        return self.pending if image is None else max(0, image.start - self.computed)

    @property
    def position(self) -> int:
        """The position of the first pending token."""
        return position(self.tokens, self.computed) if self.spans else self.computed

    @property
    def unreported(self) -> bool:
        """Whether `report` has something to say."""
        return bool(self._latest) or self.finish is not None

    @property
    def prompt(self) -> Int32s:
        return self.tokens[: self.prompt_length]

    @property
    def decoding(self) -> bool:
        return self._produced > 0

    @property
    def tokens_left(self) -> int:
        """How many more tokens it may produce."""
        return self._max_tokens - self._produced

    @property
    def guessable(self) -> bool:
        """Whether the next step can draw two tokens, if the first of them is known before."""
        free = self._logprobs is None and not self.spans
        return free and self.decoding and self.pending == 1 and self.tokens_left > 1

    @property
    def ready(self) -> bool:
        """Whether computing what is pending is one step of a decode, not a prompt."""
        pending = self.length - self.computed
        return pending == 1 or (self._produced > 0 and pending <= JUMP_TOKENS_MAX)

    def score_prompt(self, first: int, rows: Float32s) -> None:
        """Log-probabilities of the prompt tokens after positions first, first+1, ... from their logits `rows`."""
        if not self._scores and first == 0:
            token = int(self.tokens[0])
            self._scores.append(TokenLogprob(token, None, self._pieces.text(token)))
        for offset, row in enumerate(rows):
            position = first + offset + 1
            if position < self.prompt_length:
                self._scores.append(self._score(int(self.tokens[position]), row))

    @property
    def wants_mask(self) -> bool:
        """Whether the next `advance` needs to be told what the grammar denies."""
        return self.guide is not None and self.guide.active and not self._coming

    def advance(self, row: Float32s, ceiling: Float32s | None = None) -> None:
        """Draws the next token from its logits, which are overwritten, and ends the sequence where it should end.

        With a guide, tokens that leave no choice follow at once: they are pending together, and computed in one go.
        `ceiling` is minus infinity for tokens that the guide's grammar does not allow here, infinity for others.
        """
        if self._max_tokens == 0:
            self.finish = "length"
            return
        self._row = row.copy() if self._logprobs is not None else None
        if not self._coming:
            self._coming = self._next(row, ceiling)
        if self.finish or self.failure:
            return
        count = 1 if self._logprobs is not None else len(self._coming)
        self._append(self._coming[:count])
        del self._coming[:count]
        if self.guide is not None and self.guide.complete and not self._coming:
            self.finish = "stop"
        elif self._produced >= self._max_tokens:
            self.finish = "length"

    def _next(self, row: Float32s, ceiling: Float32s | None) -> list[int]:
        """The tokens that follow: one that ends the thoughts, or those of the grammar, or a sampled one."""
        guide = self.guide
        thoughts = self._thoughts
        ending = thoughts.forced()[: self._max_tokens - self._produced] if thoughts is not None else []
        # Calls that hide in free text do not hide in thoughts.
        if guide is None or (thoughts is not None and thoughts.thinking and not guide.active and guide.may_end):
            return ending or self._drawn(row)
        for index, token in enumerate(ending):
            guide.accept(token, self._pieces.piece(token))
            if guide.active:
                # What it holds to begins here.
                return ending[: index + 1]
        return ending or self._guided(row, guide, ceiling)

    def _drawn(self, row: Float32s) -> list[int]:
        """The sampled token; nothing at the end of the text."""
        token = self._sampler.pick(row)
        if token in self._pieces.end and not self._ignores_end:
            self._produced += 1
            self._unreported += 1
            self._ended = True
            self.finish = "stop"
            return []
        return [token]

    def _guided(self, row: Float32s, guide: Guide, ceiling: Float32s | None) -> list[int]:
        """The tokens that follow under a grammar: a sampled one and those forced after it, or those forced at the
        very beginning."""
        room = self._max_tokens - self._produced
        self.failure = guide.failure
        if self.failure:
            return []
        if not self._produced and (tokens := self._forced(guide, room)):
            return tokens
        if guide.complete:
            self.finish = "stop"
            return []
        if ceiling is not None:
            if guide.opening is not None:
                ceiling[guide.opening] = np.inf
            np.minimum(row, ceiling, out=row)
        elif not guide.may_end:
            row[self._end] = -np.inf
        tokens = []
        for token in self._drawn(row):
            tokens = guide.accept(token, self._pieces.piece(token))[:room]
            tokens += self._forced(guide, room - len(tokens))
        return tokens

    def _forced(self, guide: Guide, room: int) -> list[int]:
        tokens = guide.forced(room)
        for token in tokens:
            self._sampler.count(token)
        return tokens

    def _append(self, tokens: list[int]) -> None:
        for token in tokens:
            self.tokens[self.length] = token
            self.length += 1
            if self._thoughts is not None:
                self._thoughts.push(self._pieces.piece(token))
        self._produced += len(tokens)
        self._unreported += len(tokens)
        self._latest += tokens

    def report(self, now_us: int) -> Delta | None:
        """What the last `advance` added, or None when there is nothing to show yet."""
        tokens, self._latest = self._latest, []
        text = ""
        for index, token in enumerate(tokens):
            if self._row is not None:
                self._scores.append(self._score(token, self._row))
            text += self._text.push(self._pieces.piece(token))
            if self._text.stopped:
                self.finish = "stop"
                # Whatever was drawn behind the stop string does not count.
                self._unreported -= len(tokens) - index - 1 + self._ended
                break
        if self.finish and not self._text.stopped:
            text += self._text.finish()
        if not self._reported_start:
            self.first_us = now_us
            text = (self._echo or "") + text
        elif not text and self.finish is None:
            return None
        return self._delta(text, now_us)

    def _delta(self, text: str, now_us: int) -> Delta:
        started, self._reported_start = self._reported_start, True
        tokens, self._unreported = self._unreported, 0
        thought = self._thoughts.tokens if self._thoughts is not None else 0
        # Of several tokens, those behind a stop string are not reported.
        reasoning_tokens, self._thoughts_reported = min(thought - self._thoughts_reported, tokens), thought
        return Delta(
            id=self.request,
            choice=self.choice,
            text=text,
            tokens=tokens,
            finish=self.finish,
            logprobs=self._shown_scores(text),
            cached_tokens=-1 if started else self.cached,
            prefill_us=-1 if started else max(0, now_us - self.begun_us),
            decode_us=now_us - self.first_us if self.finish else 0,
            reasoning_tokens=reasoning_tokens,
            cache=None if started else self.cache,
            stop_sequence=self._text.stopped_by,
        )

    def _shown_scores(self, text: str) -> tuple[TokenLogprob, ...]:
        """The scores of the tokens whose text is out; those a stop string swallowed are dropped."""
        scores, self._scores = self._scores, []
        if not self._text.stopped:
            return tuple(scores)
        shown, size = [], 0
        for score in scores:
            if size >= len(text.encode()):
                break
            shown.append(score)
            size += len(score.raw)
        return tuple(shown)

    def _score(self, token: int, row: Float32s) -> TokenLogprob:
        base = log_normaliser(row)
        best = top(row, self._logprobs) if self._logprobs else ()
        return TokenLogprob(
            token,
            float(row[token]) - base,
            self._pieces.text(token),
            tuple(TopLogprob(int(one), float(row[one]) - base, self._pieces.text(int(one))) for one in best),
        )
