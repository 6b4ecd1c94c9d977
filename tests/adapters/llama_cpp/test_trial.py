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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only CPUs of this kind have tiles")
def test_tiles_are_configured_with_all_that_is_written(tmp_path: Path) -> None:
    """The only argument is not lost on its way to the instruction."""
    (tmp_path / "configure.cpp").write_text(CONFIGURE)
    header = Path(trial.__file__).with_name("amx.h")
    command = ["c++", "-O3", "-std=c++17", "-mamx-tile", "-include", str(header), "-S", "-o", "-", "configure.cpp"]
    code = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "ldtilecfg" in code
    assert "%dil" in code or "%edi" in code
