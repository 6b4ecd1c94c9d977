"""A few dozen of the mutated files that `ggufs.py` makes by the thousand."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.faults import ggufs, mutations


def test_mutated_files_are_imported_and_loaded(tmp_path: Path) -> None:
    doing = asyncio.run(ggufs.run(list(range(48)), seed=2, load_s=1e9, root=tmp_path))
    assert doing.wrong == []
    ended = Counter(one.ended for one in doing.outcomes)
    assert ended.total() == 48
    assert {"quarantined", "serves", "model_invalid"} <= set(ended)


def test_parts_of_a_file_make_the_file(tmp_path: Path) -> None:
    for name, file in ggufs.sound_files(tmp_path / "sound").items():
        assert mutations.written(file) == (tmp_path / "sound" / f"{name}.gguf").read_bytes()
