"""GGUF files with something wrong in them: parts of a sound file are changed and it is written anew, or its bytes are.

What is changed by parts mostly passes any check of the header alone, so that it is llama.cpp that meets it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from adapters.llama_cpp import gguf

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
FLOATS = (0.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (b"", b"\xff\xfe", b"a" * 70_000, b"\0", "\u2581\u200b\U0001f600".encode(), b"<|im_end|>", b"%s%n", b"../../x")
ARCHITECTURES = (
    *("llama", "llama4", "qwen2", "qwen2vl", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gemma3n"),
    *(
        "mamba",
        "mamba2",
        "jamba",
        "falcon-h1",
        "rwkv6",
        "rwkv7",
        "bert",
        "nomic-bert",
        "modern-bert",
        "t5",
        "t5encoder",
    ),
    *("gpt2", "gptneox", "phi2", "phi3", "mpt", "bloom", "starcoder", "deepseek", "deepseek2", "command-r", "grok"),
    *("chatglm", "granitehybrid", "lfm2", "minicpm3", "olmoe", "plamo2", "arctic", "wavtokenizer-dec", "clip", "none"),
)
TEMPLATES = (
    b"{% for i in range(100000000) %}x{% endfor %}",
    b"{{ ''.__class__.__mro__ }}",
    b"{{ 'x' * 1000000000 }}",
    b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    b"{{ raise_exception('no') }}",
    b"{% if %}",
    b"{" * 5000,
)


class Pair(msgspec.Struct):
    """A key and its value: `items` are the bytes of each item, of a scalar the one. `array`: of `kind`s."""

    key: bytes
    kind: int
    items: list[bytes]
    array: bool = False


class Tensor(msgspec.Struct):
    name: bytes
    shape: list[int]
    kind: int
    data: bytes


class File(msgspec.Struct):
    """A file in its parts."""

    pairs: list[Pair]
    tensors: list[Tensor]

    def architecture(self) -> bytes:
        return next((pair.items[0] for pair in self.pairs if pair.key == b"general.architecture"), b"")


def read(path: Path) -> File:
    """The parts of a sound file."""
    data, at = path.read_bytes(), 8

    def number(layout: str) -> int:
        nonlocal at
        at += struct.calcsize(layout)
        return int(struct.unpack_from("<" + layout, data, at - struct.calcsize(layout))[0])

    def item(kind: int) -> bytes:
        nonlocal at
        size = number("Q") if kind == STRING else struct.calcsize(NUMBERS[kind])
        at += size
        return data[at - size : at]

    tensor_count, pairs = number("Q"), list[Pair]()
    for _ in range(number("Q")):
        key, kind = item(STRING), number("I")
        array = kind == ARRAY
        kind = number("I") if array else kind
        pairs.append(Pair(key, kind, [item(kind) for _ in range(number("Q") if array else 1)], array))
    heads = [
        (item(STRING), [number("Q") for _ in range(number("I"))], number("I"), number("Q")) for _ in range(tensor_count)
    ]
    start, ends = -(-at // 32) * 32, [offset for *_, offset in heads[1:]]
    tensors = [
        Tensor(name, shape, kind, data[start + offset : start + end])
        for (name, shape, kind, offset), end in zip(heads, [*ends, len(data) - start], strict=True)
    ]
    return File(pairs, tensors)


def written(file: File, alignment: int = 32) -> bytes:
    """The bytes of a file, whatever its parts say, with its tensors one behind the other."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(file.tensors), len(file.pairs)))
    for pair in file.pairs:
        out += text(pair.key)
        out += struct.pack("<IIQ", ARRAY, pair.kind, len(pair.items)) if pair.array else struct.pack("<I", pair.kind)
        out += b"".join(map(text, pair.items) if pair.kind == STRING else pair.items)
    body = bytearray()
    for tensor in file.tensors:
        body += bytes(-len(body) % alignment)
        out += text(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        out += struct.pack("<IQ", tensor.kind, len(body))
        body += tensor.data
    return bytes(out + bytes(-len(out) % alignment) + body)


# Each changes one thing; the file is a copy.


def _any_number(draw: random.Random, kind: int) -> bytes:
    layout = "<" + NUMBERS[kind]
    if NUMBERS[kind] in "fd":
        return struct.pack(layout, draw.choice(FLOATS if NUMBERS[kind] == "d" else FLOATS[:3] + FLOATS[5:]))
    size = struct.calcsize(layout)
    value = draw.choice((*EXTREMES, draw.randrange(64), draw.randrange(1 << 8 * size)))
    return struct.pack("<Q", value)[:size]


def _hyperparameters(file: File, draw: random.Random) -> None:
    """A number that sizes, counts or scales something."""
    numbers = [pair for pair in file.pairs if not pair.array and pair.kind != STRING]
    pair = draw.choice([one for one in numbers if not one.key.startswith(b"tokenizer")] or numbers)
    old = pair.items[0]
    pair.items[0] = _any_number(draw, pair.kind)
    if draw.random() < 0.4 and NUMBERS[pair.kind] not in "fd":
        near = int.from_bytes(old, "little") + draw.choice((-1, 1, 2, 4, -2, 32))
        near = near if draw.random() < 0.7 else 2 * near
        pair.items[0] = (near % (1 << 8 * len(old))).to_bytes(len(old), "little")


def _per_layer(file: File, draw: random.Random) -> None:
    """A number for all layers made one for each, or one of too few or too many."""
    pair = draw.choice([one for one in file.pairs if one.kind in (4, 5)])
    layers = draw.choice((0, 1, 3, 4, 6, 512, 513))
    pair.array, pair.items = True, [*(pair.items[:1] * layers)]
    for index in range(len(pair.items)):
        if draw.random() < 0.3:
            pair.items[index] = _any_number(draw, pair.kind)


def _types(file: File, draw: random.Random) -> None:
    """A value of another type, of as many bytes as that takes."""
    pair = draw.choice(file.pairs)
    kind = draw.choice((*NUMBERS, STRING))
    pair.items = [item[:1] + b"x" if kind == STRING else _any_number(draw, kind) for item in pair.items[:1000]]
    pair.kind = kind
    pair.array = pair.array != (draw.random() < 0.2)
    if not pair.array:
        pair.items = (pair.items or [_any_number(draw, 4) if kind != STRING else b""])[:1]


def _keys(file: File, draw: random.Random) -> None:
    """Keys that are missing, renamed or under another one's name."""
    pair = draw.choice(file.pairs)
    match draw.randrange(4):
        case 0 | 1:
            file.pairs.remove(pair)
        case 2:
            pair.key = pair.key[:-1] + b"_"
        case _:
            other = draw.choice(file.pairs)
            pair.key, other.key = other.key, pair.key


def _tokenizer(file: File, draw: random.Random) -> None:
    """Its arrays of other lengths or with other items, or the numbers of its special tokens."""
    pair = draw.choice([one for one in file.pairs if one.key.startswith(b"tokenizer")])
    if not pair.array:
        pair.items[0] = draw.choice(TEXTS) if pair.kind == STRING else _any_number(draw, pair.kind)
        if pair.key == b"tokenizer.ggml.model":
            pair.items[0] = draw.choice((b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"none", b"no_vocab"))
        return
    count = len(pair.items)
    match draw.randrange(4):
        case 0:
            del pair.items[draw.randrange(count + 1) :]
        case 1:
            pair.items += pair.items[: draw.randrange(1, count + 1)]
        case 2:
            pair.items.clear()
        case _:
            for _ in range(draw.choice((1, 3, count))):
                item = draw.choice(TEXTS[:2] + TEXTS[3:]) if pair.kind == STRING else _any_number(draw, pair.kind)
                pair.items[draw.randrange(count)] = item


def _template(file: File, draw: random.Random) -> None:
    for pair in file.pairs:
        if pair.key == b"tokenizer.chat_template":
            pair.items[0] = draw.choice(TEMPLATES)


def _architecture(file: File, draw: random.Random) -> None:
    """The same numbers and tensors, said to be of another architecture."""
    old, new = file.architecture(), draw.choice(ARCHITECTURES).encode()
    for pair in file.pairs:
        if pair.key == b"general.architecture":
            pair.items[0] = new
        elif pair.key.startswith(old + b".") and draw.random() < 0.97:
            pair.key = new + pair.key[len(old) :]


def _names(file: File, draw: random.Random) -> None:
    """Tensors that are missing, renamed, or exchanged."""
    tensor, other = draw.choice(file.tensors), draw.choice(file.tensors)
    match draw.randrange(4):
        case 0:
            file.tensors.remove(tensor)
        case 1:
            tensor.name = draw.choice((tensor.name[:-1] + b"_", tensor.name + b".x", b"", b"x" * 63, b"\xff\xfe"))
        case 2:
            tensor.name, other.name = other.name, tensor.name
        case _:
            extra = draw.choice((b"output.weight", b"rope_freqs.weight", b"blk.99.attn_q.weight", b"cls.weight"))
            file.tensors.append(Tensor(extra, list(tensor.shape), tensor.kind, tensor.data))


def _shapes(file: File, draw: random.Random) -> None:
    """Other sizes, with as much data as they take."""
    tensor = draw.choice(file.tensors)
    match draw.randrange(4):
        case 0:
            tensor.shape.reverse()
        case 1:
            tensor.shape = [tensor.shape[0], *([1] * draw.randrange(4))][:4]
        case 2:
            tensor.shape = [*tensor.shape, *([1] * (4 - len(tensor.shape)))]
        case _:
            place = draw.randrange(len(tensor.shape))
            tensor.shape[place] = max(1, draw.choice((tensor.shape[place] // 2, tensor.shape[place] * 2, 32, 1, 256)))
    _fill(tensor)


def _kinds(file: File, draw: random.Random) -> None:
    """Another type, with as much data as that takes."""
    for tensor in [draw.choice(file.tensors)] if draw.random() < 0.7 else file.tensors:
        tensor.kind = draw.choice(list(gguf.TENSOR_TYPES))
        _fill(tensor)


def _fill(tensor: Tensor) -> None:
    _, block, block_bytes = gguf.TENSOR_TYPES[tensor.kind]
    values = 1
    for size in tensor.shape:
        values *= size
    size_bytes = min(values // block * block_bytes, 16 << 20)
    tensor.data = (tensor.data * (size_bytes // max(1, len(tensor.data)) + 1))[:size_bytes]


def _weights(file: File, draw: random.Random) -> None:
    """Weights that are no numbers, or enormous."""
    tensor = draw.choice(file.tensors)
    data = bytearray(tensor.data)
    for _ in range(draw.choice((1, 100, 1000))):
        at = draw.randrange(max(1, len(data) - 4))
        data[at : at + 4] = draw.choice((b"\xff" * 4, b"\x00\x00\x80\x7f", b"\x00\x7c\x00\x7c", draw.randbytes(4)))
    tensor.data = bytes(data[: len(tensor.data)])


BY_PARTS: Mapping[str, Callable[[File, random.Random], None]] = {
    "hyperparameters": _hyperparameters,
    "per layer": _per_layer,
    "types": _types,
    "keys": _keys,
    "tokenizer": _tokenizer,
    "template": _template,
    "architecture": _architecture,
    "names": _names,
    "shapes": _shapes,
    "kinds": _kinds,
    "weights": _weights,
}
OTHERS = ("bytes", "alignment", "truncation")


def mutated(sound: File, draw: random.Random) -> tuple[str, bytes]:
    """What was changed, and the file with that."""
    classes = (*BY_PARTS, "hyperparameters", "hyperparameters", "tokenizer", *OTHERS)
    chosen = draw.choice(classes)
    if chosen not in BY_PARTS:
        return chosen, _as_bytes(chosen, sound, draw)
    file = msgspec.convert(msgspec.to_builtins(sound, builtin_types=(bytes,)), File)
    for _ in range(draw.choice((1, 1, 1, 2))):
        BY_PARTS[chosen](file, draw)
    return chosen, written(file)


def _as_bytes(chosen: str, sound: File, draw: random.Random) -> bytes:
    if chosen == "alignment":
        alignment = draw.choice((1, 2, 8, 16, 64, 128, 4096, 1 << 20, 1 << 31, 0, 3))
        file = File([*sound.pairs, Pair(b"general.alignment", 4, [struct.pack("<I", alignment)])], sound.tensors)
        return written(file, alignment if 0 < alignment <= 1 << 20 and draw.random() < 0.7 else 32)
    out = bytearray(written(sound))
    if chosen == "truncation":
        return bytes(out[: draw.randrange(len(out))])
    header_bytes = len(out) - sum(len(tensor.data) for tensor in sound.tensors)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(header_bytes if draw.random() < 0.9 else len(out))
        match draw.randrange(4):
            case 0:
                out[at] = draw.randrange(256)
            case 1:
                out[at] ^= 1 << draw.randrange(8)
            case 2:
                out[at : at + 8] = struct.pack("<Q", draw.choice(EXTREMES))
            case _:
                other = draw.randrange(header_bytes)
                out[at : at + 16] = out[other : other + 16]
    return bytes(out)
