import tracemalloc
from collections.abc import Iterator
from threading import Thread

import pytest

from adapters.llama_cpp.sandbox import LimitError, Limits, Sandbox

LIMITS = Limits(
    source_chars_max=100_000, output_chars_max=200_000, work_chars_max=1_000_000, steps_max=20_000, time_s=60
)
NS = "{% set ns = namespace(x='ab', y=[1], z=3) %}{% for i in range(60) %}"
BIG = "{% set b = 'a' * 1000 %}"
MANY = BIG + "{% set many = range(9999) | map(attribute='none', default=b) | list %}"


def render(source: str, limits: Limits = LIMITS) -> str:
    sandbox = Sandbox(limits)
    return sandbox.render(sandbox.template(source), {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** 10 ** 10 }}",
        NS + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        NS + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        NS + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        NS + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        NS + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        NS + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        NS + "{% set ns.x = ns.x.join(['', '', '']) %}{% endfor %}",
        NS + "{% set ns.x = ns.x.replace('a', 'aaa') %}{% endfor %}",
        NS + "{% set ns.x = ns.x | replace('a', 'aaa') %}{% endfor %}",
        NS + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y }}",
        NS + "{% set ns.y = (ns.y, ns.y) %}{% endfor %}{{ ns.y == ns.y }}",
        NS + "{% set ns.y = {'a': ns.y, 'b': ns.y} %}{% endfor %}{{ ns.y | tojson }}",
        NS + "{% set ns.y = dict(a=ns.y, b=ns.y) %}{% endfor %}{{ ns.y | string }}",
        NS + "{% set ns.y = ns.y + ns.y %}{% endfor %}{{ ns.y }}",
        NS + "{% set ns.z = ns.z * ns.z %}{% endfor %}{{ ns.z }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a' | indent(10 ** 9) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        MANY + "{{ many | join }}",
        MANY + "{{ many | string }}",
        MANY + "{{ many | upper }}",
        MANY + "{{ many | tojson }}",
        MANY + "{{ many }}",
        MANY + "{{ ''.join(many) }}",
        BIG + "{{ range(9999) | map(attribute='none', default=b) | tojson }}",
        BIG + "{{ ('{0}' * 9999).format(b) }}",
        BIG + "{{ ('%(a)s' * 9999) % {'a': b} }}",
        BIG + "{{ b.replace('', b) }}",
        BIG + "{% for i in range(9999) %}{{ b[1:] | length }}{% endfor %}",
        "{% for i in range(9999) %}" + "x" * 1000 + "{% endfor %}",
        "{% macro m() %}"
        + "x" * 1000
        + "{% endmacro %}{% set x %}{% for i in range(9999) %}{{ m() }}{% endfor %}{% endset %}",
        "x" * 100_001,
    ],
)
def test_a_bomb_is_refused_before_it_takes_memory(source: str) -> None:
    tracemalloc.start()
    with pytest.raises(LimitError):
        render(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20


def test_the_limits_are_kept_in_a_thread() -> None:
    """Calls that nest as deep as Python allows need less than the stack of a thread."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            render("{% macro f(x) %}{{ f([x]) | upper }}{% endmacro %}{{ f(1) }}")
        except LimitError as error:
            raised.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert [str(error) for error in raised] == ["calls nested too deeply"]


def test_time_is_limited() -> None:
    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 0.01

    clock = ticks()
    sandbox = Sandbox(Limits(time_s=2), lambda: next(clock))
    quick, slow = (sandbox.template("{% for i in range(" + count + ") %}.{% endfor %}") for count in ("50", "999"))
    assert sandbox.render(quick, {}) == "." * 50
    with pytest.raises(LimitError, match="longer than 2 s"):
        sandbox.render(slow, {})


@pytest.mark.parametrize(
    "reach",
    [
        "''.__class__",
        "[].extend([1])",
        "{}.update(a=1)",
        "''.ljust(9)",
        "(1).to_bytes(9)",
        "'{0.__class__.x}'.format(1)",
        "'{a}'.format_map({'a': 1})",
        "lipsum()",
        "self._TemplateReference__context",
    ],
)
def test_what_is_out_of_reach(reach: str) -> None:
    with pytest.raises(Exception, match=r"unsafe|undefined|not available"):
        render("{{ (" + reach + ").x }}")


def test_output_is_limited() -> None:
    with pytest.raises(LimitError, match="more than 10 characters of output"):
        render("{{ 'a' * 11 }}", Limits(output_chars_max=10))


def test_the_budget_is_new_for_each_rendering() -> None:
    sandbox = Sandbox(Limits(steps_max=150))
    template = sandbox.template("{% for i in range(100) %}{% endfor %}")
    assert [sandbox.render(template, {}) for _ in range(3)] == ["", "", ""]


def test_a_namespace_that_holds_itself_can_be_shown() -> None:
    assert render("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}{{ ns.a }}") == "<Namespace>[<Namespace>]"


def test_what_grew_weighs_more() -> None:
    grown = "{% set a = [] %}{% set b = [a, a] %}{{ b }}"
    grown += "{% for i in range(99) %}{% set _ = a.append('x' * 99) %}{% endfor %}"
    with pytest.raises(LimitError, match="of work"):
        render(grown + "{% for i in range(9) %}{{ b }}{% endfor %}", Limits(work_chars_max=90_000))
    with pytest.raises(LimitError, match="nested too deeply"):
        render("{% set a = [] %}{% set _ = a.append(a) %}{{ a }}")
