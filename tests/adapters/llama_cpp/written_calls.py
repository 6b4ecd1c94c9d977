"""Calls as name and arguments, written as the models of each format do: what the parser is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adapters.llama_cpp import writing
from adapters.llama_cpp.formats.row import ToolFormat
from adapters.types import ToolCall

Call = tuple[str, dict[str, Any]]


def written(row: ToolFormat, calls: Sequence[Call]) -> str:
    """`calls` as a model of the format `row` writes them, from where its prompt ends."""
    given = [ToolCall("call_1", name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    return writing.written(row, given)
