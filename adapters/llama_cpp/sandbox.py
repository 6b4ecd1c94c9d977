"""Jinja2's immutable sandbox, with limits on time, work and memory that a template cannot step around.

Jinja2's own sandbox guards what a template may touch, not how long it runs. Here every loop iteration and call is a
step, everything that makes text or lists is charged for its size, and both look at the clock. This is done by rewriting
the parsed template (`_Meter`), by charging calls and operators in the environment, and by leaving out the filters and
methods that grow text without need. What is left unmetered is linear in things already paid for.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import msgspec
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape


class Limits(msgspec.Struct, frozen=True):
    """What one rendering may use. `work_chars_max` bounds all text and lists it makes on its way, kept or not."""

    source_chars_max: int = 1 << 20
    output_chars_max: int = 16 << 20
    work_chars_max: int = 128 << 20
    steps_max: int = 1_000_000
    time_s: float = 2.0


LIMITS = Limits()


class LimitError(Exception):
    """A rendering used more than its `Limits`."""


class Budget:
    """What is left of the limits of one rendering."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._deadline = clock() + limits.time_s
        self._steps = limits.steps_max
        self._chars = limits.work_chars_max
        self._weights: dict[int, tuple[int, object]] = {}

    def step(self, chars: int = 0) -> None:
        """Pays for one step that makes `chars` characters or items."""
        self._steps -= 1
        self._chars -= chars
        if self._steps < 0:
            raise LimitError(f"more than {self._limits.steps_max} steps")
        if self._chars < 0:
            raise LimitError(f"more than {self._limits.work_chars_max} characters of work")
        if self._clock() > self._deadline:
            raise LimitError(f"longer than {self._limits.time_s:g} s")

    def text(self, value: object) -> str:
        """`str(value)`, paid for before it is made."""
        if type(value) is str:
            self.step(len(value))
            return value
        self.step(self._weigh(value))
        return str(value)

    def made(self, value: Any) -> Any:
        """`value`, a new string or container, after paying for it and checking how large it is written out."""
        self.step(_size(value))
        if isinstance(value, (list, tuple, dict)):
            self._weigh(value)
        return value

    def changed(self) -> None:
        """A list may weigh something else from now on, and so may whatever holds it."""
        self._weights.clear()

    def _weigh(self, value: object) -> int:
        """The rough size of `str(value)`. A container met before is not walked again, so that one which holds another
        twice, which holds another twice, and so on, costs its depth and not its size."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, (list, tuple, dict)):
            return 8
        known = self._weights.get(id(value))
        if known is not None:
            return known[0]
        self.step()
        items: Iterable[object] = (*value.keys(), *value.values()) if isinstance(value, dict) else value
        weight = 2 + sum(2 + self._weigh(item) for item in items)
        if weight > self._limits.work_chars_max:
            raise LimitError(f"a value of more than {self._limits.work_chars_max} characters")
        self._weights[id(value)] = weight, value
        return weight


def _size(value: object) -> int:
    """What a new string or container costs: its characters, or the bytes of its references."""
    if isinstance(value, str):
        return len(value)
    return 8 * len(value) if isinstance(value, (list, tuple, dict)) else 0


# The budget travels in the variables of a rendering under a name that no template can spell.
_BUDGET = "the budget"

_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha"),
            *("isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isspace", "istitle"),
            *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
            *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"),
            *("title", "upper"),
        )
    ),
    list: frozenset(("index", "count", "copy", "append", "pop")),
    tuple: frozenset(("index", "count")),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    int: frozenset(),
    float: frozenset(),
}
_FILTERS = (
    *(
        "abs",
        "attr",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "groupby",
        "int",
        "items",
        "last",
        "length",
    ),
    *("map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique"),
)
# Without autoescape "safe" means nothing; Jinja2's own would make `+` escape what follows.
_TEXT_FILTERS: Mapping[str, Callable[..., str]] = {
    "capitalize": str.capitalize,
    "e": lambda text: str(escape(text)),
    "escape": lambda text: str(escape(text)),
    "lower": str.lower,
    "safe": str,
    "string": str,
    "title": FILTERS["title"],
    "trim": str.strip,
    "upper": str.upper,
}
_WIDE = re.compile(r"\*|[0-9]{4}")
_WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(\*|[0-9]{4})")
_INTEGER_BITS_MAX = 256


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[_BUDGET]
    return budget


@pass_context
def _stepped(context: Context, value: Any, chars: int) -> Any:
    _budget(context).step(chars)
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget(context).made(value)


@pass_context
def _text(context: Context, value: object) -> str:
    return _budget(context).text(value)


@pass_context
def _join(context: Context, value: Iterable[object], d: object = "", attribute: str | int | None = None) -> str:
    budget = _budget(context)
    separator = budget.text(d)
    if attribute is not None:
        value = (context.environment.getitem(item, attribute) for item in value)
    parts = []
    for item in value:
        parts.append(budget.text(item))
        budget.step(len(separator))
    return separator.join(parts)


@pass_context
def _replace(context: Context, value: object, old: object, new: object, count: int | None = None) -> str:
    budget = _budget(context)
    text, old, new = budget.text(value), budget.text(old), budget.text(new)
    budget.step(len(text) + len(new) * text.count(old))
    return text.replace(old, new, -1 if count is None else count)


@pass_context
def _indent(context: Context, value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    budget = _budget(context)
    text = budget.text(value)
    margin = len(width) if isinstance(width, str) else width
    budget.step(len(text) + margin * (text.count("\n") + 1))
    return do_indent(text, width, first, blank)


@pass_context
def _list(context: Context, value: Iterable[object]) -> list[object]:
    budget = _budget(context)
    if isinstance(value, str):
        budget.step(8 * len(value))
    made: list[object] = budget.made(list(value))
    return made


@pass_context
def _format(context: Context, value: object, *args: object, **kwargs: object) -> str:
    return _percent(context, str(value), kwargs or args)


def _percent(context: Context, pattern: str, values: object) -> str:
    budget = _budget(context)
    if _WIDE_PERCENT.search(pattern):
        raise LimitError("a field of a thousand characters or more")
    budget.step(len(pattern) + pattern.count("%") * len(budget.text(values)))
    return pattern % values


def _plain(value: object) -> object:
    """What `json` cannot write itself: lazy sequences become lists."""
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, Iterable) and not isinstance(value, jinja2.Undefined):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja2's own filter, as transformers and llama.cpp write it."""
    budget = _budget(context)
    if isinstance(indent, int) and indent > 32:
        raise LimitError("an indentation of more than 32")
    budget.made([value])
    text: str = budget.made(
        json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            default=lambda item: budget.made(_plain(item)),
        )
    )
    return text


def _textual(function: Callable[..., str]) -> Callable[..., str]:
    """A filter of text whose input is paid for."""

    @pass_context
    def charged(context: Context, value: object, *args: Any, **kwargs: Any) -> str:
        return function(_budget(context).text(value), *args, **kwargs)

    return charged


class _Namespace(Namespace):
    """Jinja2's, written without its contents, since these may hold itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Formatter(SandboxedFormatter):
    def __init__(self, environment: jinja2.Environment, budget: Budget) -> None:
        super().__init__(environment)
        self._budget = budget

    def format_field(self, value: Any, format_spec: str) -> str:
        if _WIDE.search(format_spec):
            raise LimitError("a field of a thousand characters or more")
        text = self._budget.text(value)
        return format(value, format_spec) if format_spec else text


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what an assistant wrote, for training; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filter(node: nodes.Expr, name: str, *args: object) -> nodes.Filter:
    return nodes.Filter(node, name, [nodes.Const(arg) for arg in args], [], None, None, lineno=node.lineno)


class _Meter(NodeTransformer):
    """Puts a step at the head of every loop and macro, and a charge on everything that makes text or containers."""

    def _head(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        chars = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        step = _filter(nodes.Const(True, lineno=node.lineno), "stepped", chars)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = _head  # noqa: N815

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.test is not None:
            step = _filter(nodes.Const(True, lineno=node.lineno), "stepped", 0)
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return self._head(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _filter(part, "text") for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def _container(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if constant or stored else _filter(node, "made")

    visit_List = visit_Tuple = visit_Dict = _container  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "made") if isinstance(node.arg, nodes.Slice) else node


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates that pay for what they do, and renders them under `limits`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        # Folding constants would compute them at compile time, outside of every limit.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self._limits = limits
        self._clock = clock
        self.filters = {name: FILTERS[name] for name in _FILTERS}
        self.filters |= {name: _textual(function) for name, function in _TEXT_FILTERS.items()}
        self.filters |= {
            "made": _made,
            "stepped": _stepped,
            "text": _text,
            "join": _join,
            "replace": _replace,
            "indent": _indent,
            "list": _list,
            "format": _format,
            "tojson": _tojson,
            "from_json": json.loads,
            "sum": sum,
        }
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]

    def template(self, source: str) -> jinja2.Template:
        """The compiled template; raises LimitError or whatever Jinja2 and Python find wrong with it."""
        if len(source) > self._limits.source_chars_max:
            raise LimitError(f"{len(source)} characters of source, at most {self._limits.source_chars_max} allowed")
        tree = _Meter().visit(self.parse(source))
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The text of `template`; raises LimitError, what the template raises, or what breaks in it."""
        budget = Budget(self._limits, self._clock)
        parts, size = [], 0
        try:
            for part in template.generate({**variables, _BUDGET: budget}):
                size += len(part)
                if size > self._limits.output_chars_max:
                    raise LimitError(f"more than {self._limits.output_chars_max} characters of output")
                parts.append(part)
        except RecursionError as exc:
            raise LimitError("calls nested too deeply") from exc
        return "".join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Unlike in Jinja2's, lists may change (Kimi K2 queues the ids of its calls): all are of this one rendering."""
        methods = _METHODS.get(type(obj))
        safe = type(obj) is list or super().is_safe_attribute(obj, attr, value)
        return safe and (methods is None or attr in methods)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        pattern = value.__self__

        @pass_context
        def charged(context: Context, *args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                raise SecurityError("format_map is not available in templates")
            return _Formatter(self, _budget(context)).vformat(pattern, args, kwargs)

        return charged

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = _budget(__context)
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "join":
            return _join(__context, args[0], owner)
        if isinstance(owner, str) and __obj.__name__ == "replace":
            return _replace(__context, owner, *args)
        if isinstance(owner, list):
            budget.changed()
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "%" and isinstance(left, str):
            return _percent(context, left, right)
        if operator == "+":
            budget.step(_size(left))
        elif operator == "*" and isinstance(right, int) and _size(left):
            budget.step(_size(left) * right)
        elif operator == "*" and isinstance(left, int) and _size(right):
            budget.step(_size(right) * left)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _INTEGER_BITS_MAX:
                raise LimitError(f"a number of more than {_INTEGER_BITS_MAX} bits")
        return budget.made(super().call_binop(context, operator, left, right))
