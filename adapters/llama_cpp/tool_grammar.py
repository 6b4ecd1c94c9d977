"""Grammars that hold a model to calls of given tools in its own format, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from adapters.llama_cpp.formats.elements import ITEM
from adapters.llama_cpp.formats.literals import Style
from adapters.llama_cpp.formats.row import LABEL_CHARS, NAME, NUMBER, ToolFormat
from adapters.llama_cpp.formats.tagged import STRING_FLAG, TEXT, Tags, kinds_of
from adapters.llama_cpp.schema import close_objects
from adapters.types import Tool

JSON_SPACE = r"[ ]|\n[ \t]{0,32}"
"""One optional space, or a new line with its indent, between the parts of JSON."""
CALLS_MAX = 32
DEPTH_MAX = 8
JSON_KINDS = frozenset({"null", "boolean", "number", "array", "object"})
_JSON_OPTIONS = {"whitespace_pattern": JSON_SPACE, "lenient": True, "coerce_one_of": True}

Start = Literal["answer", "trigger"]
"""Where a grammar begins: with the answer, which is to be a call, or with a trigger that was just written."""


class Word(msgspec.Struct, frozen=True):
    """A piece of a marker: text, or the control token that stands for it."""

    text: str
    token: int | None = None


Words = Callable[[str], Sequence[Word]]
"""How a model's vocabulary writes a marker."""


def trigger_of(row: ToolFormat) -> str:
    """After which text a grammar that starts with the trigger holds; empty where nothing tells that calls begin."""
    if row.primed:
        return ""
    return f'{{"{row.name_key}": "' if row.anchored and row.body == "object" else row.trigger


def tool_grammar(
    row: ToolFormat,
    tools: Sequence[Tool],
    words: Words,
    *,
    parallel: bool,
    start: Start,
    typed: frozenset[str],
    content: bool = False,
) -> str:
    """A Lark grammar of one or more calls, or of exactly one unless `parallel`; with `content` also of what a grammar
    of that name matches, instead of calls.

    The arguments of the tools named in `typed` match their schemas, those of the others are any objects.
    """
    return _Grammar(row, words, typed).write(
        tools, parallel=parallel and not row.single, start=start, other="@content" if content else ""
    )


class _Grammar:
    """The rules of one grammar, as they are collected."""

    def __init__(self, row: ToolFormat, words: Words, typed: frozenset[str]) -> None:
        self._row = row
        self._words = words
        self._typed = typed
        self._rules: list[str] = []
        self._shared: dict[str, str] = {}

    def write(self, tools: Sequence[Tool], *, parallel: bool, start: Start, other: str) -> str:
        row = self._row
        # Where the answer may be something else, its message has been addressed before.
        address = row.address if start == "answer" and not other else ""
        begin = "" if address else row.begin
        leads = [self._marker(address.replace(NAME, tool.name) + row.begin if address else "") for tool in tools]
        calls = " | ".join([_joined(lead, self._call(tool)) for lead, tool in zip(leads, tools, strict=True)])
        first = row.open + begin
        call = "call"
        if start == "answer":
            first = first.removeprefix(row.primed)
        elif row.anchored and row.body == "object":
            call = f"({' | '.join([self._call(tool, trigger_of(row)) for tool in tools])})"
        else:
            first = first.partition(row.trigger)[2]
            # Where nothing opens the calls together, each begins with the trigger anew.
            parallel = parallel and bool(row.open)
            other = r"/([^a-zA-Z_](.|\n)*)?/" if row.anchored else ""
        more = f"({self._marker(row.between + begin)} call){{0,{CALLS_MAX - 1}}}" if parallel else ""
        if not (row.between + begin) and parallel:
            more = f"call{{0,{CALLS_MAX - 1}}}"
        written = _joined(self._marker(first), call, more, self._marker(row.close))
        rules = [f"start: {written} | {other}" if other else f"start: {written}", f"call: {calls}", *self._rules]
        return "%llguidance {}\n" + "\n".join(rules) + "\n"

    # Markers and text

    def _marker(self, text: str) -> str:
        """A marker as Lark terms; what stands for a call's number becomes any number."""
        terms = []
        for index, part in enumerate(text.split(NUMBER)):
            terms += ["/[0-9]{1,3}/"] if index else []
            terms += [json.dumps(one.text) if one.token is None else f"<[{one.token}]>" for one in self._split(part)]
        return " ".join(terms)

    def _split(self, text: str) -> Sequence[Word]:
        return self._words(text) if text else ()

    def _text_up_to(self, marker: str, name: str = "TEXT", text: str = r"/(.|\n)*/") -> str:
        """Any text and then `marker`. Text ends where its marker begins, whatever spaces the marker is written with."""
        bare = marker.strip()
        first, *others = self._split(bare)
        after = marker.partition(bare)[2]
        if first.token is not None:
            return _joined(self._rule(name, text), self._marker(bare + after))
        lazy = self._rule(f"text_{len(self._rules)}[suffix={json.dumps(first.text)}]", text)
        return _joined(lazy, self._marker("".join(one.text for one in others) + after))

    def _rule(self, head: str, body: str) -> str:
        """Adds a rule once; returns its name."""
        name = head.partition("[")[0]
        if name not in self._shared:
            self._shared[name] = body
            self._rules.append(f"{head}: {body}")
        return name

    def _new(self, kind: str, body: str) -> str:
        return self._rule(f"{kind}_{len(self._rules)}", body or '""')

    def _key(self) -> str:
        """Any name of a parameter."""
        return self._rule("KEY", "/[a-zA-Z_][a-zA-Z0-9_]{0,63}/")

    # Calls

    def _call(self, tool: Tool, begun: str = "") -> str:
        """A call, of which `begun` was written before."""
        row = self._row
        schema: dict[str, Any] = msgspec.json.decode(tool.parameters) if tool.name in self._typed else {}
        schema = {"type": "object"} | schema
        close_objects(schema)
        match row.body:
            case "object":
                head = f'{{{row.prefix}"{row.name_key}": "{tool.name}", "{row.arguments_key}": '
                body = _joined(self._marker(head.removeprefix(begun)), _json(schema), self._marker("}" + row.end))
            case "json":
                body = _joined(self._marker(tool.name + row.middle), _json(schema), self._marker(row.end))
            case "tagged":
                body = _joined(self._marker(tool.name + row.middle), self._tagged(schema), self._marker(row.end))
            case "elements":
                body = _joined(
                    self._marker(tool.name + row.middle), self._elements(schema, schema, 0), self._marker(row.end)
                )
            case "code":
                assert row.style is not None
                style = row.style
                head = self._marker(tool.name + style.opening)
                arguments = self._members(schema, schema, style, style.joint, 0)
                body = _joined(head, arguments, self._marker(style.closing + row.end))
        label = f"/[a-z0-9]{{{LABEL_CHARS}}}/ {self._marker(row.label_end)}" if row.label_end else ""
        return self._new("call", _joined(label, body))

    def _tagged(self, root: Mapping[str, Any]) -> str:
        """The parameters in the schema's order; any at all where it names none."""
        parameters = []
        for key, schema, required in _properties(root):
            parameter = self._new("parameter", self._parameter(json.dumps(key), schema, root))
            parameters.append(parameter if required else f"{parameter}?")
        if not parameters and root.get("additionalProperties") is not False:
            key = self._key()
            parameter = self._new("parameter", self._parameter(key, {}, root))
            parameters.append(f"{parameter}{{0,16}}")
        return " ".join(parameters)

    def _parameter(self, key: str, schema: Any, root: Mapping[str, Any]) -> str:
        tags = self._row.tags
        assert tags is not None
        kinds = kinds_of(schema)
        ways = []
        if not kinds or "string" in kinds:
            ways.append(_joined(self._middle(tags, TEXT), self._texts(schema, tags.end)))
        if kinds != TEXT and (tags.flag or not ways):
            value = _joined(_json(_within(schema, root)), self._marker(tags.end))
            ways.append(_joined(self._middle(tags, (kinds or JSON_KINDS) - TEXT), value))
        return _joined(self._marker(tags.begin), key, ways[0] if len(ways) == 1 else f"({' | '.join(ways)})")

    def _middle(self, tags: Tags, kinds: frozenset[str]) -> str:
        """The marker before a value of one of these kinds."""
        if not tags.flag:
            return self._marker(tags.middle)
        words = [str(kinds == TEXT).lower()] if tags.flag == STRING_FLAG else sorted(kinds)
        left, _, right = tags.middle.partition(tags.flag)
        return _joined(self._marker(left), f"({' | '.join(map(json.dumps, words))})", self._marker(right))

    def _texts(self, schema: Any, end: str) -> str:
        """A value as bare text and what ends it."""
        choices = _strings(schema)
        if not choices:
            return self._text_up_to(end)
        return f"({' | '.join(json.dumps(one) for one in choices)}) {self._marker(end)}"

    # Elements

    def _elements(self, schema: Any, root: Mapping[str, Any], depth: int) -> str:
        """An element for each property in the schema's order; any at all where it names none."""
        elements = []
        for key, one, required in _properties(schema):
            element = self._new("element", self._element(key, one, root, depth))
            elements.append(element if required else f"{element}?")
        if not elements and schema.get("additionalProperties") is not False:
            self._anything()
            return "any_element{0,16}"
        return " ".join(elements)

    def _element(self, tag: str, schema: Any, root: Mapping[str, Any], depth: int) -> str:
        prefix = self._row.prefix
        begin, end = self._marker(f"{prefix}<{tag}>"), f"{prefix}</"
        kinds = kinds_of(schema) or frozenset()
        containers = kinds & {"array", "object"}
        if "string" in kinds:
            return _joined(begin, self._texts(schema, end), self._marker(f"{tag}>"))
        if not kinds or (containers and containers != kinds) or depth >= DEPTH_MAX:
            self._anything()
            return f"{begin} any_content"
        ways = [] if containers else [_json(_within(schema, root))]
        if "array" in kinds:
            ways.append(f"{self._new('item', self._element(ITEM, schema.get('items'), root, depth + 1))}*")
        if "object" in kinds:
            ways.append(self._elements(schema, root, depth + 1) or '""')
        return f"{begin} ({' | '.join(ways)}) {self._marker(f'{end}{tag}>')}"

    def _anything(self) -> None:
        """Adds rules for an element, and for content and its end, that nothing is known of. Text begins as no tag does,
        so that the first character tells them apart."""
        if "any_content" in self._shared:
            return
        end = f"{self._row.prefix}</"
        text = self._text_up_to(end, "LEAF", f"/[^{re.escape(end[0])}](.|\\n)*/")
        content = f'({text} | any_element{{0,16}} {self._marker(end)}) {self._key()} ">"'
        self._rule("any_content", content)
        self._rule("any_element", f'{self._marker(self._row.prefix + "<")} {self._key()} ">" any_content')

    # Code

    def _members(self, schema: Any, root: Mapping[str, Any], style: Style, joint: str, depth: int) -> str:
        """Keys and values in the schema's order, with commas between those that are there."""
        properties = _properties(schema)
        separator = '", "' if style.escapes else '","'
        if not properties:
            if isinstance(schema, dict) and schema.get("additionalProperties") is False:
                return ""
            word = self._key()
            key = _json({"type": "string"}) if joint != style.joint else word
            member = f'{key} "{joint}" {self._any(style)}'
            return f"({member} ({separator} {member}){{0,15}})?"
        alone = following = '""'
        for key, one, required in reversed(properties):
            name = json.dumps(json.dumps(key) if joint != style.joint else key)
            member = self._new("member", f'{name} "{joint}" {self._value(one, root, style, depth)}')
            rest = following
            alone_body, following_body = f"{member} {rest}", f"{separator} {member} {rest}"
            alone = self._new("first", alone_body if required else f"{alone_body} | {alone}")
            following = self._new("next", following_body if required else f"{following_body} | {rest}")
        return alone

    def _value(self, schema: Any, root: Mapping[str, Any], style: Style, depth: int) -> str:
        kinds = kinds_of(schema)
        if depth >= DEPTH_MAX or not isinstance(schema, dict) or not kinds:
            return self._any(style)
        if isinstance(schema.get("type"), list):
            several = [self._value({**schema, "type": one}, root, style, depth + 1) for one in schema["type"]]
            return f"({' | '.join(several)})"
        if len(kinds) > 1:
            return self._any(style)
        (kind,) = kinds
        inner = depth + 1
        match kind:
            case "string" if style.escapes:
                return _json(_within(schema, root))
            case "string":
                return _joined(self._marker(style.quotes[0]), self._texts(schema, style.quotes[0]))
            case "number":
                return _json(_within(schema, root))
            case "array":
                item = self._value(schema.get("items", {}), root, style, inner)
                separator = '", "' if style.escapes else '","'
                return self._new("items", f'"[" ({item} ({separator} {item})*)? "]"')
            case "object":
                joint = ": " if style.escapes else ":"
                return self._new("object", f'"{{" {self._members(schema, root, style, joint, inner)} "}}"')
            case "boolean":
                return f'("{style.constants[0]}" | "{style.constants[1]}")'
        return f'"{style.constants[2]}"'

    def _any(self, style: Style) -> str:
        """Any literal."""
        if style.escapes:
            comma, colon = '", "', '": "'
            string = key = self._rule("string", _json({"type": "string"}))
        else:
            comma, colon = '","', '":"'
            quote = style.quotes[0]
            string = self._rule("string", _joined(self._marker(quote), self._text_up_to(quote)))
            key = self._key()
        number = _json({"type": "number"})
        constants = " | ".join(f'"{word}"' for word in style.constants)
        return self._rule(
            "any",
            f'{string} | {number} | {constants} | "[" (any ({comma} any)*)? "]"'
            f' | "{{" ({key} {colon} any ({comma} {key} {colon} any)*)? "}}"',
        )


def _joined(*terms: str) -> str:
    return " ".join(term for term in terms if term) or '""'


def _json(schema: Any) -> str:
    """Lenient, since a function that is strict has been compiled without leniency before."""
    given = schema if isinstance(schema, dict) else {}
    return "%json " + json.dumps({**given, "x-guidance": _JSON_OPTIONS})


def _within(schema: Any, root: Mapping[str, Any]) -> Any:
    """A part of a schema with the definitions it may refer to."""
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return {**definitions, **schema} if isinstance(schema, dict) else definitions


def _properties(schema: Any) -> list[tuple[str, Any, bool]]:
    """The keys an object may have, with their schemas, and whether they must be there."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return []
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    return [(key, one, key in required) for key, one in properties.items()]


def _strings(schema: Any) -> list[str]:
    """The texts a schema leaves to choose from, none where it leaves any."""
    if not isinstance(schema, dict):
        return []
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return [one for one in choices if isinstance(one, str)] if isinstance(choices, list) else []
