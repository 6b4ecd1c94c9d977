"""GBNF, the grammar notation of llama.cpp, checked and rewritten as Lark.

A rule that does not lead back to itself becomes a terminal, that is one regular expression, which the compiler matches
fastest and without the ambiguity of joined tokens; the others stay rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import msgspec

from adapters.llama_cpp.prompts import Refusal

DEPTH_MAX = 64
RULES_MAX = 2_000
REPEAT_MAX = 10_000


class Chars(msgspec.Struct, frozen=True):
    """One character out of a class, as a regular expression."""

    regex: str


class Literal(msgspec.Struct, frozen=True):
    text: str


class Reference(msgspec.Struct, frozen=True):
    name: str


class Repeated(msgspec.Struct, frozen=True):
    """`most` None: without end."""

    item: Node
    least: int
    most: int | None


class Joined(msgspec.Struct, frozen=True):
    items: tuple[Node, ...]


class Choice(msgspec.Struct, frozen=True):
    options: tuple[Node, ...]


Node = Chars | Literal | Reference | Repeated | Joined | Choice


def to_lark(source: str, param: str) -> str:
    """The same language in Lark; raises Refusal, also where llama.cpp would: no root, undefined or left-recursive."""
    rules = _Parser(source, param).rules()
    looping = _check(rules, param)
    names = {name: f"r{at}" if name in looping else f"R{at}" for at, name in enumerate(rules)}
    lines = ["%llguidance {}", f"start: {names['root']}"]
    lines += [f"{names[name]}: {_lark(node, names)}" for name, node in rules.items()]
    return "\n".join(lines) + "\n"


def _invalid(reason: str, param: str) -> Refusal:
    return Refusal("invalid_schema", f"Invalid grammar for '{param}': {reason}.", param)


# Checks


def _check(rules: dict[str, Node], param: str) -> set[str]:
    """The rules that lead into a loop; raises Refusal where the grammar cannot be used."""
    if "root" not in rules:
        raise _invalid("it has no rule named 'root'", param)
    leads = {name: set(_references(node)) for name, node in rules.items()}
    for name in set().union(*leads.values()):
        if name not in rules:
            raise _invalid(f"the rule '{name}' is not defined", param)
    order, looping = _ordered(leads)
    order += looping
    nullable = _holding(_is_nullable, order, rules)
    _, left = _ordered({name: set(_leftmost(node, nullable)) for name, node in rules.items()})
    if left:
        raise _invalid(f"the rule '{left[0]}' is left-recursive, which GBNF does not allow", param)
    if "root" not in _holding(_is_finite, order, rules):
        raise _invalid("no finite text can match it, because 'root' needs itself without end", param)
    return set(looping)


def _ordered(leads: dict[str, set[str]]) -> tuple[list[str], list[str]]:
    """The rules that lead to none but those before them, in such an order, and the others, which lead into a loop."""
    open_leads = {name: len(targets) for name, targets in leads.items()}
    users: dict[str, list[str]] = {name: [] for name in leads}
    for name, targets in leads.items():
        for target in targets:
            users[target].append(name)
    order = [name for name, count in open_leads.items() if not count]
    for name in order:
        for user in users[name]:
            open_leads[user] -= 1
            if not open_leads[user]:
                order.append(user)
    return order, [name for name, count in open_leads.items() if count]


def _holding(rule: Callable[[Node, set[str]], bool], order: list[str], rules: dict[str, Node]) -> set[str]:
    """The least set of rules for which `rule` holds, given those already in it."""
    held: set[str] = set()
    for _ in range(len(order)):
        found = {name for name in order if name not in held and rule(rules[name], held)}
        if not found:
            break
        held |= found
    return held


def _is_nullable(node: Node, nullable: set[str]) -> bool:
    match node:
        case Reference():
            return node.name in nullable
        case Literal():
            return not node.text
        case Repeated():
            return node.least == 0 or _is_nullable(node.item, nullable)
        case Joined():
            return all(_is_nullable(item, nullable) for item in node.items)
        case Choice():
            return any(_is_nullable(option, nullable) for option in node.options)
    return False


def _is_finite(node: Node, finite: set[str]) -> bool:
    match node:
        case Reference():
            return node.name in finite
        case Repeated():
            return node.least == 0 or _is_finite(node.item, finite)
        case Joined():
            return all(_is_finite(item, finite) for item in node.items)
        case Choice():
            return any(_is_finite(option, finite) for option in node.options)
    return True


def _references(node: Node) -> Iterator[str]:
    match node:
        case Reference():
            yield node.name
        case Repeated():
            yield from _references(node.item)
        case Joined():
            for item in node.items:
                yield from _references(item)
        case Choice():
            for option in node.options:
                yield from _references(option)


def _leftmost(node: Node, nullable: set[str]) -> Iterator[str]:
    """The rules that a match of `node` can begin with."""
    match node:
        case Reference():
            yield node.name
        case Repeated():
            yield from _leftmost(node.item, nullable)
        case Joined():
            for item in node.items:
                yield from _leftmost(item, nullable)
                if not _is_nullable(item, nullable):
                    return
        case Choice():
            for option in node.options:
                yield from _leftmost(option, nullable)


# Rewriting


def _lark(node: Node, names: dict[str, str]) -> str:
    match node:
        case Chars():
            return f"/{node.regex}/"
        case Literal():
            return json.dumps(node.text, ensure_ascii=False)
        case Reference():
            return names[node.name]
        case Repeated():
            most = "" if node.most is None else node.most
            return f"({_lark(node.item, names)}){{{node.least},{most}}}"
        case Joined():
            return " ".join(_lark(item, names) for item in node.items) or '""'
        case Choice():
            return "(" + " | ".join(_lark(option, names) for option in node.options) + ")"


# Reading

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COUNT = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(,)?[ \t]*(\d{1,9})?[ \t]*\}")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([nrt\\\"\[\]]))")
_PLAIN = {"n": "\n", "r": "\r", "t": "\t"}
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class _Parser:
    def __init__(self, source: str, param: str) -> None:
        self._source = source
        self._param = param
        self._at = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._source):
            name = self._name()
            self._skip(_SPACE)
            if not self._source.startswith("::=", self._at):
                raise self._error("'::=' is missing")
            self._at += 3
            self._skip(_SPACE_AND_LINES)
            rules[name] = self._choice(0)
            if self._at < len(self._source) and self._source[self._at] not in "\r\n":
                raise self._error("something that is not understood")
            self._skip(_SPACE_AND_LINES)
            if len(rules) > RULES_MAX:
                raise self._error(f"more than {RULES_MAX} rules")
        if not rules:
            raise _invalid("it is empty", self._param)
        return rules

    def _error(self, reason: str) -> Refusal:
        line = self._source.count("\n", 0, self._at) + 1
        return _invalid(f"{reason} in line {line}", self._param)

    def _skip(self, space: re.Pattern[str]) -> None:
        found = space.match(self._source, self._at)
        self._at = found.end() if found else self._at

    def _name(self) -> str:
        found = _NAME.match(self._source, self._at)
        if not found:
            raise self._error("a rule's name is missing")
        self._at = found.end()
        return found[0]

    def _choice(self, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise self._error(f"more than {DEPTH_MAX} levels of brackets")
        options = [self._joined(depth)]
        while self._source.startswith("|", self._at):
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            options.append(self._joined(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _joined(self, depth: int) -> Node:
        """Items up to what ends them; inside of brackets they may go on in the next line."""
        space = _SPACE_AND_LINES if depth else _SPACE
        items: list[Node] = []
        while (item := self._item(depth)) is not None:
            self._skip(space)
            items.append(self._repeated(item))
            self._skip(space)
        return Joined(tuple(items))

    def _item(self, depth: int) -> Node | None:
        first = self._source[self._at : self._at + 1]
        if first == '"':
            return Literal("".join(self._quoted('"')))
        if first == "[":
            return self._class()
        if first == ".":
            self._at += 1
            return Chars("(?s:.)")
        if first == "(":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            inner = self._choice(depth + 1)
            if not self._source.startswith(")", self._at):
                raise self._error("')' is missing")
            self._at += 1
            return inner
        return Reference(self._name()) if _NAME.match(first) else None

    def _class(self) -> Node:
        if self._source.startswith("[^", self._at):
            self._at += 1
            head = "[^"
        else:
            head = "["
        body = "".join("-" if one == "-" else f"\\x{{{ord(one[-1]):X}}}" for one in self._quoted("]"))
        if not body:
            raise self._error("an empty class of characters")
        return Chars(f"{head}{body}]")

    def _quoted(self, end: str) -> Iterator[str]:
        """The characters up to `end`. An escaped `-` in a class is told from a range by a backslash before it."""
        self._at += 1
        while not self._source.startswith(end, self._at):
            escape = _ESCAPE.match(self._source, self._at)
            if escape:
                self._at = escape.end()
                digits = escape[1] or escape[2] or escape[3]
                character = self._character(digits) if digits else _PLAIN.get(escape[4], escape[4])
                yield f"\\{character}" if end == "]" else character
            elif self._at >= len(self._source) or self._source[self._at] in "\\\r\n":
                raise self._error(f"a broken escape, or {end} is missing")
            else:
                self._at += 1
                yield self._source[self._at - 1]
        self._at += 1

    def _character(self, digits: str) -> str:
        value = int(digits, 16)
        if value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            raise self._error("an escape that is no character")
        return chr(value)

    def _repeated(self, item: Node) -> Node:
        while True:
            simple = _REPEATS.get(self._source[self._at : self._at + 1])
            counted = _COUNT.match(self._source, self._at)
            if simple:
                self._at += 1
                least, most = simple
            elif counted:
                self._at = counted.end()
                least = int(counted[1])
                most = int(counted[3]) if counted[3] else None if counted[2] else least
            else:
                return item
            if max(least, most or 0) > REPEAT_MAX or (most is not None and most < least):
                raise self._error(f"a repetition that is not between 0 and {REPEAT_MAX}")
            item = Repeated(item, least, most)
