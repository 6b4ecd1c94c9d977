"""Datasets: rows of every format, the requests that are made of them, and what is wrong with the others."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gateway.library import datasets, requests, rows
from gateway.library.datasets import write
from gateway.library.errors import Cancelled, InvalidReference, LibraryError, NotFound, Unusable
from gateway.library.names import RemoteFile, parse, select_dataset
from gateway.library.requests import Dataset, Requests, Wish
from gateway.library.rows import Row, rows_of

M = Wish(model="m")


def made(folder: Path, name: str, content: bytes, wish: Wish = M) -> tuple[list[Any], Dataset]:
    (folder / name).write_bytes(content)
    path, found, dataset = write([folder / name], folder / "own", "out.jsonl", wish, threading.Event())
    assert path.read_bytes().count(b"\n") == dataset.rows and path.stat().st_size == found.size_bytes
    return [json.loads(line) for line in path.read_text().splitlines()], dataset


def problems(dataset: Dataset) -> list[tuple[int, str]]:
    return [(one.line, one.reason) for one in dataset.problems]


def chat(text: str, number: int = 1) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_lines_of_json(tmp_path: Path) -> None:
    content = (
        b'{"question": "one?"}\n\nnot json\n[1]\n{"other": 1}\n{"question": ""}\n{"question": "two?", "text": "x"}'
    )
    lines, dataset = made(tmp_path, "a.jsonl", content)
    assert lines == [chat("one?"), chat("two?", 2)]
    assert (dataset.rows, dataset.skipped, dataset.column, dataset.models) == (2, 4, "question", ("m",))
    wrong = problems(dataset)
    assert [line for line, _ in wrong] == [3, 4, 5, 6]
    assert wrong[1][1] == "not an object" and "it has no question, but other" in wrong[2][1]


def test_a_file_that_tools_for_spreadsheets_write(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,prompt\n1,"two\nlines"\n2\n3,"a ""word"""\n4,"unclosed\n'
    lines, dataset = made(tmp_path, "a.csv", content)
    assert [line["body"]["messages"][0]["content"] for line in lines] == ["two\nlines", 'a "word"']
    assert [(line, reason[:8]) for line, reason in problems(dataset)] == [(4, "1 fields"), (6, "not CSV:")]


def test_text_that_is_none_is_told(tmp_path: Path) -> None:
    lines, dataset = made(tmp_path, "a.csv", b'text\ngood\nb\xff\xffd\nfine\n"begun\n\xff\nnew\n')
    assert [line["body"]["messages"][0]["content"] for line in lines] == ["good", "fine", "new"]
    assert problems(dataset) == [(3, "not UTF-8"), (6, "not UTF-8")]


def test_what_is_wrong_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n\xff\ngood\n")
    assert [row.line for row in rows_of(path)] == [2, 3], "and not all at the end, when there are millions"


def test_a_table_of_columns(tmp_path: Path) -> None:
    conversation = [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "hello"}]
    table = pyarrow.table({"messages": [conversation, []], "id": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    lines, dataset = made(tmp_path, "a.parquet", (tmp_path / "b.parquet").read_bytes())
    assert lines == [chat("hi")], "the answer that it ends with is not asked for"
    assert problems(dataset) == [(2, "there is no message to be answered")]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 1000 + b"\x10\x00\x00\x00PAR1"])
def test_what_is_no_such_table(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Unusable, match="no Parquet file"):
        made(tmp_path, "a.parquet", content)
    assert not (tmp_path / "own").exists()


def test_without_its_reader_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "find_spec", lambda name: None)
    with pytest.raises(Unusable, match=r'pip install "inference-gateway\[parquet\]"'):
        made(tmp_path, "a.parquet", b"")


@pytest.mark.parametrize(
    ("wish", "url", "body"),
    [
        (Wish(model="m", request="completion", max_tokens=5), "/v1/completions", {"prompt": "x", "max_tokens": 5}),
        (Wish(model="m", request="embedding", max_tokens=5), "/v1/embeddings", {"input": "x"}),
        (Wish(model="m", column="b"), "/v1/chat/completions", {"messages": [{"role": "user", "content": "y"}]}),
    ],
)
def test_other_requests(tmp_path: Path, wish: Wish, url: str, body: dict[str, Any]) -> None:
    lines, _ = made(tmp_path, "a.jsonl", b'{"text": "x", "b": "y"}', wish)
    assert (lines[0]["url"], lines[0]["body"]) == (url, {"model": "m"} | body)


def test_lines_of_a_batch_stay_what_they_are(tmp_path: Path) -> None:
    good = chat("x") | {"custom_id": "mine"}
    good["body"]["temperature"] = 0.5
    strange = [
        good,
        good | {"custom_id": ""},
        good | {"custom_id": "b", "url": "/v1/images"},
        good | {"custom_id": "c", "body": {"messages": []}},
        good | {"custom_id": "d", "body": {"model": "m"}},
        good | {"custom_id": "e", "body": {"model": "m", "messages": [{"role": "king", "content": "x"}]}},
        good | {"custom_id": "f", "body": {"model": "m", "messages": "x"}},
    ]
    content = b"\n".join(json.dumps(line).encode() for line in (good, *strange))
    lines, dataset = made(tmp_path, "a.jsonl", content, Wish())
    assert (lines, dataset.column, dataset.urls) == ([good], None, ("/v1/chat/completions",))
    assert [line for line, _ in problems(dataset)] == [2, 3, 4, 5, 6, 7, 8]
    assert problems(dataset)[0][1] == "the custom_id 'mine' is there twice"


def test_everything_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, dataset = made(tmp_path, "a.jsonl", b'{"text": "x"}\n' * 10, Wish(model="m", limit=3))
    assert (len(lines), dataset.whole) == (3, False)
    monkeypatch.setattr(rows, "LINE_BYTES_MAX", 50)
    long = b'{"text": "' + b"x" * 1000 + b'"}\n{"text": "y"}\n'
    (tmp_path / "b").mkdir()
    lines, dataset = made(tmp_path / "b", "a.jsonl", long)
    assert (len(lines), problems(dataset)) == (1, [(1, "longer than 50 bytes")])
    monkeypatch.setattr(datasets, "SIZE_BYTES_MAX", 300)
    (tmp_path / "c").mkdir()
    with pytest.raises(Unusable, match="more than 300 bytes"):
        made(tmp_path / "c", "a.jsonl", b'{"text": "x"}\n' * 10)
    assert not (tmp_path / "c/own").exists()


def test_of_many_bad_rows_the_first_are_told() -> None:
    wanted = Requests(M)
    assert not list(wanted.lines("a", iter([Row(number, None, "bad") for number in range(1, 100)])))
    with pytest.raises(Unusable, match="none of its 99 rows is a request: a, line 1: bad"):
        wanted.summary()
    assert len(wanted._problems) == requests.PROBLEMS_SHOWN


@pytest.mark.parametrize(("content", "wish"), [(b'{"text": "x"}', Wish()), (b"", M), (b"\n" * 9, M)])
def test_without_a_request_there_is_no_dataset(tmp_path: Path, content: bytes, wish: Wish) -> None:
    with pytest.raises(Unusable, match="is a request"):
        made(tmp_path, "a.jsonl", content, wish)


def test_one_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}')
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        write([tmp_path / "a.jsonl"], tmp_path / "own", "a.jsonl", M, stop)
    assert not (tmp_path / "own").exists()


def test_what_is_no_format(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"a dataset is \.jsonl, \.parquet, \.csv, and not \.txt"):
        list(rows_of(tmp_path / "a.txt"))


FILES = [RemoteFile(name, 10, "0" * 64) for name in ("README.md", "data/train.jsonl", "data/test.CSV")]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("o/r", ["data/train.jsonl", "data/test.CSV"]),
        ("hf:o/r/data/test.CSV@main", ["data/test.CSV"]),
        ("o/r/none.csv", NotFound),
        ("o/r/x.gguf", InvalidReference),
        ("o/r:Q4_0", InvalidReference),
    ],
)
def test_names(name: str, chosen: list[str] | type[LibraryError]) -> None:
    if isinstance(chosen, list):
        assert [file.path for file in select_dataset(parse(name, "dataset"), FILES)] == chosen
        return
    with pytest.raises(chosen):
        select_dataset(parse(name, "dataset"), FILES)
