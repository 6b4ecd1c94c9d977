"""What `gateway pull` shows, and where it puts files."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.cli_pull import Bar, text_of
from gateway.config import Config, LibraryConfig
from gateway.hubs import cache_folder
from gateway.library.messages import Progress

HALF = Progress(
    id="1",
    reference="o/r:Q4_0",
    kind="model",
    status="running",
    commit=None,
    files=(),
    done_bytes=500_000_000,
    total_bytes=1_000_000_000,
    bytes_per_s=2_500_000.0,
    eta_s=200.0,
    error=None,
    path=None,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line() -> None:
    expected = "o/r:Q4_0: [===============               ]  50%  0.50 of 1.00 GB  2.5 MB/s  3:20 left"
    assert text_of(HALF) == expected
    assert "1:23:20 left" in text_of(replace(HALF, eta_s=5000.0))
    assert text_of(replace(HALF, done_bytes=999_999_999)).count(" 99%") == 1
    assert text_of(replace(HALF, bytes_per_s=0.0, status="verifying")).endswith("]  50%  0.50 of 1.00 GB  verifying")
    assert " 40%  200 of 500 kB" in text_of(replace(HALF, done_bytes=200_000, total_bytes=500_000))
    assert text_of(replace(HALF, total_bytes=0, status="queued")) == "o/r:Q4_0: queued"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100])
def test_a_line_fits_into_a_terminal_and_keeps_the_end_of_a_long_name(columns: int) -> None:
    long = replace(HALF, reference="an-owner-of-much/a-repository-with-a-name-that-says-it-all-GGUF:UD-Q4_K_XL")
    line = text_of(long, columns)
    assert len(line) <= columns
    assert columns < 80 or ("Q4_K_XL: [=====     ]  50%" in line and line.startswith("...") and "left" in line)


def test_a_terminal_is_redrawn_and_a_log_is_not_flooded() -> None:
    async def show(out: io.StringIO) -> str:
        bar = Bar(out)
        for _ in range(10):
            bar.show(HALF)
        bar.show(replace(HALF, status="succeeded"))
        bar.end()
        return out.getvalue()

    assert asyncio.run(show(Terminal())).count("\r") == 11
    assert asyncio.run(show(io.StringIO())).count("\n") == 2


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", "/a")
    assert cache_folder(Config()) == Path("/a/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/b")
    assert cache_folder(Config()) == Path("/b")
    assert cache_folder(Config(library=LibraryConfig(dir="/c"))) == Path("/c")
