import itertools
import math
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.llama_cpp.gguf import TENSOR_TYPES, Array, GGUFError, embeds, read

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def string(key: str, value: str | bytes) -> bytes:
    return pair(key, STRING, text(value))


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def f32(key: str, value: float) -> bytes:
    return pair(key, F32, struct.pack("<f", value))


def array(key: str, kind: int, count: int, items: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + items)


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = string("general.architecture", "llama")
PAIRS = [
    ARCHITECTURE,
    u32("llama.context_length", 2048),
    u32("llama.block_count", 2),
    u32("llama.embedding_length", 64),
    u32("general.file_type", 7),
    pair("general.ratio", F32, struct.pack("<f", 0.5)),
    pair("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
    array("tokenizer.ggml.tokens", STRING, 3, text("a") + text("") + text("é")),
    array("tokenizer.ggml.token_type", I32, 3, struct.pack("<3i", 1, 1, -1)),
    string("tokenizer.chat_template", "{{ messages }}"),
]
TENSORS = [tensor("a", (64, 2), 8, 0), tensor("b", (3,), 0, 160)]
DATA = bytes(160 + 12)


def build(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = DATA,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    pairs = PAIRS if pairs is None else pairs
    tensors = TENSORS if tensors is None else tensors
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, tensor_count, pair_count) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    path = tmp_path / "model.gguf"

    def written(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return written


Write = Callable[[bytes], Path]


@pytest.mark.parametrize("version", [2, 3])
def test_what_a_header_says(write: Write, version: int) -> None:
    content = build(version=version)
    gguf = read(write(content))
    assert gguf.version == version
    assert (gguf.architecture, gguf.context_length, gguf.block_count, gguf.embedding_length) == ("llama", 2048, 2, 64)
    assert (len(gguf.tensors), gguf.parameters, gguf.size_bytes) == (2, 131, len(content))
    assert (gguf.vocabulary, gguf.file_type, gguf.pooling_type) == (3, 7, None)
    assert gguf.chat_template == "{{ messages }}"
    assert gguf.metadata["tokenizer.ggml.tokens"] == Array(3)
    assert gguf.metadata["tokenizer.ggml.token_type"] == Array(3, (1, 1, -1))
    assert gguf.metadata["tokenizer.ggml.add_bos_token"] is True
    assert gguf.metadata["general.ratio"] == 0.5


def test_little_is_needed(write: Write) -> None:
    gguf = read(write(build([ARCHITECTURE], [], b"")))
    assert (gguf.context_length, gguf.vocabulary, gguf.chat_template, gguf.parameters) == (None, 0, None, 0)


def test_another_alignment(write: Write) -> None:
    pairs = [*PAIRS, u32("general.alignment", 256)]
    tensors = [tensor("a", (64, 2), 8, 0), tensor("b", (3,), 0, 256)]
    assert read(write(build(pairs, tensors, bytes(256 + 12), alignment=256))).parameters == 131


@pytest.mark.parametrize(
    ("architecture", "pooling", "expected"),
    [("llama", None, False), ("llama", 0, False), ("qwen3", 3, True), ("bert", None, True), ("t5encoder", 0, True)],
)
def test_which_models_embed(write: Write, architecture: str, pooling: int | None, expected: bool) -> None:
    pairs = [string("general.architecture", architecture)]
    if pooling is not None:
        pairs.append(u32(f"{architecture}.pooling_type", pooling))
    assert embeds(read(write(build(pairs, [], b"")))) is expected


HUGE = (1 << 64) - 1
BROKEN = [
    (b"", "the magic"),
    (b"GGU", "the magic"),
    (build(magic=b"GGML"), "b'GGML'"),
    (build(version=1), "version 1 is not supported"),
    (build(version=3 << 24), "version 50331648 is not supported"),
    (build(counts=(2, HUGE)), f"{HUGE} metadata pairs are too many"),
    (build(counts=(HUGE, 10)), f"{HUGE} tensors are too many"),
    (build(counts=(1 << 63, 10)), "tensors are too many"),
    (build([]), "general.architecture is missing"),
    (build([u32("general.architecture", 1)]), "general.architecture is of the type int"),
    (build([ARCHITECTURE, string("llama.block_count", "2")]), "llama.block_count is of the type str"),
    (build([ARCHITECTURE, u32("tokenizer.ggml.tokens", 1)]), "tokenizer.ggml.tokens is of the type int"),
    (build([ARCHITECTURE, ARCHITECTURE]), "'general.architecture' is there twice"),
    (build([pair("", U32, bytes(4)), ARCHITECTURE]), "key 0 is empty"),
    (build([pair(b"\xff", U32, bytes(4)), ARCHITECTURE]), "key 0 is not UTF-8"),
    (build([string("k" * 5000, "")]), "key 0 at byte 32 has 5000 bytes"),
    (build([struct.pack("<Q", HUGE) + b"key" * 9]), "inside of key 0"),
    (build([pair("k", STRING, struct.pack("<Q", HUGE))]), "inside of the value of 'k'"),
    (build([string("k", bytes((1 << 20) + 1))]), "1048577 bytes, at most 1048576"),
    (build([pair("k", 13, bytes(4))]), "the value of 'k' has the unknown type 13"),
    (build([pair("k", BOOL, b"\2")]), "a boolean of 2"),
    (build([array("k", ARRAY, 1, bytes(12))]), "an array of arrays"),
    (build([array("k", 99, 1, bytes(12))]), "an array of the unknown type 99"),
    (build([array("k", U64, HUGE, b"")]), f"{HUGE} items, too many"),
    (build([array("k", STRING, 1 << 60, b"")]), "items, too many"),
    (build([array("k", STRING, 2, text("a") + struct.pack("<Q", HUGE))]), "inside of the value of 'k'"),
    (build([array("k", STRING, 2, text("a") + struct.pack("<Q", 10_000))]), "inside of the value of 'k'"),
    (build([*PAIRS, u32("general.alignment", 0)]), "general.alignment is 0"),
    (build([*PAIRS, u32("general.alignment", 48)]), "general.alignment is 48"),
    (build([*PAIRS, string("general.alignment", "32")]), "general.alignment is of the type str"),
    (build(tensors=[tensor("n" * 64, (1,), 0, 0)]), "the name of tensor 0"),
    (build(tensors=[tensor("a", (), 0, 0)]), "has 0 dimensions"),
    (build(tensors=[tensor("a", (1,) * 5, 0, 0)]), "has 5 dimensions"),
    (build(tensors=[text("a") + struct.pack("<I", 1 << 31) + bytes(40)]), "has 2147483648 dimensions"),
    (build(tensors=[tensor("a", (64, 0), 0, 0)]), "impossible shape [64, 0]"),
    (build(tensors=[tensor("a", (1 << 32, 1 << 31), 0, 0)]), "impossible shape"),
    (build(tensors=[tensor("a", (1 << 32, 1 << 32, 0, 1), 0, 0)]), "impossible shape"),
    (build(tensors=[tensor("a", (1 << 62,), 0, 0)]), "behind the end of the file"),
    (build(tensors=[tensor("a", (32,), 4, 0)]), "unknown type 4"),
    (build(tensors=[tensor("a", (32,), 999, 0)]), "unknown type 999"),
    (build(tensors=[tensor("a", (33,), 8, 0)]), "rows of 33 values, not a multiple of 32"),
    (build(tensors=[TENSORS[0], tensor("a", (3,), 0, 160)]), "'a' is there twice"),
    (build(tensors=[TENSORS[0], tensor("b", (3,), 0, 161)]), "not aligned to 32"),
    (build(tensors=[TENSORS[0], tensor("b", (3,), 0, 128)]), "at offset 128 instead of 160"),
    (build(tensors=[TENSORS[0], tensor("b", (3,), 0, 1 << 63)]), "instead of 160"),
    (build(data=DATA[:-1]), "behind the end of the file"),
    (build(data=b""), "behind the end of the file"),
    # What ends the process of llama.cpp.
    (build([ARCHITECTURE, u32("general.alignment", 1)], [tensor("a", (1,), 0, 0)], alignment=1), "no multiple of 32"),
    (build([ARCHITECTURE, u32("llama.block_count", 0)]), "block_count is 0"),
    (build([ARCHITECTURE, u32("llama.block_count", 513)]), "block_count is 513"),
    (build([ARCHITECTURE, u32("llama.pooling_type", 5)]), "pooling_type is 5"),
    (build([ARCHITECTURE, string("tokenizer.ggml.model", "none")]), "it has no tokenizer"),
    (build([ARCHITECTURE, f32("llama.attention.layer_norm_rms_epsilon", -1e-5)]), "rms_epsilon is -"),
    (build([ARCHITECTURE, f32("llama.attention.layer_norm_epsilon", math.nan)]), "norm_epsilon is nan"),
    (build(tensors=[tensor("output_norm.weight", (64,), 8, 0)]), "is a vector of the type Q8_0"),
    (build(tensors=[tensor("blk.7.attn_q.weight", (4, 4), 26, 0)]), "is a matrix of the type I32"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_is_wrong_is_said(write: Write, content: bytes, message: str) -> None:
    with pytest.raises(GGUFError) as caught:
        read(write(content))
    assert message in str(caught.value)


@pytest.mark.slow
def test_truncated_anywhere(write: Write) -> None:
    content = build()
    for size in range(len(content)):
        with pytest.raises(GGUFError):
            read(write(content[:size]))


def test_many_small_things_are_too_much(write: Write) -> None:
    numbers = [array(f"k{index}", U8, 256, bytes(256)) for index in range(600)]
    with pytest.raises(GGUFError, match="too large"):
        read(write(build([ARCHITECTURE, *numbers])))


def test_neither_a_missing_file_nor_a_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.gguf")
    with pytest.raises(GGUFError, match="not a file"):
        read(tmp_path)


def test_a_large_vocabulary_is_stepped_over(write: Write) -> None:
    """The bounds are ten times of what is needed here."""
    count = 151_936
    tokens = b"".join(map(text, map(str, range(count))))
    pairs = [ARCHITECTURE, array("tokenizer.ggml.tokens", STRING, count, tokens)]
    pairs.append(array("tokenizer.ggml.scores", F32, count, bytes(4 * count)))
    path = write(build(pairs))
    tracemalloc.start()
    began = time.process_time()
    assert read(path).vocabulary == count
    assert time.process_time() - began < 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_sparse_file_is_not_read_to_its_end(write: Write) -> None:
    path = write(build([ARCHITECTURE, array("k", STRING, 1 << 30, b"")], [], b""))
    os.truncate(path, 1 << 40)
    with pytest.raises(GGUFError, match="too many"):
        read(path)


def test_the_table_of_tensor_types_is_that_of_the_library() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    # llama.cpp's blocks of this type became smaller since.
    theirs[GGMLQuantizationType.Q8_1] = ("Q8_1", 32, 36)
    assert {kind: row for kind, row in TENSOR_TYPES.items() if kind in theirs} == theirs


INTERESTING = st.sampled_from([0, 1, 7, 8, 9, 12, 13, 255, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, HUGE])
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, len(build()) - 1),
        st.integers(0, 255).map(lambda byte: bytes([byte])) | INTERESTING.map(lambda number: struct.pack("<Q", number)),
    ),
    min_size=1,
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=1000)
@given(MUTATIONS, st.integers(0, 40))
def test_a_damaged_file_is_read_or_refused(write: Write, mutations: list[tuple[int, bytes]], cut: int) -> None:
    content = bytearray(build())
    for at, data in mutations:
        content[at : at + len(data)] = data
    tracemalloc.start()
    try:
        read(write(bytes(content[: len(content) - cut])))
    except GGUFError as error:
        assert str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.slow
def test_every_number_at_every_place(write: Write) -> None:
    content = build()
    for at, number in itertools.product(range(0, len(content) - len(DATA), 2), (0, 9, 1 << 31, HUGE)):
        damaged = content[:at] + struct.pack("<Q", number) + content[at + 8 :]
        try:
            read(write(damaged))
        except GGUFError as error:
            assert str(error)
