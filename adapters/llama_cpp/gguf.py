"""Reads and checks the header of a GGUF file before native code sees the file.

Written here and not taken from a library because the file may be hostile: every length is compared with what is left of
the file before it is used, memory stays at a few megabytes whatever the file says, and the only exception is GGUFError.
The rules are those of ggml's `gguf.cpp`, and in places stricter. Layout (little-endian): magic, version, the number of
tensors and of key-value pairs, the pairs, the tensors' shapes and offsets, padding, the tensors' data.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

PAIRS_MAX = 1 << 13
TENSORS_MAX = 1 << 15
ITEMS_MAX = 1 << 24
KEY_BYTES_MAX = 1 << 12
STRING_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 63
DIMENSIONS_MAX = 4
ITEMS_KEPT_MAX = 256
KEPT_BYTES_MAX = 4 << 20
LAYERS_MAX = 512
DATA_ALIGNMENT = 32

_WINDOW_BYTES = 1 << 20
_RANK = 4
_POOLINGS = (-1, 0, 1, 2, 3, _RANK)
_EPSILONS = ("layer_norm_epsilon", "layer_norm_rms_epsilon")
_VECTOR_KINDS = ("F32", "F16", "BF16")
_UNMULTIPLIED_KINDS = ("I8", "I16", "I32", "I64", "F64")
_MATRIX = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(up|down|gate))\.weight")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "B",
    10: "Q",
    11: "q",
    12: "d",
}

# ggml's types: id -> (name, values per block, bytes per block).
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

_ENCODERS = frozenset(
    (
        *(
            "bert",
            "modern-bert",
            "neo-bert",
            "eurobert",
            "nomic-bert",
            "nomic-bert-moe",
            "jina-bert-v2",
            "jina-bert-v3",
        ),
        *("t5encoder", "gemma-embedding"),
    )
)


class GGUFError(ValueError):
    """The file is not a GGUF file that can be loaded; the message says what is wrong and where."""


class Array(msgspec.Struct, frozen=True):
    """An array of the metadata: how many items, and the numbers themselves where these are few."""

    count: int
    items: tuple[int | float, ...] = ()


Scalar = str | int | float | bool
Value = Scalar | Array
Wanted = TypeVar("Wanted", str, int, Array)


class Tensor(msgspec.Struct, frozen=True):
    """A tensor's sizes as ggml writes them, the row length first, and the name of its type."""

    shape: tuple[int, ...]
    kind: str


class GGUF(msgspec.Struct, frozen=True):
    """What a header says. Sizes that it does not state are None; `vocabulary` is 0 without a tokenizer."""

    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    parameters: int
    size_bytes: int
    architecture: str
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    vocabulary: int
    chat_template: str | None
    pooling_type: int | None
    file_type: int | None


def read(path: Path) -> GGUF:
    """Reads the header of `path`. Raises GGUFError for what is wrong in the file, OSError when it cannot be read."""
    if not path.is_file():
        path.stat()
        raise GGUFError("it is not a file")
    with path.open("rb") as file:
        return parse(file)


def parse(file: BinaryIO) -> GGUF:
    """The same of a file that is open; only its header is read."""
    reader = _Reader(file)
    version, tensor_count, pair_count = _prelude(reader)
    metadata = _metadata(reader, pair_count)
    tensors, parameters = _tensors(reader, tensor_count, _alignment(metadata))
    architecture = _get(metadata, "general.architecture", str)
    if not architecture:
        raise GGUFError("general.architecture is missing")
    tokens = _get(metadata, "tokenizer.ggml.tokens", Array)
    header = GGUF(
        version=version,
        metadata=metadata,
        tensors=tensors,
        parameters=parameters,
        size_bytes=reader.size,
        architecture=architecture,
        context_length=_get(metadata, f"{architecture}.context_length", int),
        block_count=_get(metadata, f"{architecture}.block_count", int),
        embedding_length=_get(metadata, f"{architecture}.embedding_length", int),
        vocabulary=tokens.count if tokens else 0,
        chat_template=_get(metadata, "tokenizer.chat_template", str),
        pooling_type=_get(metadata, f"{architecture}.pooling_type", int),
        file_type=_get(metadata, "general.file_type", int),
    )
    _check_sense(header)
    return header


def _check_sense(header: GGUF) -> None:
    """Refuses what llama.cpp takes for granted: it ends its process where it meets one of these."""
    layers = header.block_count
    if layers is not None and not 1 <= layers <= LAYERS_MAX:
        raise GGUFError(f"{header.architecture}.block_count is {layers}, not between 1 and {LAYERS_MAX}")
    if header.pooling_type not in (None, *_POOLINGS):
        raise GGUFError(f"{header.architecture}.pooling_type is {header.pooling_type}, which nobody knows")
    if header.metadata.get("tokenizer.ggml.model") in ("none", "no_vocab"):
        raise GGUFError("it has no tokenizer")
    for key, value in header.metadata.items():
        # What is no number is not at least zero either.
        if key.endswith(_EPSILONS) and isinstance(value, float) and not 0.0 <= value < math.inf:
            raise GGUFError(f"{key} is {value}")
    for name, tensor in header.tensors.items():
        vector = len(tensor.shape) == 1 and name.endswith((".weight", ".bias"))
        if vector and tensor.kind not in _VECTOR_KINDS:
            raise GGUFError(f"tensor {name!r} is a vector of the type {tensor.kind}")
        if tensor.kind in _UNMULTIPLIED_KINDS and _MATRIX.fullmatch(name):
            raise GGUFError(f"tensor {name!r} is a matrix of the type {tensor.kind}")


def reranks(gguf: GGUF) -> bool:
    """Whether the model is made to score pairs of texts."""
    return gguf.pooling_type == _RANK


def encodes(gguf: GGUF) -> bool:
    """Whether the model is an encoder: it has no output matrix, and nothing comes out of it token by token."""
    return gguf.architecture in _ENCODERS


def embeds(gguf: GGUF) -> bool:
    """Whether the model is made for embeddings: an encoder, or a decoder that pools its outputs."""
    return not reranks(gguf) and (encodes(gguf) or gguf.pooling_type not in (None, 0))


class _Reader:
    """Numbers and strings from the front of a file, through one window of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self._window = b""
        self._base = 0
        self._at = 0

    @property
    def position(self) -> int:
        """Where in the file the next byte is."""
        return self._base + self._at

    @property
    def left(self) -> int:
        return self.size - self.position

    def numbers(self, layout: str, what: str) -> tuple[int | float, ...]:
        """What the `struct` layout says, without padding."""
        layout = "<" + layout
        size = struct.calcsize(layout)
        self._load(size, what)
        self._at += size
        return struct.unpack_from(layout, self._window, self._at - size)

    def unsigned(self, layout: str, what: str) -> int:
        return int(self.numbers(layout, what)[0])

    def string(self, size_max: int, what: str) -> bytes:
        """A string of at most `size_max` bytes."""
        size = self.unsigned("Q", f"the length of {what}")
        self._check(size, what)
        if size > size_max:
            raise GGUFError(f"{what} at byte {self.position} has {size} bytes, at most {size_max} are allowed")
        self._load(size, what)
        self._at += size
        return self._window[self._at - size : self._at]

    def skip(self, size: int, what: str) -> None:
        self._check(size, what)
        self._at += size

    def skip_strings(self, count: int, what: str) -> None:
        """Steps over strings without making them; some hundred thousand are the rule."""
        length = struct.Struct("<Q")
        while count:
            self._load(length.size, what)
            # The loop that counts: plain local variables, and leaves the window at its last whole length.
            window, at, last = self._window, self._at, len(self._window) - length.size
            while count and at <= last:
                at += length.size + length.unpack_from(window, at)[0]
                count -= 1
            self._at = at
            self._check(0, what)

    def _check(self, size: int, what: str) -> None:
        if size > self.left:
            at = min(self.position, self.size)
            raise GGUFError(f"the file ends inside of {what}: byte {at} plus {size} bytes, of {self.size}")

    def _load(self, size: int, what: str) -> None:
        """Makes sure that the window holds the next `size` bytes."""
        self._check(size, what)
        if self._at + size > len(self._window):
            self._base, self._at = self.position, 0
            self._file.seek(self._base)
            self._window = self._file.read(max(size, _WINDOW_BYTES))
            if len(self._window) < size:
                raise GGUFError(f"the file became shorter while {what} was read")


def _prelude(reader: _Reader) -> tuple[int, int, int]:
    magic = bytes(int(byte) for byte in reader.numbers("4B", "the magic"))
    if magic != b"GGUF":
        raise GGUFError(f"it does not begin with GGUF but with {magic!r}")
    version = reader.unsigned("I", "the version")
    if version not in (2, 3):
        raise GGUFError(f"version {version} is not supported, only 2 and 3 are")
    tensor_count = reader.unsigned("Q", "the number of tensors")
    pair_count = reader.unsigned("Q", "the number of metadata pairs")
    # A pair takes at least 13 bytes (length, a letter, type, value), a tensor 33.
    if pair_count > min(PAIRS_MAX, reader.left // 13):
        raise GGUFError(f"{pair_count} metadata pairs are too many for {reader.size} bytes")
    if tensor_count > min(TENSORS_MAX, reader.left // 33):
        raise GGUFError(f"{tensor_count} tensors are too many for {reader.size} bytes")
    return version, tensor_count, pair_count


def _metadata(reader: _Reader, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    items = kept_bytes = 0
    for index in range(count):
        raw = reader.string(KEY_BYTES_MAX, f"key {index}")
        try:
            key = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise GGUFError(f"key {index} is not UTF-8") from exc
        if not key:
            raise GGUFError(f"key {index} is empty")
        if key in metadata:
            raise GGUFError(f"key {key!r} is there twice")
        value = metadata[key] = _value(reader, key)
        kept_bytes += len(raw)
        if isinstance(value, Array):
            items += value.count
            kept_bytes += 32 * len(value.items)
        elif isinstance(value, str):
            kept_bytes += len(value)
        if items > ITEMS_MAX or kept_bytes > KEPT_BYTES_MAX:
            raise GGUFError(f"the metadata up to key {key!r} is too large")
    return metadata


def _value(reader: _Reader, key: str) -> Value:
    what = f"the value of {key!r}"
    kind = reader.unsigned("I", f"the type of {key!r}")
    if kind == _STRING:
        return reader.string(STRING_BYTES_MAX, what).decode("utf-8", "replace")
    if kind == _ARRAY:
        return _array(reader, key, what)
    if kind not in _SCALARS:
        raise GGUFError(f"{what} has the unknown type {kind}")
    value = reader.numbers(_SCALARS[kind], what)[0]
    if kind != _BOOL:
        return value
    if value not in (0, 1):
        raise GGUFError(f"{what} is a boolean of {value}")
    return bool(value)


def _array(reader: _Reader, key: str, what: str) -> Array:
    kind = reader.unsigned("I", f"the item type of {key!r}")
    count = reader.unsigned("Q", f"the number of items of {key!r}")
    if kind == _ARRAY:
        raise GGUFError(f"{what} is an array of arrays")
    if kind != _STRING and kind not in _SCALARS:
        raise GGUFError(f"{what} is an array of the unknown type {kind}")
    size = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
    if count > min(ITEMS_MAX, reader.left // size):
        raise GGUFError(f"{what} has {count} items, too many for the {reader.left} bytes left")
    if kind == _STRING:
        reader.skip_strings(count, what)
        return Array(count)
    if count <= ITEMS_KEPT_MAX:
        return Array(count, reader.numbers(f"{count}{_SCALARS[kind]}", what))
    reader.skip(count * size, what)
    return Array(count)


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = _get(metadata, "general.alignment", int)
    if alignment is None:
        return 32
    if alignment <= 0 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment is {alignment}, not a power of two")
    return alignment


def _tensors(reader: _Reader, count: int, alignment: int) -> tuple[dict[str, Tensor], int]:
    """Checks all tensors; gives them by name, and the number of values in them."""
    tensors: dict[str, Tensor] = {}
    parameters = end = 0
    for index in range(count):
        name, tensor, size, offset = _tensor(reader, index)
        if name in tensors:
            raise GGUFError(f"tensor {name!r} is there twice")
        tensors[name] = tensor
        if offset % alignment:
            raise GGUFError(f"tensor {name!r} at offset {offset} is not aligned to {alignment} bytes")
        # ggml wants them one behind the other, in order; so none overlaps another.
        expected = -(-end // alignment) * alignment
        if offset != expected:
            raise GGUFError(f"tensor {name!r} is at offset {offset} instead of {expected}")
        end = offset + size
        parameters += math.prod(tensor.shape)
    start = -(-reader.position // alignment) * alignment
    if count and start % DATA_ALIGNMENT:
        raise GGUFError(f"the tensors begin at byte {start}, which is no multiple of {DATA_ALIGNMENT}")
    if count and start + end > reader.size:
        raise GGUFError(f"the tensors end at byte {start + end}, behind the end of the file at {reader.size}")
    return tensors, parameters


def _tensor(reader: _Reader, index: int) -> tuple[str, Tensor, int, int]:
    """Name, shape, bytes and offset of the next tensor."""
    name = reader.string(NAME_BYTES_MAX, f"the name of tensor {index}").decode("utf-8", "backslashreplace")
    what = f"tensor {name!r}"
    dimensions = reader.unsigned("I", f"the dimensions of {what}")
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise GGUFError(f"{what} has {dimensions} dimensions")
    shape = tuple(int(size) for size in reader.numbers(f"{dimensions}Q", f"the shape of {what}"))
    kind = reader.unsigned("I", f"the type of {what}")
    offset = reader.unsigned("Q", f"the offset of {what}")
    values = 1
    for size in shape:
        values *= size
        if not 0 < values < 1 << 63:
            raise GGUFError(f"{what} has the impossible shape {list(shape)}")
    if kind not in TENSOR_TYPES:
        raise GGUFError(f"{what} has the unknown type {kind}")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if shape[0] % block:
        raise GGUFError(f"{what} of type {type_name} has rows of {shape[0]} values, not a multiple of {block}")
    return name, Tensor(shape, type_name), values // block * block_bytes, offset


def _get(metadata: Mapping[str, Value], key: str, kind: type[Wanted]) -> Wanted | None:
    value = metadata.get(key)
    if value is None:
        return None
    if type(value) is not kind:
        raise GGUFError(f"{key} is of the type {type(value).__name__} instead of {kind.__name__}")
    return value
