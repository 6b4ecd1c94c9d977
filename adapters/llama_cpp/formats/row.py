"""What the row of a family says: how its models write tool calls."""

from __future__ import annotations

from typing import Literal

import msgspec

from adapters.llama_cpp.formats.literals import Style
from adapters.llama_cpp.formats.tagged import Tags

NUMBER = "{n}"
"""Stands in `middle`, and in the `prefix` of an object, for the position of the call, counted from 0."""
NAME = "{name}"
"""Stands in `address` for the name of the function."""
LABEL_CHARS = 10
"""How many small letters and digits a label has."""


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models writes calls: `open`, then for each `begin`, the call, `end`, with `between` in between,
    then `close`. Spaces around the markers count when a call is written, not when it is read.

    The call is, by `body`: an `object` with a name and arguments under the two keys; a name, `middle`, and arguments as
    `json`, between `tags`, or as `elements` with `prefix` before each tag; or `code` in a style. `middle_end` is how
    `middle` ends however it begins. `label_end` ends a label that the model makes up and writes before the name. With
    an `address` each message begins with whom it is for, which is not shown, and this is a call's. A chat template that
    holds all of `marks` and none of `unless`, or one of `also`, teaches this format.

    `trigger` is what begins calls in a text, `triggers` are other beginnings that are understood, after which a call
    follows at once; with `anchored` these count at the start of an answer only. `primed` is how far the prompt has
    already begun a call. `skips` frame text and are not shown, nor are `opening_skips` at the start of an answer.
    """

    name: str
    marks: tuple[str, ...]
    unless: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    body: Literal["object", "json", "tagged", "elements", "code"]
    open: str = ""
    address: str = ""
    begin: str = ""
    label_end: str = ""
    middle: str = ""
    middle_end: str = ""
    end: str = ""
    between: str = ""
    close: str = ""
    trigger: str
    triggers: tuple[str, ...] = ()
    anchored: bool = False
    primed: str = ""
    single: bool = False
    prefix: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    tags: Tags | None = None
    style: Style | None = None
    skips: tuple[str, ...] = ()
    opening_skips: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Whatever this format writes around calls and text, so that control tokens among it can be shown."""
        tags = self.tags
        around = (
            self.open,
            self.begin,
            self.label_end,
            self.middle,
            self.end,
            self.between,
            self.close,
            self.trigger,
            self.primed,
        )
        parts = (tags.begin, tags.middle, tags.end) if tags else ()
        quotes = self.style.quotes if self.style else ()
        return tuple(text for text in (*around, *self.triggers, *self.skips, *parts, *quotes) if text.strip())
