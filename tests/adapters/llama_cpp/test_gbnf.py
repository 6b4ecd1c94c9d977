"""GBNF: what is refused, and what language comes out."""

from __future__ import annotations

import pytest

from adapters.llama_cpp.gbnf import to_lark
from adapters.llama_cpp.prompts import Refusal


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "empty"),
        ("# nothing but a comment", "empty"),
        ('x ::= "a"', "no rule named 'root'"),
        ("root ::= foo", "'foo' is not defined"),
        ('root ::= root "a" | "b"', "left-recursive"),
        ('root ::= a\na ::= b\nb ::= "x"? a "c" | "q"', "left-recursive"),
        ('root ::= ("x"* | ws) root "a" | "b"\nws ::= " "?', "left-recursive"),
        ('root ::= "a" root', "without end"),
        ('root ::= "a" b\nb ::= "b" c\nc ::= "c" b', "without end"),
        ('root ::= "a', "missing in line 1"),
        ('root ::= "a"\nb ::= [a-', "missing in line 2"),
        ("root ::= []", "empty class"),
        ('root ::= "\\q"', "broken escape"),
        ('root ::= "\\uD800"', "no character"),
        ('root ::= "a"{3,2}', "repetition"),
        ('root ::= "a"{99999}', "repetition"),
        ("root ::= " + "(" * 2000, "levels of brackets"),
        ('root "a"', "'::=' is missing"),
        ('root ::= "a" )', "not understood"),
        ('root ::= ("a"', "')' is missing"),
        ("\n".join(f'r{n} ::= "a"' for n in range(3000)), "more than 2000 rules"),
    ],
)
def test_what_is_refused(source: str, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        to_lark(source, "grammar")
    assert caught.value.code == "invalid_schema" and caught.value.param == "grammar"
    assert reason in caught.value.message


def test_rules_that_never_come_back_are_terminals() -> None:
    lark = to_lark('root ::= item | "(" root ")"\nitem ::= [a-z]+ ws\nws ::= " "*  # blanks', "grammar")
    assert lark.splitlines() == [
        "%llguidance {}",
        "start: r0",
        'r0: (R1 | "(" r0 ")")',
        r"R1: (/[\x{61}-\x{7A}]/){1,} R2",
        'R2: (" "){0,}',
    ]


def test_a_rule_may_go_on_in_the_next_line_inside_of_brackets_and_after_a_bar() -> None:
    lark = to_lark('root ::= (\n "a"\n "b" # c\n) |\n  [^\\]\\n] .', "grammar")
    assert lark.splitlines()[-1] == r'R0: ("a" "b" | /[^\x{5D}\x{A}]/ /(?s:.)/)'
