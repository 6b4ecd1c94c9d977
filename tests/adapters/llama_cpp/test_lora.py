"""Adapter files that fit, that do not, and that lie; and what a request may ask for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from adapters.llama_cpp import gguf
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.lora import NO_ADAPTERS, Loras, UnknownLora, check, digest
from adapters.llama_cpp.messages import LoraFile
from adapters.llama_cpp.native import Context, Model, quiet
from adapters.types import Lora
from tests.models import random_gguf, random_lora
from tests.models.random_gguf import LLAMA_TINY, truncate

WIDER = msgspec.structs.replace(LLAMA_TINY, width=256)
DEEPER = msgspec.structs.replace(LLAMA_TINY, layers=7)
OTHER = msgspec.structs.replace(LLAMA_TINY, architecture="qwen2")

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (lambda path: truncate(random_lora.lora(path), path, 20_000), "behind the end of the file"),
    "wider": (lambda path: random_lora.lora(path, shape=WIDER), "wrong shape"),
    "deeper": (lambda path: random_lora.lora(path, shape=DEEPER), "another model's adapter"),
    "architecture": (lambda path: random_lora.lora(path, shape=OTHER), "general.architecture is 'qwen2'"),
    "a model": (lambda path: random_gguf.llama_tiny(path), "general.type is None"),
    "control vector": (lambda path: random_lora.lora(path, adapter_type="cvec"), "adapter.type is 'cvec'"),
    "vectors": (lambda path: random_lora.lora(path, flat=True), "wrong shape"),
    "no pair": (lambda path: random_lora.lora(path, only=".lora_a"), "not pairs"),
    "embedding": (lambda path: random_lora.lora(path, embedding=True), "uses for its output"),
    "not finite": (lambda path: random_lora.lora(path, alpha=float("nan")), "adapter.lora.alpha is nan"),
}


@pytest.mark.parametrize(("make", "complaint"), BAD.values(), ids=BAD)
def test_what_does_not_fit(tiny_model: Path, tmp_path: Path, make: Callable[[Path], Path], complaint: str) -> None:
    with pytest.raises(gguf.GGUFError, match=complaint):
        check(make(tmp_path / "lora.gguf"), gguf.read(tiny_model))


def test_an_adapter_changes_what_is_computed_while_it_is_applied(tiny_model: Path, tmp_path: Path) -> None:
    path = random_lora.lora(tmp_path / "lora.gguf")
    check(path, gguf.read(tiny_model))
    quiet()
    model = Model(tiny_model, gpu_layers=0, progress=lambda fraction: None)
    model.add_lora(path)
    context = Context(model, cells=256, slots=2, batch_tokens=64, outputs_max=2, threads=1, lease=nullcontext())

    def logits(*scales: tuple[int, float]) -> npt.NDArray[np.float32]:
        context.remove(0)
        context.adapt(scales)
        batch = Batch(64, context.slots)
        batch.add(np.arange(300, 320, dtype=np.int32), 0, 0, outputs=1)
        assert context.decode(batch) == 0
        return context.logits(1).copy()

    plain, whole, half = logits(), logits((0, 1.0)), logits((0, 0.5))
    assert not np.allclose(plain, whole) and not np.allclose(half, whole)
    assert np.array_equal(logits(), plain) and np.array_equal(logits((0, 1.0)), whole)


def test_a_choice_is_a_set_that_names_its_files() -> None:
    loras = Loras([LoraFile(name="a", path="a"), LoraFile(name="b", path="b", scale=2.0)], ["da", "db"])
    assert loras.chosen([]) == loras.chosen([Lora("a", 0.0)]) == NO_ADAPTERS
    assert loras.chosen([Lora("b"), Lora(0, 0.5)]) == loras.chosen([Lora("a", 0.5), Lora(1)])
    chosen = loras.chosen([Lora("b"), Lora("a")])
    assert (chosen.scales, chosen.variant) == (((0, 1.0), (1, 2.0)), "da*1.0+db*2.0")
    for wrong in ([Lora("c")], [Lora(2)], [Lora("a"), Lora(0)]):
        with pytest.raises(UnknownLora):
            loras.chosen(wrong)


def test_a_replaced_file_is_another_adapter(tmp_path: Path) -> None:
    seeds = [digest(random_lora.lora(tmp_path / "lora.gguf", seed=seed)) for seed in (1, 2, 1)]
    assert seeds[0] == seeds[2] != seeds[1]
