"""One gateway with the demo model for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, embedding_model: Path) -> Iterator[Server]:
    """Serves `demo` and, as `team/embedder`, an embedding model."""
    config = f"""
models:
  - name: demo
    path: {Path(__file__).parents[2]}/adapters/llama_cpp/demo/demo.gguf
    aliases: [gpt-4o-mini]
  - name: team/embedder
    path: {embedding_model}
"""
    with Server(tmp_path_factory.mktemp("server"), config=config) as server:
        yield server
