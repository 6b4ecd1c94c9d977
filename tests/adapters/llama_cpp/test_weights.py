"""The digest of a model's weights and how it is remembered."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from adapters.llama_cpp.weights import compatibility, digest, parts


def test_the_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    first = digest(model, tmp_path)
    stat = model.stat()
    assert first == hashlib.sha256(hashlib.sha256(b"weights").digest()).hexdigest()
    model.write_bytes(b"WEIGHTS")
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(model, tmp_path) == first, "same size, time and inode: not read again"
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert digest(model, tmp_path) != first


def test_a_broken_memory_is_replaced(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    first = digest(model, tmp_path)
    (tmp_path / "weights.json").write_bytes(b"{")
    assert digest(model, tmp_path) == first


def test_all_files_of_a_split_model_count(tmp_path: Path) -> None:
    names = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for name in names:
        name.write_bytes(b"x")
    assert parts(names[0]) == names
    before = digest(names[0], tmp_path)
    names[1].write_bytes(b"yy")
    assert digest(names[0], tmp_path) != before


def test_other_settings_are_not_compatible(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    assert compatibility(model, tmp_path, ["f16"]) == compatibility(model, tmp_path, ["f16"])
    assert compatibility(model, tmp_path, ["f16"]) != compatibility(model, tmp_path, ["q8_0"])
