"""Write the trained network and its tokenizer as one GGUF file with Q8_0 matrices."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from adapters.llama_cpp.demo import template
from adapters.llama_cpp.demo.model import Shape
from adapters.llama_cpp.demo.vocabulary import PRE_TOKENIZER

DESCRIPTION = (
    "A tiny demonstration model, trained on synthetic text. It can be wrong: load a larger model for real work."
)


def export_gguf(path: Path, shape: Shape, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write `path` by way of a temporary file next to it, so that a reader never sees half a model."""
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    add_facts(writer, shape)
    add_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        add_weight(writer, name, weight.detach().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def add_facts(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The name, the licence and the sizes."""
    writer.add_name("gateway-demo")
    writer.add_description(DESCRIPTION)
    writer.add_license("apache-2.0")
    # It is too small to be creative: drawn at full temperature its answers go astray.
    writer.add_float32("general.sampling.temp", 0.2)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Tokens, merges, special ids and the chat template."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = dict.fromkeys(template.CONTROL_TOKENS, gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(template.VISIBLE_TOKENS, gguf.TokenType.USER_DEFINED)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(vocab[template.IM_END])
    writer.add_eot_token_id(vocab[template.IM_END])
    writer.add_pad_token_id(vocab[template.END_OF_TEXT])
    writer.add_bos_token_id(vocab[template.END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    for part, token in (("pre", template.FIM_PREFIX), ("suf", template.FIM_SUFFIX), ("mid", template.FIM_MIDDLE)):
        writer.add_uint32(f"tokenizer.ggml.fim_{part}_token_id", vocab[token])
    writer.add_chat_template(template.CHAT_TEMPLATE)


def add_weight(writer: gguf.GGUFWriter, name: str, values: np.ndarray) -> None:
    """Matrices as Q8_0, norms as float32; names are already llama.cpp's."""
    if values.ndim == 1:
        writer.add_tensor(name, values.astype(np.float32))
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
