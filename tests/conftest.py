"""Models that tests share, generated once per run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.models import random_gguf, random_vision
from tests.stores import Postgres, Valkey

# What was imported and collected stays, and looking through all of it again and again takes a sixth of the collection.
gc.set_threshold(50_000, 50, 100)

# A busy machine takes longer for an example than any deadline, and says nothing about the code by that.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of about a million random weights."""
    return random_gguf.llama_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights with mean pooling."""
    return random_gguf.bert_embedder(tmp_path_factory.mktemp("models") / "bert.gguf")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that tests share, each with databases of its own, and that none of them stops."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey server that tests share and that none of them stops."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="session")
def projector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes `tiny_model` see: each image becomes 64 tokens."""
    return random_vision.llava_projector(tmp_path_factory.mktemp("models") / "mmproj.gguf")
