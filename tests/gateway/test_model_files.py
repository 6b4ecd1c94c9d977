"""Facts from headers, for people."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import pytest

from gateway import model_files
from gateway.config import EngineConfig, LoraConfig, ModelConfig, demo_model_path
from gateway.library.facts import quantisation
from tests.models import random_lora


def test_the_demo_model() -> None:
    file = model_files.describe(ModelConfig(name="demo", path=demo_model_path(), aliases=("d",)))
    assert file.problem is None
    assert (file.name, file.aliases, file.architecture, file.quantisation) == ("demo", ("d",), "llama", "Q8_0")
    assert file.size_bytes == Path(demo_model_path()).stat().st_size
    assert file.parameters is not None
    assert file.context_tokens is not None


def test_problems_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03")
    bad = model_files.describe(ModelConfig(name="bad", path=str(tmp_path / "bad.gguf")))
    assert bad.problem is not None
    assert bad.problem.startswith("not usable: ")
    assert model_files.describe(ModelConfig(name="none", path="/none.gguf")).problem == "No such file or directory"


def test_adapters_that_do_not_fit_are_a_problem(tiny_model: Path, tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        engine = EngineConfig(loras=(LoraConfig(name="a", path=str(path)),))
        return model_files.describe(ModelConfig(name="m", path=str(tiny_model), engine=engine)).problem or ""

    assert problem(random_lora.lora(tmp_path / "lora.gguf")) == ""
    assert problem(tiny_model).startswith("LoRA adapter 'a': general.type is None")
    assert problem(tmp_path / "none.gguf") == "LoRA adapter 'a': No such file or directory"


def test_names_of_file_types_are_those_of_the_library() -> None:
    prefix = "LLAMA_FTYPE_"
    for name, number in vars(llama_cpp).items():
        if name.startswith(prefix) and number < 1024:
            assert quantisation(number) == name.removeprefix(prefix).removeprefix("MOSTLY_").removeprefix("ALL_")
    for unknown in (None, -1, 1000):
        assert quantisation(unknown) is None


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(number: int, text: str) -> None:
    assert model_files.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (3_476_224, "3.48M"), (494_032_768, "494M"), (7_615_616_512, "7.62B"), (10**12, "1T")],
)
def test_counts(number: int, text: str) -> None:
    assert model_files.count(number) == text
