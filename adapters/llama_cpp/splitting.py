"""From a choice's text, as the worker sends it, to events."""

from __future__ import annotations

from collections.abc import Iterator

from adapters.llama_cpp.formats.reader import CallPiece, ReasoningPiece, TextPiece
from adapters.llama_cpp.messages import Delta
from adapters.llama_cpp.output import OutputParser
from adapters.types import ChoiceFinished, Event, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta


class Splitter:
    """Splits the text of one choice into reasoning, content and tool calls."""

    def __init__(self, choice: int, parser: OutputParser) -> None:
        self._choice = choice
        self._parser = parser
        self._logprobs: tuple[TokenLogprob, ...] = ()

    def push(self, delta: Delta) -> Iterator[Event]:
        """Log probabilities go with the content; those of calls, reasoning and markers are dropped."""
        self._logprobs += delta.logprobs
        pieces = self._parser.push(delta.text) if delta.text else []
        if delta.finish is not None:
            pieces = [*pieces, *self._parser.finish()]
        for piece in pieces:
            match piece:
                case TextPiece():
                    yield TextDelta(self._choice, piece.text, self._scores(piece.text))
                case ReasoningPiece():
                    self._scores(piece.text)
                    yield ReasoningDelta(self._choice, piece.text)
                case CallPiece():
                    self._logprobs = ()
                    yield ToolCallDelta(self._choice, piece.index, piece.arguments, piece.id, piece.name)
        if delta.finish is not None:
            ended = delta.finish == "stop"
            called = self._parser.called and ended
            malformed = self._parser.malformed and ended
            reason = "tool_calls" if called else delta.finish
            yield ChoiceFinished(self._choice, reason, malformed, delta.stop_sequence)

    def _scores(self, text: str) -> tuple[TokenLogprob, ...]:
        """The scores of the tokens that `text` was made of; those before them are dropped, later ones kept."""
        scores = self._logprobs
        if not scores:
            return ()
        spelled = b"".join([score.raw for score in scores])
        start = max(0, spelled.find(text.encode()))
        end = start + len(text.encode())
        shown: list[TokenLogprob] = []
        at = 0
        for index, score in enumerate(scores):
            if at >= end:
                self._logprobs = scores[index:]
                return tuple(shown)
            at += len(score.raw)
            if at > start:
                shown.append(score)
        self._logprobs = ()
        return tuple(shown)
