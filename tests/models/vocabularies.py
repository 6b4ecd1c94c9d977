"""Vocabularies for generated models: synthetic byte-level BPE, SentencePiece and WordPiece, or that of a GGUF file."""

import itertools
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
from gguf import GGUFValueType, GGUFWriter

Scalar = str | int | float | bool
Value = Scalar | list[str] | list[int] | list[float] | list[bool]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The plain ChatML chat template."""

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
MARKER_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")

_WORDS = (
    "the of and to in is that it was for on are as with his they be at one have this from or had by not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may water long little very after words called just where most know get through back "
    "much before go good new write our used me man too any day same right look think also around another came come "
    "work three word must because does part even place well such here take why things help put years different away "
    "again off went old number great tell men say small every found still between name should home big give air line "
    "user assistant system content answer question city weather capital France Paris London Hello"
)
_CHARACTERS = "éèüöäßñçåøæ€£…“”·你好世界日本語中文한국привет😀🎉🚀"
_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


class TokenType(IntEnum):
    """llama.cpp's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary(msgspec.Struct, frozen=True):
    """The `tokenizer.*` metadata of a GGUF file, keys without that prefix."""

    fields: dict[str, Value]

    @property
    def tokens(self) -> list[str]:
        """The text of each token, by id, in the tokenizer's own alphabet."""
        return self.fields["ggml.tokens"]  # type: ignore[return-value]

    @property
    def token_types(self) -> list[int]:
        """The `TokenType` of each token, by id."""
        return self.fields["ggml.token_type"]  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.tokens)

    def with_fields(self, **fields: Value) -> "Vocabulary":
        """A copy with some fields replaced; `__` in a name stands for a dot."""
        return Vocabulary({**self.fields, **{name.replace("__", "."): value for name, value in fields.items()}})

    def write(self, writer: GGUFWriter) -> None:
        """Add every field to `writer`; integers are unsigned 32 bit, as llama.cpp insists."""
        for name, value in self.fields.items():
            key = f"tokenizer.{name}"
            match value:
                case bool():
                    writer.add_bool(key, value)
                case int():
                    writer.add_uint32(key, value)
                case float():
                    writer.add_float32(key, value)
                case str():
                    writer.add_string(key, value)
                case _:
                    writer.add_array(key, value)


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 byte values."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = (byte for byte in range(256) if byte not in set(kept))
    table = {byte: chr(byte) for byte in kept} | {byte: chr(256 + index) for index, byte in enumerate(moved)}
    return [table[byte] for byte in range(256)]


def byte_level_bpe(size: int, chat_template: str = CHATML) -> Vocabulary:
    """A GPT-2-style vocabulary of exactly `size` tokens (600 or more) with synthetic merges.

    Ids 0-255 are the bytes, then come merged tokens in rank order; markers and control tokens are last.
    """
    special = [*MARKER_TOKENS, *CONTROL_TOKENS]
    if size < 600:
        raise ValueError(f"a vocabulary of {size} tokens leaves no room for merges; ask for 600 or more")
    tokens = byte_symbols()
    known = set(tokens)
    merges: list[str] = []
    for left, right in _merges():
        if len(tokens) == size - len(special):
            break
        if left + right not in known:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
            known.add(left + right)
    ids = {token: len(tokens) + index for index, token in enumerate(special)}
    types = [TokenType.NORMAL] * len(tokens)
    types += [TokenType.USER_DEFINED] * len(MARKER_TOKENS) + [TokenType.CONTROL] * len(CONTROL_TOKENS)
    return Vocabulary(
        {
            "ggml.model": "gpt2",
            "ggml.pre": "gpt-2",
            "ggml.tokens": tokens + special,
            "ggml.token_type": [int(kind) for kind in types],
            "ggml.merges": merges,
            "ggml.bos_token_id": ids["<|endoftext|>"],
            "ggml.eos_token_id": ids["<|im_end|>"],
            "ggml.padding_token_id": ids["<|endoftext|>"],
            "ggml.add_bos_token": False,
            "ggml.fim_pre_token_id": ids["<|fim_prefix|>"],
            "ggml.fim_mid_token_id": ids["<|fim_middle|>"],
            "ggml.fim_suf_token_id": ids["<|fim_suffix|>"],
            "ggml.fim_pad_token_id": ids["<|fim_pad|>"],
            "ggml.fim_rep_token_id": ids["<|repo_name|>"],
            "ggml.fim_sep_token_id": ids["<|file_sep|>"],
            "chat_template": chat_template,
        }
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Endless merge rules by rank: words from their prefixes, characters from bytes, syllables, longer words."""
    symbols = byte_symbols()
    for word in [" " + word for word in _WORDS.split()] + [*_CHARACTERS]:
        parts = [symbols[byte] for byte in word.encode()]
        yield from ((prefix, part) for prefix, part in zip(itertools.accumulate(parts), parts[1:], strict=False))
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    yield from ((syllable[0], syllable[1]) for syllable in syllables)
    yield from (("Ġ", syllable) for syllable in syllables)
    words = syllables
    while True:
        longer = [(word, syllable) for word in words for syllable in syllables]
        yield from itertools.chain.from_iterable((pair, ("Ġ" + pair[0], pair[1])) for pair in longer)
        words = [word + syllable for word, syllable in longer]


def word_piece() -> Vocabulary:
    """A small lower-case WordPiece vocabulary as BERT models carry it: common words, syllables, characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    words = list(dict.fromkeys(word.lower() for word in _WORDS.split() if len(word) > 1))
    starts = dict.fromkeys("▁" + piece for piece in [*characters, *syllables, *words])
    tokens = [*special, *starts, *characters, *syllables]
    types = [TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * (len(tokens) - len(special))
    return Vocabulary(
        {
            "ggml.model": "bert",
            "ggml.pre": "default",
            "ggml.tokens": tokens,
            "ggml.token_type": [int(kind) for kind in types],
            "ggml.token_type_count": 2,
            "ggml.padding_token_id": 0,
            "ggml.unknown_token_id": 1,
            "ggml.cls_token_id": 2,
            "ggml.bos_token_id": 2,
            "ggml.seperator_token_id": 3,
            "ggml.mask_token_id": 4,
        }
    )


def sentence_piece() -> Vocabulary:
    """A small SentencePiece vocabulary as Llama 2 carries it: bytes, characters, words with their space before."""
    special = ["<unk>", "<s>", "</s>"]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    marks = ['{"', '":', '",', '"}', "▁{", '▁"', '":"', '","']
    pieces = dict.fromkeys([*characters, *syllables, *marks, *("▁" + word for word in syllables)])
    tokens = [*special, *data, *pieces]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    types += [TokenType.NORMAL] * len(pieces)
    return Vocabulary(
        {
            "ggml.model": "llama",
            "ggml.pre": "default",
            "ggml.tokens": tokens,
            "ggml.scores": [0.0] * len(special) + [0.0] * 256 + [-float(rank) for rank in range(1, len(pieces) + 1)],
            "ggml.token_type": [int(kind) for kind in types],
            "ggml.bos_token_id": 1,
            "ggml.eos_token_id": 2,
            "ggml.unknown_token_id": 0,
            "ggml.add_bos_token": True,
            "ggml.add_space_prefix": True,
            "chat_template": CHATML,
        }
    )


def from_gguf(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file, with the ChatML template added where a generative one has none.

    `gguf.GGUFReader` makes an array of every string and takes many seconds for 150,000 tokens; this reads the
    metadata front to back, which takes a fraction of one.
    """
    fields = {
        key.removeprefix("tokenizer."): value
        for key, value in _read_metadata(path.read_bytes()).items()
        if key.startswith("tokenizer.")
    }
    if fields["ggml.model"] != "bert":
        fields.setdefault("chat_template", CHATML)
    return Vocabulary(fields)


_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def _read_metadata(data: bytes) -> dict[str, Any]:
    magic, version, _, count = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("not a GGUF file of version 2 or 3")
    metadata: dict[str, Any] = {}
    offset = 24
    for _ in range(count):
        key, offset = _read_string(data, offset)
        (kind,) = struct.unpack_from("<I", data, offset)
        metadata[key], offset = _read_value(data, offset + 4, GGUFValueType(kind))
    return metadata


def _read_value(data: bytes, offset: int, kind: GGUFValueType) -> tuple[Any, int]:
    if kind is GGUFValueType.STRING:
        return _read_string(data, offset)
    if kind is not GGUFValueType.ARRAY:
        (value,) = struct.unpack_from("<" + _FORMATS[kind], data, offset)
        return value, offset + struct.calcsize("<" + _FORMATS[kind])
    item, count = struct.unpack_from("<IQ", data, offset)
    offset += 12
    if item != GGUFValueType.STRING:
        layout = f"<{count}{_FORMATS[GGUFValueType(item)]}"
        return list(struct.unpack_from(layout, data, offset)), offset + struct.calcsize(layout)
    strings: list[str] = []
    for _ in range(count):
        text, offset = _read_string(data, offset)
        strings.append(text)
    return strings, offset


def _read_string(data: bytes, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, offset)
    start = offset + 8
    return data[start : start + length].decode(), start + length
