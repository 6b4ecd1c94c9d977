"""Random-weight projector files, which turn images into embeddings of a text model: LLaVA's and Qwen2-VL's shapes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from gguf import GGUFWriter, LlamaFileType

from tests.models.random_gguf import F16, F32, LLAMA_TINY, Tensor, write_tensors


class VisionShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a vision transformer; an image becomes (image / patch)² embeddings of `text_width` numbers."""

    layers: int = 3
    width: int = 64
    heads: int = 2
    feed_forward: int = 128
    image: int = 112
    patch: int = 14
    text_width: int = LLAMA_TINY.width
    projector: str = "mlp"

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2


def llava_projector(path: Path, shape: VisionShape | None = None, *, seed: int = 1) -> Path:
    """A vision transformer and LLaVA's two-layer projector for `random_gguf.llama_tiny`; 300 kB."""
    shape = shape or VisionShape()
    return _write(path, shape, _llava(shape), seed)


def qwen2vl_projector(path: Path, *, seed: int = 1) -> Path:
    """Qwen2-VL's for `random_gguf.qwen2vl_tiny`: images of any size, and one embedding for each two by two patches."""
    shape = VisionShape(projector="qwen2vl_merger")
    return _write(path, shape, _qwen2vl(shape), seed)


def _write(path: Path, shape: VisionShape, tensors: Iterator[Tensor], seed: int) -> Path:
    writer = GGUFWriter(None, "clip")
    writer.add_name("random")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", shape.projector)
    writer.add_bool("clip.use_gelu", True)
    sizes = {
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "block_count": shape.layers,
        "projection_dim": shape.text_width,
        "attention.head_count": shape.heads,
        "image_size": shape.image,
        "patch_size": shape.patch,
    }
    for name, size in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", size)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    return write_tensors(path, writer, tensors, seed, np.zeros(0, dtype=np.bool_))


def _llava(shape: VisionShape) -> Iterator[Tensor]:
    width, text = shape.width, shape.text_width
    yield _patches("v.patch_embd.weight", shape)
    yield Tensor("v.position_embd.weight", (shape.tokens, width), F16, sigma=0.5)
    yield from _norm("v.pre_ln", width)
    yield from _transformer(shape)
    yield from _linear("mm.0", text, width, width**-0.5)
    # As large as the embeddings of words.
    yield from _linear("mm.2", text, text, 0.04 * text**-0.5)


def _qwen2vl(shape: VisionShape) -> Iterator[Tensor]:
    merged = 4 * shape.width
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        yield _patches(name, shape)
    yield from _transformer(shape)
    yield from _linear("mm.0", merged, merged, merged**-0.5)
    yield from _linear("mm.2", shape.text_width, merged, 0.04 * merged**-0.5)


def _patches(name: str, shape: VisionShape) -> Tensor:
    return Tensor(name, (shape.width, 3, shape.patch, shape.patch), F16, sigma=4 * (3 * shape.patch**2) ** -0.5)


def _transformer(shape: VisionShape) -> Iterator[Tensor]:
    width, wide = shape.width, shape.feed_forward
    unit = width**-0.5
    yield from _norm("v.post_ln", width)
    for layer in range(shape.layers):
        block = f"v.blk.{layer}."
        yield from _norm(block + "ln1", width)
        yield from _norm(block + "ln2", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield from _linear(block + name, width, width, unit)
        yield from _linear(block + "ffn_up", wide, width, unit)
        yield from _linear(block + "ffn_down", width, wide, 2 * wide**-0.5)


def _norm(name: str, width: int) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", (width,), F32, sigma=0.05, mean=1.0)
    yield Tensor(name + ".bias", (width,), F32, sigma=0.02)


def _linear(name: str, rows: int, columns: int, sigma: float) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", (rows, columns), F16, sigma=sigma)
    yield Tensor(name + ".bias", (rows,), F32, sigma=0.02 * sigma)


def png(width: int, height: int, *, seed: int = 0) -> bytes:
    """A picture of coloured squares as a PNG file; equal arguments give equal bytes."""
    squares = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    pixels = squares[rows][:, columns]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    return png_of(width, height, zlib.compress(lines.tobytes()))


def png_of(width: int, height: int, compressed: bytes) -> bytes:
    """A PNG file of 8-bit RGB that says it has these sizes and holds these compressed lines."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
