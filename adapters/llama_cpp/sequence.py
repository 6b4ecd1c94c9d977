"""One sequence being computed: its tokens, where they stand, and the text that comes out of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from adapters.llama_cpp.lora import NO_ADAPTERS, AdapterSet
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.sampling import NO_ADVICE, Recommended, Sampler, log_normaliser, top
from adapters.llama_cpp.sessions import Kept, State
from adapters.llama_cpp.text import TextAssembler
from adapters.llama_cpp.thoughts import Thoughts
from adapters.types import FinishReason, Generation, TokenLogprob, TopLogprob

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class Pieces(Protocol):
    """The vocabulary as far as output needs it."""

    end: frozenset[int]

    def piece(self, token: int) -> bytes: ...

    def text(self, token: int, *, special: bool = True) -> bytes: ...


class Sequence:
    """One choice of one request.

    `tokens[:length]` are known, `tokens[:computed]` of them have cells; `length - computed` is pending, and computing
    the last pending token gives the logits of the next. A decoding sequence has exactly one pending token.
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
    ) -> None:
        self.request = request
        self.choice = choice
        self.tenant = tenant
        self.session_key = session_key
        self.adapters = adapters
        self.tokens = np.empty(len(prompt) + max_tokens + 1, np.int32)
        self.tokens[: len(prompt)] = prompt
        self.length = self.prompt_length = len(prompt)
        self.computed = 0
        self.cached = 0
        self.shared = 0
        self.source: Kept | None = None
        self.slot = -1
        self.state: State | None = None
        self.order = 0
        self.begun_us = 0
        self.first_us = 0
        self.finish: FinishReason | None = None
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
        self._produced = 0
        self._unreported = 0
        self._reported_start = False
        self._token: int | None = None
        self._row: Float32s | None = None
        banned = np.fromiter(pieces.end, np.int64) if generation.ignore_eos else np.empty(0, np.int64)
        self._sampler = Sampler(generation.sampling, banned, recommended, choice)

    @property
    def pending(self) -> int:
        return self.length - self.computed

    @property
    def unreported(self) -> bool:
        """Whether `report` has something to say."""
        return self._token is not None or self.finish is not None

    @property
    def prompt(self) -> Int32s:
        return self.tokens[: self.prompt_length]

    @property
    def decoding(self) -> bool:
        return self._produced > 0

    def score_prompt(self, first: int, rows: Float32s) -> None:
        """Log-probabilities of the prompt tokens after positions first, first+1, ... from their logits `rows`."""
        if not self._scores and first == 0:
            token = int(self.tokens[0])
            self._scores.append(TokenLogprob(token, None, self._pieces.text(token)))
        for offset, row in enumerate(rows):
            position = first + offset + 1
            if position < self.prompt_length:
                self._scores.append(self._score(int(self.tokens[position]), row))

    def advance(self, row: Float32s) -> None:
        """Draws the next token from its logits, which are overwritten, and ends the sequence where it should end."""
        if self._max_tokens == 0:
            self.finish = "length"
            return
        scored = row.copy() if self._logprobs is not None else None
        forced = self._thoughts.forced() if self._thoughts is not None else None
        token = self._sampler.pick(row) if forced is None else forced
        self._produced += 1
        self._unreported += 1
        if token in self._pieces.end and not self._ignores_end:
            self.finish = "stop"
            return
        self.tokens[self.length] = token
        self.length += 1
        self._token, self._row = token, scored
        if self._thoughts is not None:
            self._thoughts.push(self._pieces.piece(token))
        if self._produced >= self._max_tokens:
            self.finish = "length"

    def report(self, now_us: int) -> Delta | None:
        """What the last `advance` added, or None when there is nothing to show yet."""
        token, self._token = self._token, None
        text = ""
        if token is not None:
            if self._row is not None:
                self._scores.append(self._score(token, self._row))
            text = self._text.push(self._pieces.piece(token))
            if self._text.stopped:
                self.finish = "stop"
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
        reasoning_tokens, self._thoughts_reported = thought - self._thoughts_reported, thought
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
