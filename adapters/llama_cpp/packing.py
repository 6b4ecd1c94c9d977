"""Which weights llama.cpp packs in another order for the kernels of this processor, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from adapters.llama_cpp import gguf

CPUINFO = Path("/proc/cpuinfo")
# What llama.cpp's kernels for matrices in tiles of eight-bit numbers are made of.
AMX_FLAGS = frozenset(("amx_int8", "avx512_vnni"))
# The kinds that they take, by how many bytes their blocks become larger; and which shapes.
TILED = {"Q4_0": 0, "Q4_1": 0, "Q8_0": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0, "IQ4_XS": 2, "F16": 0}
TILED_ROWS = 32
TILED_VALUES = 16
# The kinds that are packed without them, and how many rows they need for that.
REPACKED = {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8}
# Tensors that rows are read from: nothing is multiplied with them, so they stay as they are.
LOOKED_UP = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")
# The values in a block of each kind, and its bytes.
BLOCKS: Mapping[str, tuple[int, int]] = {name: (values, size) for name, values, size in gguf.TENSOR_TYPES.values()}


class Packing(msgspec.Struct, frozen=True):
    """`plain_bytes` of a file stay in its order; the rest is packed. The embeddings of tokens stay, and are packed too
    where they are the output matrix as well."""

    plain_bytes: int
    packed_bytes: int


def look(header: gguf.GGUF, *, amx: bool) -> Packing:
    """Both are counted as parts of the file, as a header may come with the size of another quantisation."""
    if not is_packed(header, amx=amx):
        return Packing(header.size_bytes, 0)
    everything = plain = packed = 0
    for name, tensor in header.tensors.items():
        size = _size_bytes(tensor)
        reordered = _packed_bytes(tensor, size, amx)
        stays = not reordered or name.startswith(LOOKED_UP)
        output = name == "token_embd.weight" and "output.weight" not in header.tensors and not gguf.encodes(header)
        everything += size
        plain += size if stays else 0
        packed += reordered if output or not stays else 0
    if not everything:
        return Packing(header.size_bytes, 0)
    return Packing(header.size_bytes * plain // everything, header.size_bytes * packed // everything)


def is_packed(header: gguf.GGUF, *, amx: bool) -> bool:
    """Whether the weights of a file may be packed at all. For AMX llama.cpp packs the first of several matrices in one
    tensor and multiplies with all of them, or aborts. Experts alone are left to other kernels."""
    return not amx or not any(
        len(tensor.shape) > 2 and "exps" not in name and _is_tiled(tensor) for name, tensor in header.tensors.items()
    )


def has_amx(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this processor multiplies matrices in tiles, and llama.cpp, which is compiled for it, with them."""
    try:
        with cpuinfo.open() as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return AMX_FLAGS.issubset(flags.split())


def _size_bytes(tensor: gguf.Tensor) -> int:
    values, size = BLOCKS[tensor.kind]
    return math.prod(tensor.shape) // values * size


def _packed_bytes(tensor: gguf.Tensor, size: int, amx: bool) -> int:
    """How large a matrix of that size is in the order that llama.cpp multiplies with; 0 where that is the file's."""
    if len(tensor.shape) < 2:
        return 0
    values, rows = tensor.shape[:2]
    if amx and len(tensor.shape) == 2 and _is_tiled(tensor):
        return size + values * rows // BLOCKS[tensor.kind][0] * TILED[tensor.kind]
    return size if tensor.kind in REPACKED and rows % REPACKED[tensor.kind] == 0 else 0


def _is_tiled(tensor: gguf.Tensor) -> bool:
    """Whether llama.cpp believes that its kernels for AMX can multiply with a tensor of two or more dimensions."""
    values, rows = tensor.shape[:2]
    return tensor.kind in TILED and rows % TILED_ROWS == 0 and values % TILED_VALUES == 0
