"""Random-weight GGUF models that remember in other ways than full attention: recurrent, hybrid, sliding window, latent.

Their matrices are Q8_0, or F32 where `exact`: Q8_0 matrices round what they are multiplied with to 8 bits, so that sums
that differ in their last bits lead to logits that differ by some percent.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from gguf import GGUFWriter, LlamaFileType

from tests.models.random_gguf import F32, Q8_0, Tensor, _add_sizes, _quiet_tokens, write_tensors
from tests.models.vocabularies import byte_level_bpe

WIDTH, FEED_FORWARD, CONTEXT = 128, 384, 4096
INNER, CONVOLUTION, STATE, RANK = 2 * WIDTH, 4, 16, 8
HEADS, KV_HEADS = 4, 2
LATENT, ROTATED = 64, 32
UNIT = WIDTH**-0.5


def mamba(path: Path, *, seed: int = 1, exact: bool = False) -> Path:
    """Four recurrent layers; 0.9 M parameters."""
    writer = _writer("mamba", 4)
    writer.add_head_count(0)
    _add_ssm(writer)
    tensors = [tensor for layer in range(4) for tensor in (_norm(layer, "attn_norm"), *_ssm(layer))]
    return _finish(path, writer, tensors, seed, exact)


def jamba(path: Path, *, seed: int = 1, exact: bool = False) -> Path:
    """Recurrent and attention layers in turns, four in all; 1.3 M parameters."""
    writer = _writer("jamba", 4)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([0, KV_HEADS, 0, KV_HEADS])
    _add_ssm(writer)
    tensors: list[Tensor] = []
    for layer in range(4):
        tensors.append(_norm(layer, "attn_norm"))
        tensors += _attention(layer) if layer % 2 else (*_ssm(layer), *_ssm_norms(layer))
        tensors += [_norm(layer, "ffn_norm"), *_feed_forward(layer)]
    return _finish(path, writer, tensors, seed, exact)


def gemma2(path: Path, *, window: int = 64, seed: int = 1, exact: bool = False) -> Path:
    """Attention to the last `window` tokens and to all of them in turns, four layers; 1.1 M parameters."""
    writer = _writer("gemma2", 4)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)
    writer.add_sliding_window(window)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    tensors: list[Tensor] = []
    for layer in range(4):
        names = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        tensors += [_norm(layer, name) for name in names]
        tensors += [*_attention(layer), *_feed_forward(layer)]
    return _finish(path, writer, tensors, seed, exact)


def deepseek2(path: Path, *, seed: int = 1, exact: bool = False) -> Path:
    """Attention whose keys and values are made of one latent vector for all heads, two layers; 0.7 M parameters."""
    writer = _writer("deepseek2", 2)
    writer.add_leading_dense_block_count(2)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(LATENT)
    writer.add_kv_lora_rank(LATENT)
    writer.add_rope_dimension_count(ROTATED)
    writer.add_key_length(LATENT + ROTATED)
    writer.add_value_length(LATENT)
    writer.add_key_length_mla(2 * ROTATED)
    writer.add_value_length_mla(ROTATED)
    tensors: list[Tensor] = []
    for layer in range(2):
        tensors += [_norm(layer, "attn_norm"), _norm(layer, "ffn_norm"), *_latent(layer), *_feed_forward(layer)]
    return _finish(path, writer, tensors, seed, exact)


def _writer(architecture: str, layers: int) -> GGUFWriter:
    writer = GGUFWriter(None, architecture)
    _add_sizes(writer, layers, WIDTH, FEED_FORWARD, CONTEXT)
    writer.add_layer_norm_rms_eps(1e-6)
    return writer


def _add_ssm(writer: GGUFWriter) -> None:
    writer.add_ssm_conv_kernel(CONVOLUTION)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)


def _finish(path: Path, writer: GGUFWriter, tensors: list[Tensor], seed: int, exact: bool) -> Path:
    vocabulary = byte_level_bpe(1024)
    writer.add_vocab_size(len(vocabulary))
    vocabulary.write(writer)
    ends = [
        Tensor("token_embd.weight", (len(vocabulary), WIDTH), Q8_0, sigma=0.02),
        Tensor("output_norm.weight", (WIDTH,), F32, sigma=0.0, mean=125 * UNIT),
    ]
    tensors = [*ends, *tensors]
    if exact:
        tensors = [msgspec.structs.replace(tensor, kind=F32) for tensor in tensors]
    writer.add_file_type(LlamaFileType.ALL_F32 if exact else LlamaFileType.MOSTLY_Q8_0)
    return write_tensors(path, writer, tensors, seed, _quiet_tokens(vocabulary, raw_bytes=False))


def _norm(layer: int, name: str, size: int = WIDTH) -> Tensor:
    return Tensor(f"blk.{layer}.{name}.weight", (size,), F32, sigma=0.1, mean=1.0)


def _ssm(layer: int) -> Iterator[Tensor]:
    """A selective state space (Gu and Dao, 2023) whose state fades over some tens of tokens."""
    block = f"blk.{layer}.ssm_"
    yield Tensor(block + "in.weight", (2 * INNER, WIDTH), Q8_0, sigma=2 * UNIT)
    yield Tensor(block + "conv1d.weight", (INNER, CONVOLUTION), F32, sigma=0.5)
    yield Tensor(block + "conv1d.bias", (INNER,), F32, sigma=0.1)
    yield Tensor(block + "x.weight", (RANK + 2 * STATE, INNER), Q8_0, sigma=INNER**-0.5)
    yield Tensor(block + "dt.weight", (INNER, RANK), F32, sigma=0.3)
    yield Tensor(block + "dt.bias", (INNER,), F32, sigma=0.3, mean=-2.0)
    yield Tensor(block + "a", (INNER, STATE), F32, sigma=0.1, mean=-0.3)
    yield Tensor(block + "d", (INNER,), F32, sigma=0.1, mean=1.0)
    yield Tensor(block + "out.weight", (WIDTH, INNER), Q8_0, sigma=2 * INNER**-0.5)


def _ssm_norms(layer: int) -> Iterator[Tensor]:
    yield _norm(layer, "ssm_dt_norm", RANK)
    yield _norm(layer, "ssm_b_norm", STATE)
    yield _norm(layer, "ssm_c_norm", STATE)


def _attention(layer: int) -> Iterator[Tensor]:
    block, kv_width = f"blk.{layer}.attn_", WIDTH // HEADS * KV_HEADS
    yield Tensor(block + "q.weight", (WIDTH, WIDTH), Q8_0, sigma=1.5 * UNIT)
    yield Tensor(block + "k.weight", (kv_width, WIDTH), Q8_0, sigma=1.5 * UNIT)
    yield Tensor(block + "v.weight", (kv_width, WIDTH), Q8_0, sigma=UNIT)
    yield Tensor(block + "output.weight", (WIDTH, WIDTH), Q8_0, sigma=UNIT)


def _latent(layer: int) -> Iterator[Tensor]:
    block, unit = f"blk.{layer}.attn_", LATENT**-0.5
    yield _norm(layer, "attn_q_a_norm", LATENT)
    yield _norm(layer, "attn_kv_a_norm", LATENT)
    yield Tensor(block + "q_a.weight", (LATENT, WIDTH), Q8_0, sigma=UNIT)
    yield Tensor(block + "q_b.weight", (HEADS * 2 * ROTATED, LATENT), Q8_0, sigma=1.5 * unit)
    yield Tensor(block + "kv_a_mqa.weight", (LATENT + ROTATED, WIDTH), Q8_0, sigma=1.5 * UNIT)
    yield Tensor(block + "k_b.weight", (HEADS, LATENT, ROTATED), Q8_0, sigma=ROTATED**-0.5)
    yield Tensor(block + "v_b.weight", (HEADS, ROTATED, LATENT), Q8_0, sigma=unit)
    yield Tensor(block + "output.weight", (WIDTH, HEADS * ROTATED), Q8_0, sigma=UNIT)


def _feed_forward(layer: int) -> Iterator[Tensor]:
    block = f"blk.{layer}.ffn_"
    yield Tensor(block + "gate.weight", (FEED_FORWARD, WIDTH), Q8_0, sigma=UNIT)
    yield Tensor(block + "up.weight", (FEED_FORWARD, WIDTH), Q8_0, sigma=UNIT)
    yield Tensor(block + "down.weight", (WIDTH, FEED_FORWARD), Q8_0, sigma=2 * FEED_FORWARD**-0.5)
