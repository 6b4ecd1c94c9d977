"""Random-weight GGUF models in the shapes of real architectures.

Equal arguments give equal bytes. The weights are drawn as quantised blocks, so half a billion parameters take a second
or two. Two choices make greedy output varied and endless. Token embeddings are small against what the layers add, so a
tied output matrix does not just repeat its input; and the rows of tokens that are not text are 32 times smaller still,
so their logit is nearly zero while the best of the others is several standard deviations above it.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, PoolingType
from gguf.quants import quant_shape_to_byte_shape

from tests.models.vocabularies import CHATML, TokenType, Vocabulary, byte_level_bpe, byte_symbols, from_gguf, word_piece

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

F32 = GGMLQuantizationType.F32
F16 = GGMLQuantizationType.F16
Q4_0 = GGMLQuantizationType.Q4_0
Q8_0 = GGMLQuantizationType.Q8_0

_BLOCK = 32
_Q4_0_RMS = 280**0.5 / 4
_Q8_0_RMS = 127 / 3**0.5
_QUIET = 32
"""How much smaller the rows of tokens are that shall never be the likeliest."""


class Tensor(msgspec.Struct, frozen=True):
    """A tensor to be drawn: `shape` is rows first; values have mean `mean` and standard deviation `sigma`."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    sigma: float
    mean: float = 0.0


class DecoderShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a decoder with rotary positions, gated feed-forward and tied output."""

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    rope_base: float = 10_000.0
    rope_sections: tuple[int, ...] = ()
    qkv_bias: bool = False
    matrices: GGMLQuantizationType
    embedding: GGMLQuantizationType
    pooling: PoolingType | None = None
    qk_norm: bool = False
    labels: tuple[str, ...] = ()


class EncoderShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a BERT encoder."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    context: int = 512


QWEN2_05B = DecoderShape(
    architecture="qwen2",
    layers=24,
    width=896,
    heads=14,
    kv_heads=2,
    feed_forward=4864,
    context=32_768,
    rope_base=1e6,
    qkv_bias=True,
    matrices=Q4_0,
    # llama-quantize wants Q6_K for the output matrix; 896 is no multiple of 256, so it falls back to Q8_0.
    embedding=Q8_0,
)
LLAMA_100M = DecoderShape(
    architecture="llama",
    layers=12,
    width=768,
    heads=12,
    kv_heads=4,
    feed_forward=2048,
    context=8192,
    matrices=Q8_0,
    embedding=Q8_0,
)
LLAMA_TINY = DecoderShape(
    architecture="llama",
    layers=6,
    width=128,
    heads=4,
    kv_heads=2,
    feed_forward=384,
    context=4096,
    matrices=Q8_0,
    embedding=Q8_0,
)
BERT_TINY = EncoderShape(layers=2, width=128, heads=2, feed_forward=512)
MINILM_L6 = EncoderShape(layers=6, width=384, heads=12, feed_forward=1536)


def qwen2_05b(path: Path, vocab: Path, *, seed: int = 1) -> Path:
    """Qwen2.5-0.5B's shape in Q4_0 with the 151,936 tokens of the GGUF file `vocab`; 353 MB."""
    return write_decoder(path, QWEN2_05B, from_gguf(vocab), seed)


def llama_100m(path: Path, vocab: Path | None = None, *, seed: int = 1) -> Path:
    """A Llama of 100 M parameters in Q8_0 with a generated vocabulary of 32,000 tokens, or `vocab`'s; 107 MB."""
    return write_decoder(path, LLAMA_100M, from_gguf(vocab) if vocab else byte_level_bpe(32_000), seed)


def llama_tiny(
    path: Path, *, seed: int = 1, chat_template: str = CHATML, raw_bytes: bool = False, vocab_size: int = 1024
) -> Path:
    """A Llama of 1.3 M parameters in Q8_0; 1.5 MB.

    With `raw_bytes` it also writes tokens that are parts of characters, so that its output is often not valid UTF-8.
    """
    return write_decoder(path, LLAMA_TINY, byte_level_bpe(vocab_size, chat_template), seed, raw_bytes=raw_bytes)


def qwen2vl_tiny(path: Path, *, seed: int = 1) -> Path:
    """A decoder of 1.3 M parameters whose positions have a time, a row and a column, as Qwen2-VL's."""
    shape = msgspec.structs.replace(LLAMA_TINY, architecture="qwen2vl", qkv_bias=True, rope_sections=(4, 6, 6, 0))
    return write_decoder(path, shape, byte_level_bpe(1024), seed)


def decoder_embedder(path: Path, *, seed: int = 1) -> Path:
    """A decoder of 1.3 M parameters that gives the embedding of the last token, as Qwen3-Embedding does."""
    shape = msgspec.structs.replace(LLAMA_TINY, pooling=PoolingType.LAST)
    return write_decoder(path, shape, byte_level_bpe(1024).with_fields(ggml__add_eos_token=True), seed)


def decoder_reranker(path: Path, *, seed: int = 1) -> Path:
    """A decoder of 1.3 M parameters in the shape of Qwen3-Reranker: a template, and two labels behind a softmax."""
    shape = msgspec.structs.replace(
        LLAMA_TINY, architecture="qwen3", qk_norm=True, pooling=PoolingType.RANK, labels=("yes", "no")
    )
    template = "<|im_start|>user\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
    return write_decoder(path, shape, byte_level_bpe(1024).with_fields(chat_template__rerank=template), seed)


def bert_reranker(path: Path, *, seed: int = 1) -> Path:
    """A BERT cross-encoder with a head of two layers, as bge-reranker has it."""
    return bert_embedder(path, seed=seed, pooling=PoolingType.RANK)


def bert_embedder(
    path: Path,
    vocab: Path | None = None,
    *,
    shape: EncoderShape = BERT_TINY,
    seed: int = 1,
    pooling: PoolingType = PoolingType.MEAN,
) -> Path:
    """A BERT encoder in F16 with mean pooling and a generated WordPiece vocabulary, or `vocab`'s.

    Word embeddings dominate, so texts that share words have similar embeddings.
    """
    words = from_gguf(vocab) if vocab else word_piece()
    writer = GGUFWriter(None, "bert")
    _add_sizes(writer, shape.layers, shape.width, shape.feed_forward, shape.context)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    words.write(writer)
    tensors = [*_encoder_tensors(shape, len(words)), *(_head(shape) if pooling is PoolingType.RANK else ())]
    return write_tensors(path, writer, tensors, seed, np.zeros(len(words), dtype=np.bool_))


def write_decoder(path: Path, shape: DecoderShape, vocab: Vocabulary, seed: int, *, raw_bytes: bool = False) -> Path:
    """Write a decoder of any `shape` with any vocabulary; returns `path`, which appears complete or not at all."""
    writer = GGUFWriter(None, shape.architecture)
    _add_sizes(writer, shape.layers, shape.width, shape.feed_forward, shape.context)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    if shape.rope_sections:
        writer.add_rope_dimension_sections(shape.rope_sections)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(vocab))
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0 if shape.matrices is Q4_0 else LlamaFileType.MOSTLY_Q8_0)
    if shape.pooling is not None:
        writer.add_pooling_type(shape.pooling)
    if shape.labels:
        writer.add_classifier_output_labels(shape.labels)
    vocab.write(writer)
    return write_tensors(path, writer, _decoder_tensors(shape, len(vocab)), seed, _quiet_tokens(vocab, raw_bytes))


def truncate(path: Path, out: Path, n: int) -> Path:
    """Write the first `n` bytes of `path` to `out`."""
    out.write_bytes(path.read_bytes()[:n])
    return out


def overwrite(path: Path, out: Path, offset: int, data: bytes) -> Path:
    """Write `path` with the bytes at `offset` replaced by `data` to `out`."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    out.write_bytes(content)
    return out


def misplace_tensor(path: Path, out: Path, name: str, offset: int) -> Path:
    """Write `path` to `out` with the data offset of tensor `name` set to `offset`, say one past the end."""
    reader = GGUFReader(path)
    field = next(tensor.field for tensor in reader.tensors if tensor.name == name)
    size = sum(part.nbytes for part in field.parts)
    return overwrite(path, out, field.offset + size - 8, offset.to_bytes(8, "little"))


def _add_sizes(writer: GGUFWriter, layers: int, width: int, feed_forward: int, context: int) -> None:
    writer.add_name("random")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)


def _decoder_tensors(shape: DecoderShape, vocab_size: int) -> Iterator[Tensor]:
    width, kv_width = shape.width, shape.width // shape.heads * shape.kv_heads
    unit, out = width**-0.5, 2 * shape.feed_forward**-0.5
    kind = shape.matrices
    yield Tensor("token_embd.weight", (vocab_size, width), shape.embedding, sigma=0.02)
    # Logits of embedding (0.02) x this gain x sqrt(width) = 2.5 leave sampling at temperature 1 some entropy.
    yield Tensor("output_norm.weight", (width,), F32, sigma=0.0, mean=125 * unit)
    if shape.labels:
        yield Tensor("cls.output.weight", (len(shape.labels), width), F32, sigma=0.02)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        if shape.qk_norm:
            for name in ("attn_q_norm", "attn_k_norm"):
                yield Tensor(f"{block}{name}.weight", (width // shape.heads,), F32, sigma=0.1, mean=1.0)
        yield Tensor(block + "attn_norm.weight", (width,), F32, sigma=0.1, mean=1.0)
        yield Tensor(block + "ffn_norm.weight", (width,), F32, sigma=0.1, mean=1.0)
        # Queries and keys 1.5 times larger than neutral make attention pick tokens instead of averaging them away.
        yield Tensor(block + "attn_q.weight", (width, width), kind, sigma=1.5 * unit)
        yield Tensor(block + "attn_k.weight", (kv_width, width), kind, sigma=1.5 * unit)
        yield Tensor(block + "attn_v.weight", (kv_width, width), kind, sigma=unit)
        yield Tensor(block + "attn_output.weight", (width, width), kind, sigma=unit)
        yield Tensor(block + "ffn_gate.weight", (shape.feed_forward, width), kind, sigma=unit)
        yield Tensor(block + "ffn_up.weight", (shape.feed_forward, width), kind, sigma=unit)
        yield Tensor(block + "ffn_down.weight", (width, shape.feed_forward), kind, sigma=out)
        if shape.qkv_bias:
            yield Tensor(block + "attn_q.bias", (width,), F32, sigma=0.1)
            yield Tensor(block + "attn_k.bias", (kv_width,), F32, sigma=0.1)
            yield Tensor(block + "attn_v.bias", (kv_width,), F32, sigma=0.1)


def _encoder_tensors(shape: EncoderShape, vocab_size: int) -> Iterator[Tensor]:
    width, wide = shape.width, shape.feed_forward
    unit = width**-0.5
    matrices = {
        "attn_q": (width, width, unit),
        "attn_k": (width, width, unit),
        "attn_v": (width, width, unit),
        "attn_output": (width, width, unit),
        "ffn_up": (wide, width, unit),
        "ffn_down": (width, wide, 0.5 * wide**-0.5),
    }
    yield Tensor("token_embd.weight", (vocab_size, width), F16, sigma=1.0)
    yield Tensor("token_types.weight", (2, width), F32, sigma=0.05)
    yield Tensor("position_embd.weight", (shape.context, width), F32, sigma=0.05)
    yield from _layer_norm("token_embd_norm", width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for name, (rows, columns, sigma) in matrices.items():
            yield Tensor(f"{block}{name}.weight", (rows, columns), F16, sigma=sigma)
            yield Tensor(f"{block}{name}.bias", (rows,), F32, sigma=0.02)
        yield from _layer_norm(block + "attn_output_norm", width)
        yield from _layer_norm(block + "layer_output_norm", width)


def _head(shape: EncoderShape) -> Iterator[Tensor]:
    """A dense layer and one score, which come out between about -2 and 2."""
    yield Tensor("cls.weight", (shape.width, shape.width), F32, sigma=shape.width**-0.5)
    yield Tensor("cls.bias", (shape.width,), F32, sigma=0.02)
    yield Tensor("cls.output.weight", (1, shape.width), F32, sigma=1.5 * shape.width**-0.5)
    yield Tensor("cls.output.bias", (1,), F32, sigma=0.1)


def _layer_norm(name: str, width: int) -> Iterator[Tensor]:
    yield Tensor(name + ".weight", (width,), F32, sigma=0.05, mean=1.0)
    yield Tensor(name + ".bias", (width,), F32, sigma=0.02)


def _quiet_tokens(vocab: Vocabulary, raw_bytes: bool) -> npt.NDArray[np.bool_]:
    """Which tokens shall not be generated: all that are not text, and unless wanted parts of characters."""
    quiet: npt.NDArray[np.bool_] = np.array(vocab.token_types) != TokenType.NORMAL
    if vocab.fields["ggml.model"] == "gpt2":
        values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        texts = (bytes(values.get(symbol, 0) for symbol in token) for token in vocab.tokens)
        quiet |= np.fromiter((not _is_text(text, raw_bytes) for text in texts), np.bool_)
    return quiet


def _is_text(piece: bytes, raw_bytes: bool) -> bool:
    if raw_bytes and piece >= b"\x80":
        return True
    try:
        return all((character >= " " and character != "\x7f") or character == "\n" for character in piece.decode())
    except UnicodeDecodeError:
        return False


def write_tensors(
    path: Path, writer: GGUFWriter, tensors: Iterable[Tensor], seed: int, quiet: npt.NDArray[np.bool_]
) -> Path:
    """Write the file beside `path` and rename it, so that a reader in another process never sees a part of it."""
    specs = list(tensors)
    for tensor in specs:
        shape = quant_shape_to_byte_shape(tensor.shape, tensor.kind)
        size = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, raw_dtype=tensor.kind)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in specs:
        mask = quiet if tensor.name == "token_embd.weight" else None
        writer.write_tensor_data(_draw(tensor, seed, mask))
    writer.close()
    return partial.replace(path)


def _draw(tensor: Tensor, seed: int, quiet: npt.NDArray[np.bool_] | None) -> Bytes:
    """The bytes of a tensor; its values depend on the seed and its name, not on what was drawn before."""
    raw = _random_bytes([seed, zlib.crc32(tensor.name.encode())], int(np.prod(tensor.shape)), tensor.kind)
    if tensor.kind is Q4_0:
        return _q4_0(raw, tensor.sigma)
    if tensor.kind is Q8_0:
        return _q8_0(raw, tensor, quiet)
    uniform = raw.view(np.int16).astype(np.float32) * np.float32(tensor.sigma * 3**0.5 / 32768)
    values = (uniform + np.float32(tensor.mean)).reshape(tensor.shape)
    if quiet is not None:
        values[quiet] /= _QUIET
    return (values.astype(np.float16) if tensor.kind is F16 else values).view(np.uint8)


def _random_bytes(seed: list[int], values: int, kind: GGMLQuantizationType) -> Bytes:
    """Uniform bytes: one per two values (Q4_0), one per value (Q8_0), else two; numpy keeps this stream stable."""
    count = {Q4_0: values // 2, Q8_0: values}.get(kind, 2 * values)
    words = np.random.SFC64(seed).random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


def _q4_0(raw: Bytes, sigma: float) -> Bytes:
    """Blocks of a half-precision scale and 32 four-bit values 1..15 around 8; 0 becomes 8 to keep the mean at zero."""
    balanced = np.array([low or 8 for low in range(16)], dtype=np.uint8)
    pairs = np.arange(256)
    table = balanced[pairs & 15] | balanced[pairs >> 4] << 4
    return _blocks(table[raw].reshape(-1, _BLOCK // 2), sigma / _Q4_0_RMS)


def _q8_0(raw: Bytes, tensor: Tensor, quiet: npt.NDArray[np.bool_] | None) -> Bytes:
    """Blocks of a half-precision scale and 32 signed bytes."""
    values = np.where(raw == 0x80, np.uint8(0), raw).view(np.int8).reshape(tensor.shape)
    if quiet is not None:
        values[quiet] //= _QUIET
    return _blocks(values.view(np.uint8).reshape(-1, _BLOCK), tensor.sigma / _Q8_0_RMS)


def _blocks(values: Bytes, scale: float) -> Bytes:
    blocks = np.empty((len(values), 2 + values.shape[1]), dtype=np.uint8)
    blocks[:, :2] = np.array([scale], dtype="<f2").view(np.uint8)
    blocks[:, 2:] = values
    return blocks
