"""Random LoRA adapters for the generated decoders, as `convert_lora_to_gguf.py` of llama.cpp would write them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

from tests.models.random_gguf import LLAMA_TINY, DecoderShape

Floats = npt.NDArray[np.float32]


def lora(
    path: Path,
    *,
    shape: DecoderShape = LLAMA_TINY,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 1,
    general_type: str = "adapter",
    adapter_type: str = "lora",
    only: str = "",
    embedding: bool = False,
    flat: bool = False,
) -> Path:
    """An adapter of the query and the second feed-forward matrix of each layer, strong enough to change what it says.

    `only` leaves out the tensors whose names end otherwise, `flat` all but the first row of each.
    """
    sizes = {
        f"blk.{layer}.{name}.weight": size
        for layer in range(shape.layers)
        for name, size in (("attn_q", (shape.width, shape.width)), ("ffn_down", (shape.width, shape.feed_forward)))
    }
    if embedding:
        sizes["token_embd.weight"] = (1024, shape.width)
    writer = GGUFWriter(None, shape.architecture)
    writer.add_type(general_type)
    writer.add_string("adapter.type", adapter_type)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, values in _tensors(sizes, rank, seed):
        if name.endswith(only):
            writer.add_tensor(name, values[0] if flat else values)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(sizes: dict[str, tuple[int, int]], rank: int, seed: int) -> Iterator[tuple[str, Floats]]:
    draw = np.random.default_rng(seed)
    for name, (rows, columns) in sizes.items():
        yield f"{name}.lora_a", draw.normal(0, columns**-0.5, (rank, columns)).astype(np.float32)
        yield f"{name}.lora_b", draw.normal(0, rank**-0.5, (rows, rank)).astype(np.float32)
