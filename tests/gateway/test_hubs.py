from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.config import Config
from gateway.hubs import referred


def test_every_file_of_a_model_is_referred_to() -> None:
    engine = {"mmproj": "/eyes.gguf", "loras": [{"name": "a", "path": "/a.gguf"}]}
    models = [{"name": "m", "path": "/m.gguf", "engine": engine}, {"name": "n", "pull": "owner/repo:Q4_0"}]
    config = msgspec.convert({"models": models}, Config)
    assert set(referred(config)) == {Path("/m.gguf"), Path("/eyes.gguf"), Path("/a.gguf")}
