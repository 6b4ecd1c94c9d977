"""What llama.cpp is compiled with, and whether that computes."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from adapters.llama_cpp import trial

CONFIGURE = """
#include <immintrin.h>
struct tiles { unsigned char palette, start, reserved[14]; unsigned short bytes[16]; unsigned char rows[16]; };
void configure(unsigned char rows) {
    alignas(64) tiles config = {};
    config.palette = 1;
    config.rows[0] = rows;
    _tile_loadconfig(&config);
}
"""


def test_this_library_computes(capfd: pytest.CaptureFixture[str]) -> None:
    trial.main()
    assert capfd.readouterr().out.startswith(version("llama-cpp-python") + " ")


def compiled(source: str, *options: str) -> str:
    """What the compiler makes of it with the header that llama.cpp is compiled with."""
    header = Path(trial.__file__).with_name("compiling.h")
    command = ["c++", "-O3", "-std=c++17", "-include", str(header), *options, "-o", "-", "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only CPUs of this kind have tiles")
def test_tiles_are_configured_with_all_that_is_written() -> None:
    """The only argument is not lost on its way to the instruction."""
    code = compiled(CONFIGURE, "-mamx-tile", "-S")
    assert "ldtilecfg" in code
    assert "%dil" in code or "%edi" in code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only CPUs of this kind have these instructions")
def test_attention_is_not_computed_one_number_at_a_time() -> None:
    """The instructions that have llama.cpp do so for heads of 64 stay unused."""
    macros = compiled("", "-mavx512fp16", "-mavx512bw", "-dM", "-E")
    assert "__AVX512BW__" in macros
    assert "__AVX512FP16__" not in macros
