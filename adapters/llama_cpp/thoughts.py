"""Follows one sequence's thoughts token by token, counts them, and ends them when their budget is spent."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from adapters.llama_cpp.reasoning import ReasoningFormat

CHARACTER_TOKENS_MAX = 3
"""How many tokens past the budget a character may take that was not complete; it has four bytes at most."""


class Thoughts:
    """`tokens` were spent on thinking so far, the marker that ends it included.

    After `tokens_max` of them `forced` gives `ending`, the tokens that end thinking. `thinking` at the start: the
    prompt has begun the thoughts; `may_begin`: the model may begin some now.
    """

    def __init__(
        self,
        reasoning: ReasoningFormat,
        ending: Sequence[int],
        *,
        thinking: bool,
        tokens_max: int | None,
        may_begin: bool = True,
    ) -> None:
        self.thinking = thinking
        self.may_begin = may_begin and not thinking
        self.tokens = 0
        self._begin = reasoning.begin.encode()
        self._end = reasoning.end.encode()
        self._anywhere = reasoning.anywhere
        self._ending = ending
        self._tokens_max = tokens_max
        self._spent = 0
        self._tail = b""

    def push(self, piece: bytes) -> None:
        """Takes in the bytes of the token that was just added."""
        if self.thinking:
            self.tokens += 1
            self._spent += 1
            self._tail = (self._tail + piece)[-len(self._end) - len(piece) :]
            if self._end in self._tail:
                self.thinking, self._tail = False, b""
                self.may_begin = self._anywhere
        elif self.may_begin:
            self._tail += piece
            if self._anywhere:
                self._tail = self._tail[-len(self._begin) - len(piece) :]
                begun = self._begin in self._tail
            else:
                start = self._tail.lstrip()
                begun = start.startswith(self._begin)
                self.may_begin = not begun and self._begin.startswith(start)
            if begun:
                self.thinking, self._tail, self._spent = True, b"", 0

    def forced(self) -> list[int]:
        """The tokens that end thinking, once the budget is spent; they are pushed like drawn ones."""
        if not self.thinking or self._tokens_max is None:
            return []
        over = self._spent - self._tokens_max
        due = over >= 0 and (over >= CHARACTER_TOKENS_MAX or self._complete())
        return list(self._ending) if due else []

    def _complete(self) -> bool:
        """Whether the text so far ends with a whole character."""
        end = self._tail[-4:]
        while end and end[0] & 0xC0 == 0x80:
            end = end[1:]
        return utf_8_decode(end, "replace", False)[1] == len(end)
