"""The demo tokenizer: byte-level BPE whose text splits are those of llama.cpp's "qwen2" pre-tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from adapters.llama_cpp.demo.template import CONTROL_TOKENS, VISIBLE_TOKENS

PRE_TOKENIZER = "qwen2"
# The expression of that name in llama.cpp; it splits numbers into single digits.
_SPLIT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Further borders while merges are learnt: no merge joins a capital or a quote to the space before it, so that a copied
# name is the same tokens after a space, a quote or a bracket.
_BORDERS = r"^ (?=\p{Lu})|^[^\s\p{L}\p{N}](?=\p{L})"


def splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer that isolates the matches of `pattern`."""
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def byte_level() -> pre_tokenizers.PreTokenizer:
    """Bytes as printable characters, without further splits."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a vocabulary of `size` tokens; control tokens come first, visible ones next."""
    tokenizer = Tokenizer(models.BPE())
    special = [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
    visible = [AddedToken(token, special=False, normalized=False) for token in VISIBLE_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special + visible,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter(_SPLIT), splitter(_BORDERS), byte_level()])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(visible)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter(_SPLIT), byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
