"""Constraints compiled over real vocabularies of each kind."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest

from adapters.llama_cpp.grammar import Compiler, Guide, Masks
from adapters.llama_cpp.native import Model, Vocabulary, quiet
from adapters.llama_cpp.prompts import Refusal
from adapters.types import Constraint
from tests.models import random_gguf, vocabularies

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["bpe", "spm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    quiet()
    path = tmp_path_factory.mktemp("models") / "model.gguf"
    words = vocabularies.byte_level_bpe(1024) if request.param == "bpe" else vocabularies.sentence_piece()
    random_gguf.write_decoder(path, random_gguf.LLAMA_TINY, words, 1)
    return Model(path, gpu_layers=0, progress=lambda fraction: None)


@pytest.fixture(scope="module")
def compiler(model: Model) -> Iterator[Compiler]:
    made = Compiler(model.vocabulary)
    yield made
    made.close()


def schema(of: object, *, strict: bool = True) -> Constraint:
    return Constraint("json_schema", json.dumps(of), strict)


def denied(vocabulary: Vocabulary, *guides: Guide) -> np.ndarray:
    masks = Masks(vocabulary.size, len(guides))
    masks.begin(list(guides))
    rows = masks.end() < 0
    masks.close()
    return rows


def takes(model: Model, compiler: Compiler, constraint: Constraint, text: str) -> bool:
    """Whether a text matches, token by token as the masks say, and may end there."""
    vocabulary = model.vocabulary
    guide = compiler.guide(compiler.compile(constraint))
    for token in compiler.prepare().tokenize_str(text):
        if guide.complete or denied(vocabulary, guide)[0][token]:
            return False
        guide.accept(token, vocabulary.piece(token))
    return guide.complete or not denied(vocabulary, guide)[0][vocabulary.eos]


LARK = 'start: item ("," item)*\nitem: /[a-z]+/ | "(" start ")"'
GBNF = 'root ::= item ("," item)*\nitem ::= [a-z]+ | "(" root ")"'


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (schema(PERSON), ['{"name": "é\\n", "age": -5}', '{"name":"","age":0}'], ['{"age": 5}']),
        (schema({"type": "integer", "minimum": -3}), ["-3", "0", "12345"], ["-4", "01", "1.0", "+1"]),
        (Constraint("json_object"), ['{"a": [1, null]}', "{}", '{\n  "a": 1\n}'], ["[]", "1", '{"a": 1', " {}", ""]),
        (schema({"enum": ["a", 1, None]}), ['"a"', "1", "null"], ["2", '"b"', "a"]),
        (schema({"type": "string", "pattern": "^[0-9]{3}$"}), ['"123"'], ['"12"', '"1234"', "123"]),
        (schema({"type": "string", "format": "time"}), ['"23:59:59Z"', '"01:02:03.5+01:00"'], ['"23:59:60Z"']),
        (schema({"type": "array", "items": {"type": "boolean"}, "minItems": 2}), ["[true, false]"], ["[true]"]),
        (Constraint("regex", "[0-9]{3}-[a-z]+"), ["123-a", "000-xyz"], ["12-a", "123-", "123-aB"]),
        (Constraint("regex", "^(yes|no)$"), ["yes", "no"], ["maybe", "yesno"]),
        (Constraint("choice", '["yes","no","noé \\"1\\""]'), ["yes", "no", 'noé "1"'], ["", "ye", "noé"]),
        (Constraint("lark", LARK), ["a", "ab,(c,(d))"], ["", "a,", "(a", "1"]),
        (Constraint("gbnf", GBNF), ["a", "ab,(c,(d))"], ["", "a,", "(a", "1"]),
    ],
)  # fmt: skip
def test_what_matches_and_what_does_not(
    model: Model, compiler: Compiler, constraint: Constraint, good: list[str], bad: list[str]
) -> None:
    assert [text for text in good if not takes(model, compiler, constraint, text)] == []
    assert [text for text in bad if takes(model, compiler, constraint, text)] == []


@pytest.mark.parametrize(
    ("constraint", "code", "word"),
    [
        (schema({"type": "array", "uniqueItems": True}), "unsupported_schema", "'uniqueItems'"),
        (schema({"if": {}, "then": {}}), "unsupported_schema", "'if', 'then'"),
        (schema({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "unsupported_schema", "'oneOf'"),
        (schema({"type": "string", "format": "moon-phase"}), "unsupported_schema", "moon-phase"),
        (schema({"type": "string", "pattern": "^(?=a)b"}), "unsupported_schema", "look-around"),
        (schema({"type": "strin"}), "invalid_schema", "strin"),
        (schema({"properties": 5}), "invalid_schema", "properties"),
        (schema({"$ref": "#/$defs/nothing"}), "invalid_schema", "nothing"),
        (schema({"type": "integer", "minimum": 5, "maximum": 2}), "invalid_schema", "nsatisfiable"),
        (schema(False), "invalid_schema", "finite"),
        (Constraint("regex", "(a"), "invalid_schema", "unclosed"),
        (Constraint("regex", r"\bx"), "unsupported_schema", "look-around"),
        (Constraint("regex", "a" * 70_000), "unsupported_schema", "KiB"),
        (Constraint("lark", "start: foo"), "invalid_schema", "foo"),
        (Constraint("lark", "start: start"), "invalid_schema", "no text"),
        (Constraint("lark", 'start: "a" start'), "unsupported_schema", "complex"),
        (Constraint("lark", "  "), "invalid_schema", "mpty"),
        (Constraint("lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "invalid_schema", "nested"),
        (Constraint("gbnf", "root ::= foo"), "invalid_schema", "'foo'"),
        (Constraint("choice", json.dumps(["x"] * 20_000)), "unsupported_schema", "choices"),
        (schema({"properties": {f"{n}": {"pattern": f"^{n}a"} for n in range(5000)}}), "unsupported_schema", "complex"),
        (schema({"type": "integer", "multipleOf": 999_999_937}), "unsupported_schema", "complex"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_refused(compiler: Compiler, constraint: Constraint, code: str, word: str) -> None:
    with pytest.raises(Refusal) as caught:
        compiler.compile(constraint)
    assert (caught.value.code, caught.value.param) == (code, "response_format")
    assert word in caught.value.message and len(caught.value.message) < 400


@pytest.mark.slow
def test_a_schema_that_takes_for_ever_is_refused_and_the_next_one_is_not(compiler: Compiler) -> None:
    endless = {"allOf": [{"type": "string", "pattern": f".*a{'.' * n}b{n}.*"} for n in range(20)]}
    with pytest.raises(Refusal, match="too complex"):
        compiler.compile(schema(endless))
    compiler.compile(schema({"const": "still here"}))


def test_a_panic_of_the_compiler_is_a_refusal_and_shows_nobody_the_schema(
    compiler: Compiler, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refusal):
        compiler.compile(schema({"type": "string", "minLength": "é" * 500}))
    assert capfd.readouterr().err == ""


def test_the_process_that_compiles_first_is_started_again(compiler: Compiler) -> None:
    compiler.compile(schema({"const": "before"}))
    process = compiler._vetter._process
    assert process is not None
    process.kill()
    process.wait()
    compiler.compile(schema({"const": "after"}))


def test_without_strict_what_cannot_be_enforced_is_left_out(model: Model, compiler: Compiler) -> None:
    loose = schema({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, strict=False)
    assert takes(model, compiler, loose, "[1, 1]") and not takes(model, compiler, loose, '["a"]')


def test_a_grammar_is_compiled_once_and_all_are_counted(model: Model) -> None:
    clock_ns = itertools.count(0, 5_000_000)
    compiler = Compiler(model.vocabulary, lambda: next(clock_ns))
    first = compiler.compile(schema(PERSON))
    assert compiler.compile(schema(PERSON)) is first
    assert compiler.compile(schema(PERSON, strict=False)) is not first
    for wrong in (Constraint("regex", "(?=a)b"), Constraint("regex", "(?=a)b"), schema({"type": 3})):
        with pytest.raises(Refusal):
            compiler.compile(wrong)
    counters = compiler.counters
    assert (counters.compiled, counters.reused, counters.refused) == (2, 1, 3)
    assert counters.compile_us % 5_000 == 0 and counters.compile_us >= 10_000
    compiler.close()


def test_masks_of_many_guides_are_those_of_each(model: Model, compiler: Compiler) -> None:
    guides = [compiler.guide(compiler.compile(one)) for one in (schema(PERSON), Constraint("regex", "[ab]"))]
    together = denied(model.vocabulary, *guides)
    assert together.shape == (2, model.vocabulary.size)
    for guide, row in zip(guides, together, strict=True):
        assert (denied(model.vocabulary, guide)[0] == row).all()


def test_no_token_that_comes_out_as_nothing_is_ever_allowed(model: Model, compiler: Compiler) -> None:
    """Or the text would be another than the one that was checked."""
    vocabulary = model.vocabulary
    guide = compiler.guide(compiler.compile(Constraint("regex", "(?s:.)*")))
    allowed = np.flatnonzero(~denied(vocabulary, guide)[0]).tolist()
    assert [token for token in allowed if not vocabulary.piece(token) and token not in vocabulary.end] == []
    assert len(allowed) > 256


def test_forced_tokens_are_the_tokenisers_own(model: Model, compiler: Compiler) -> None:
    guide = compiler.guide(compiler.compile(schema({"const": "because water"})))
    tokens = guide.forced(100)
    assert b"".join(map(model.vocabulary.piece, tokens)) == b'"because water"'
    assert tokens == compiler.prepare().tokenize_str('"because water"')
    assert guide.complete and guide.forced(100) == []


def test_forced_tokens_stop_at_the_limit_and_go_on_from_there(model: Model, compiler: Compiler) -> None:
    guide = compiler.guide(compiler.compile(schema({"const": "because water"})))
    tokens = [token for _ in range(30) for token in guide.forced(1)]
    assert b"".join(map(model.vocabulary.piece, tokens)) == b'"because water"'


def write(compiler: Compiler, guide: Guide, *texts: str) -> None:
    """Writes texts, each split into tokens by itself."""
    tokenizer = compiler.prepare()
    for text in texts:
        for token in tokenizer.tokenize_str(text):
            guide.accept(token, tokenizer.decode_bytes([token]))


def state(guide: Guide) -> tuple[bool, bool]:
    return guide.active, guide.complete


def test_a_guide_waits_for_its_marker(compiler: Compiler) -> None:
    guide = compiler.guide(compiler.compile(Constraint("regex", "[0-9]")), after=b"</think>")
    assert (guide.active, guide.may_end, guide.forced(9)) == (False, False, [])
    write(compiler, guide, "water and </thin", " and so", "</think")
    assert state(guide) == (False, False)
    write(compiler, guide, ">")
    assert state(guide) == (True, False)
    write(compiler, guide, "7")
    assert state(guide) == (True, True)


def test_a_token_that_runs_past_the_marker_is_cut(compiler: Compiler) -> None:
    guide = compiler.guide(compiler.compile(Constraint("regex", "[0-9]")), after=b"END")
    kept = guide.accept(5, b"THE END of it")
    assert guide.active
    assert compiler.prepare().decode_str(kept).strip() == "THE END"


def test_a_guide_can_come_back_for_every_call_in_free_text(compiler: Compiler) -> None:
    guide = compiler.guide(compiler.compile(Constraint("regex", "[0-9]!")), after=b"<", again=True)
    assert guide.may_end
    for _ in range(2):
        write(compiler, guide, "and", "<")
        assert state(guide) == (True, False)
        write(compiler, guide, "7")
        assert guide.forced(5) == compiler.prepare().tokenize_str("!")
        assert state(guide) == (False, False)


@pytest.mark.parametrize(
    ("text", "held"),
    [('{"name": "', True), (' \n{"name": "', True), ('So {"name": "', False), ('{"x": {"name": "', False)],
)
def test_an_anchored_guide_holds_only_from_the_start(model: Model, compiler: Compiler, text: str, held: bool) -> None:
    grammar = compiler.compile(Constraint("lark", 'start: "f\\"}"'))
    guide = compiler.guide(grammar, after=b'{"name": "', again=True, anchored=True)
    for character in text:
        guide.accept(0, character.encode())
    assert guide.active == held and guide.may_end
