"""What keeps a model from being loaded, said before llama.cpp would give up without a reason."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from adapters.llama_cpp.loading import LoadError, load
from adapters.llama_cpp.messages import EngineSettings, Load, LoraFile, frame
from adapters.llama_cpp.process import worker_argv, worker_environment
from tests.models import random_gguf, random_lora
from tests.models.random_gguf import LLAMA_TINY
from tests.models.vocabularies import byte_level_bpe


def refusal(path: Path, settings: EngineSettings) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load(Load(str(path), settings), lambda fraction: None, nullcontext())
    return caught.value


def test_a_cache_that_cannot_be_quantised(tmp_path: Path) -> None:
    shape = msgspec.structs.replace(LLAMA_TINY, width=192, heads=8, kv_heads=4)
    path = random_gguf.write_decoder(tmp_path / "odd.gguf", shape, byte_level_bpe(1024), 1)
    error = refusal(path, EngineSettings(kv_type="q8_0"))
    assert error.code == "model_invalid" and "heads have 24 values" in error.message


def test_adapters_that_do_not_fit(tiny_model: Path, embedding_model: Path, tmp_path: Path) -> None:
    adapter = random_lora.lora(tmp_path / "lora.gguf", shape=msgspec.structs.replace(LLAMA_TINY, width=256))
    settings = EngineSettings(loras=(LoraFile(name="wide", path=str(adapter)),))
    error = refusal(tiny_model, settings)
    assert error.code == "model_invalid" and error.message.startswith("LoRA adapter 'wide': ")
    assert "only possible for models that generate" in refusal(embedding_model, settings).message


def test_files_that_are_gone_are_told_without_their_folders(tiny_model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    refusals = [
        refusal(gone, EngineSettings()),
        refusal(tiny_model, EngineSettings(loras=(LoraFile(name="a", path=str(gone)),))),
        refusal(tiny_model, EngineSettings(mmproj=str(gone))),
    ]
    for error in refusals:
        assert "No such file" in error.message and str(tmp_path) not in error.message


def test_whoever_waits_may_end_the_load(tiny_model: Path) -> None:
    told: list[float] = []

    def gone(fraction: float) -> None:
        told.append(fraction)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        load(Load(str(tiny_model), EngineSettings()), gone, nullcontext())
    assert len(told) == 1


def test_a_worker_whose_gateway_left_while_it_loads_ends_without_a_word(tiny_model: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        worker = subprocess.Popen(
            [*worker_argv(), str(theirs.fileno())],
            env=worker_environment(os.environ),
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    with ours:
        ours.sendall(frame(Load(str(tiny_model), EngineSettings()), msgspec.msgpack.Encoder()))
    said, _ = worker.communicate(timeout=60)
    assert (worker.returncode, said) == (0, b"")
