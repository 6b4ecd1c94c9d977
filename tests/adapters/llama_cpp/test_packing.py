"""Which weights are packed in another order, on processors with AMX and without."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llama_cpp import gguf, packing
from adapters.llama_cpp.packing import Packing, has_amx
from tests.models import random_gguf

SIZES = {name: (values, size) for name, values, size in gguf.TENSOR_TYPES.values()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> gguf.GGUF:
    return gguf.read(random_gguf.llama_tiny(tmp_path_factory.mktemp("model") / "m.gguf"))


def with_tensors(header: gguf.GGUF, kind: str, shape: tuple[int, ...], *names: str) -> gguf.GGUF:
    """A file of nothing but these, all alike."""
    tensors = dict.fromkeys(names, gguf.Tensor(shape, kind))
    return replace(header, tensors=tensors, size_bytes=len(names) * size_bytes(kind, shape))


def size_bytes(kind: str, shape: tuple[int, ...]) -> int:
    values, size = SIZES[kind]
    return prod(shape) // values * size


@pytest.mark.parametrize(
    ("kind", "shape", "amx_bytes", "other_bytes"),
    [
        ("Q4_0", (64, 32), 18 * 64, 18 * 64),
        ("Q4_0", (64, 24), 18 * 48, 18 * 48),  # AMX does not take so many rows, but others do.
        ("Q4_0", (64, 30), 0, 0),
        ("Q8_0", (64, 32), (34 + 4) * 64, 0),
        ("Q4_K", (256, 32), (144 + 4) * 32, 144 * 32),
        ("IQ4_XS", (256, 32), (136 + 2) * 32, 0),
        ("Q6_K", (256, 32), 210 * 32, 0),
        ("Q6_K", (256, 40), 0, 0),
        ("F16", (64, 32), 2 * 64 * 32, 0),
        ("F16", (40, 32), 0, 0),
        ("BF16", (64, 32), 0, 0),
        ("F32", (64,), 0, 0),
    ],
)
def test_what_is_packed(tiny: gguf.GGUF, kind: str, shape: tuple[int, ...], amx_bytes: int, other_bytes: int) -> None:
    size = size_bytes(kind, shape)
    matrix = with_tensors(tiny, kind, shape, "output.weight")
    tied = with_tensors(tiny, kind, shape, "token_embd.weight")
    encoder = replace(tied, architecture="bert")
    both = with_tensors(tiny, kind, shape, "token_embd.weight", "output.weight")
    layers = with_tensors(tiny, kind, shape, "token_embd.weight", "per_layer_token_embd.weight")
    for amx, packed in ((True, amx_bytes), (False, other_bytes)):
        plain = 0 if packed else size
        assert packing.look(matrix, amx=amx) == Packing(plain, packed)
        assert packing.look(tied, amx=amx) == Packing(size, packed)
        assert packing.look(encoder, amx=amx) == Packing(size, 0)
        assert packing.look(both, amx=amx) == Packing(size + plain, packed)
        assert packing.look(layers, amx=amx) == Packing(2 * size, packed)


@pytest.mark.parametrize(("kind", "other_bytes"), [("Q8_0", 0), ("Q4_0", 18 * 256)])
def test_several_matrices_in_one_tensor(tiny: gguf.GGUF, kind: str, other_bytes: int) -> None:
    """For AMX llama.cpp would pack the first of several heads, and use that for all."""
    experts = with_tensors(tiny, kind, (64, 32, 4), "blk.0.ffn_up_exps.weight")
    assert packing.is_packed(experts, amx=True)
    assert packing.look(experts, amx=True).packed_bytes == other_bytes
    heads = with_tensors(tiny, kind, (64, 32, 4), "blk.0.attn_v_b.weight", "output.weight")
    assert not packing.is_packed(heads, amx=True)
    assert packing.look(heads, amx=True) == Packing(heads.size_bytes, 0)
    assert packing.is_packed(heads, amx=False)
    assert packing.look(heads, amx=False).packed_bytes == 2 * other_bytes
    assert packing.is_packed(with_tensors(tiny, kind, (64, 30, 4), "blk.0.attn_v_b.weight"), amx=True)


def test_a_header_with_the_size_of_another_file_stands_for_its_parts(tiny: gguf.GGUF) -> None:
    header = with_tensors(tiny, "Q8_0", (64, 32), "token_embd.weight", "output.weight")
    other = replace(header, size_bytes=100 * header.size_bytes)
    ours, theirs = packing.look(header, amx=True), packing.look(other, amx=True)
    assert theirs == Packing(100 * ours.plain_bytes, 100 * ours.packed_bytes)
    assert packing.look(replace(header, tensors={}), amx=True) == Packing(header.size_bytes, 0)


@pytest.mark.parametrize(
    ("flags", "amx"),
    [
        ("fpu avx2 avx512_vnni amx_bf16 amx_tile amx_int8", True),
        ("fpu avx2 avx512_vnni", False),
        ("fpu avx2 amx_int8", False),
        ("", False),
    ],
)
def test_amx_is_seen_in_the_flags_of_the_processor(tmp_path: Path, flags: str, amx: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_int8 avx512_vnni\n")
    assert has_amx(cpuinfo) is amx


def test_processors_that_say_nothing_have_no_amx(tmp_path: Path) -> None:
    assert not has_amx(tmp_path / "cpuinfo")
