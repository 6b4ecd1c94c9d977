"""YAML text as plain values, with the line each of them came from."""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlError(ValueError):
    """The text is not the YAML this gateway reads; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


class _Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2 reads them: only true and false are booleans (so `batch_padding: on` is text), no dates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")


def parse(text: str) -> tuple[Any, dict[str, int]]:
    """The document's value and a map from a path such as `models[0].name` to its line (of the key, for a mapping).

    Raises YamlError: bad syntax, a duplicate key, an alias that contains itself, a tag outside plain YAML.
    """
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            value = None if node is None else _value(loader, node, "", lines, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, error.problem or "not valid YAML") from None
    except yaml.YAMLError as error:
        raise YamlError(1, str(error).splitlines()[0]) from None
    return value, lines


def scalar(text: str) -> Any:
    """The value of one YAML expression, for settings that arrive as text."""
    return parse(text)[0]


def _value(loader: _Loader, node: yaml.Node, path: str, lines: dict[str, int], above: tuple[yaml.Node, ...]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if node in above or len(above) > 32:
        raise YamlError(node.start_mark.line + 1, "values are nested too deeply or contain themselves")
    inside = (*above, node)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, lines, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, f"{path}[{i}]", lines, inside) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise YamlError(node.start_mark.line + 1, str(error)) from None


def _mapping(
    loader: _Loader, node: yaml.MappingNode, path: str, lines: dict[str, int], inside: tuple[yaml.Node, ...]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(line, "a key must be plain text")
        key = key_node.value
        child = f"{path}.{key}" if path else key
        if key in values:
            raise YamlError(line, f"at {child}: set a second time (first on line {lines[child]})")
        lines[child] = line
        values[key] = _value(loader, value_node, child, lines, inside)
    return values
