"""Models that tests share, generated once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import random_gguf


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of about a million random weights."""
    return random_gguf.llama_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights with mean pooling."""
    return random_gguf.bert_embedder(tmp_path_factory.mktemp("models") / "bert.gguf")
