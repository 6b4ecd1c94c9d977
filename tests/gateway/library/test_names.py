"""Names of models, and the files they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.library.errors import InvalidReference, NotFound
from gateway.library.names import (
    Reference,
    RemoteFile,
    check_paths,
    label,
    parse,
    path_problem,
    select,
    variants,
)

GB = 10**9


def files(*sizes: tuple[str, float]) -> list[RemoteFile]:
    return [RemoteFile(path, int(size * GB), "0" * 64) for path, size in sizes]


REPOSITORY = files(
    ("README.md", 0),
    ("model-Q2_K.gguf", 1),
    ("model-Q4_K_M.gguf", 2),
    ("Q8_0/model-Q8_0-00001-of-00002.gguf", 2),
    ("Q8_0/model-Q8_0-00002-of-00002.gguf", 1.5),
    ("model-F16-00001-of-00002.gguf", 4),
    ("model-F16-00002-of-00002.gguf", 3),
    ("broken-Q5_K-00001-of-00003.gguf", 1),
    ("mmproj-model-F32.gguf", 2),
    ("mmproj-model-f16.gguf", 1),
    ("model.imatrix.gguf", 1),
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("owner/repo", Reference("owner/repo")),
        ("hf:owner/repo", Reference("owner/repo")),
        ("owner/repo:Q4_K_M", Reference("owner/repo", "Q4_K_M")),
        ("owner/repo:q4_k_m@v1.0", Reference("owner/repo", "q4_k_m", None, "v1.0")),
        ("o-1/r.e_p-o/sub/file.gguf@refs/pr/1", Reference("o-1/r.e_p-o", None, "sub/file.gguf", "refs/pr/1")),
    ],
)
def test_names(text: str, reference: Reference) -> None:
    assert parse(text) == reference
    assert parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        *("", "repo", "/repo", "owner/", "owner//x.gguf", "../repo", "owner/..", "own er/repo", "owner/repo/x.bin"),
        *(
            "owner/repo:",
            "owner/repo:Q4 K",
            "owner/repo@",
            "owner/repo@-x",
            "owner/repo@a/../../x",
            "owner/repo@a//b",
            "owner/repo/../x.gguf",
            "owner/re..po",
        ),
        *("owner/repo/a.gguf:Q4_0", "https://host/owner/repo", "owner/repo/\x00.gguf", "owner/repo/a\\b.gguf"),
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except InvalidReference:
        return
    assert parse(str(reference)) == reference
    assert reference.file is None or path_problem(reference.file) is None


@pytest.mark.parametrize(
    ("stem", "quantisation"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Q4_K_M"),
        ("model.q8_0", "Q8_0"),
        ("IQ2_XXS/model-IQ2_XXS", "IQ2_XXS"),
        ("x-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("bf16/model", "BF16"),
        ("qwen2", ""),
    ],
)
def test_labels(stem: str, quantisation: str) -> None:
    assert label(stem) == quantisation


def test_variants_are_whole_and_sorted() -> None:
    assert [(one.quantisation, one.size_bytes) for one in variants(REPOSITORY)] == [
        ("Q2_K", GB),
        ("Q4_K_M", 2 * GB),
        ("Q8_0", 3.5 * GB),
        ("F16", 7 * GB),
    ]


@pytest.mark.parametrize(
    ("text", "room_gb", "paths"),
    [
        ("o/r", None, ["Q8_0/model-Q8_0-00001-of-00002.gguf", "Q8_0/model-Q8_0-00002-of-00002.gguf"]),
        ("o/r", 3, ["model-Q4_K_M.gguf"]),
        ("o/r:f16", 1, ["model-F16-00001-of-00002.gguf", "model-F16-00002-of-00002.gguf"]),
        ("o/r/model-F16-00002-of-00002.gguf", 1, ["model-F16-00001-of-00002.gguf", "model-F16-00002-of-00002.gguf"]),
        ("o/r/model-Q2_K.gguf", None, ["model-Q2_K.gguf"]),
    ],
)
def test_the_files_of_a_name(text: str, room_gb: float | None, paths: list[str]) -> None:
    selection = select(parse(text), REPOSITORY, None if room_gb is None else int(room_gb * GB))
    assert [file.path for file in selection.model.files] == paths
    assert selection.projector is not None
    assert selection.projector.path == "mmproj-model-f16.gguf"
    assert selection.draft is None


@pytest.mark.parametrize(("text", "word"), [("o/r:Q3_K", "Q2_K"), ("o/r/none.gguf", "Q2_K"), ("o/r", "fits")])
def test_what_is_not_there_says_what_is(text: str, word: str) -> None:
    with pytest.raises(NotFound, match=word):
        select(parse(text), REPOSITORY, GB // 2)


def test_only_models_beyond_eight_bits() -> None:
    assert select(parse("o/r"), files(("a-F16.gguf", 1), ("a-F32.gguf", 2))).model.quantisation == "F16"


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a//b", "a/./b", "a/../../b", "a\\b", "c:x", "a\nb", "", "x" * 2000, "é" * 200]
)
def test_paths_that_lead_astray(path: str) -> None:
    assert path_problem(path)
    with pytest.raises(InvalidReference):
        check_paths([RemoteFile(path, 1)])


def test_names_that_meet_on_some_file_systems() -> None:
    with pytest.raises(InvalidReference, match="both"):
        check_paths(files(("Model.gguf", 1), ("model.gguf", 1)))
