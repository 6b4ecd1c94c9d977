"""What a model is said to need and to be, held against its worker."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from gguf import GGMLQuantizationType
from msgspec.structs import replace

from adapters.llama_cpp import LlamaCpp, forecast, gguf, packing
from adapters.llama_cpp.messages import EngineSettings, Load
from adapters.types import Caller, CompletionRequest, EmbeddingRequest, Generation, ModelCard, TextDelta
from tests.models import random_gguf, random_shapes
from tests.models.vocabularies import byte_level_bpe

CALLER = Caller(request_id="r", tenant="t")
# Enough that an answer lasts until the others begin.
ANSWER_TOKENS = 64
# What a worker has of programs and libraries in memory: between 27 and 37 MB, by how these came to the page cache.
# After they were dropped from it and read again, the same worker had 6 MB less.
LIBRARIES_BYTES = 30_000_000
# A model with a wide feed-forward part, in a format that llama.cpp copies into another order.
PACKED = random_gguf.DecoderShape(
    architecture="llama",
    layers=2,
    width=512,
    heads=8,
    kv_heads=8,
    feed_forward=4096,
    context=8192,
    matrices=GGMLQuantizationType.Q4_0,
    embedding=GGMLQuantizationType.Q8_0,
)


def packed(path: Path) -> Path:
    return random_gguf.write_decoder(path, PACKED, byte_level_bpe(8000), 1)


SHAPES: dict[str, tuple[Callable[[Path], Path], EngineSettings]] = {
    "llama": (random_gguf.llama_tiny, EngineSettings(context_tokens=4096, cache_tokens=4096, threads=1)),
    "quantised cache": (
        random_gguf.llama_tiny,
        EngineSettings(context_tokens=2048, cache_tokens=4096, kv_type="q8_0", threads=1),
    ),
    "more cells than a context": (random_gguf.llama_tiny, EngineSettings(context_tokens=1024, threads=1)),
    "no flash attention": (
        random_gguf.llama_tiny,
        EngineSettings(context_tokens=4096, cache_tokens=4096, flash_attention="off", threads=1),
    ),
    "packed": (packed, EngineSettings(context_tokens=1024, cache_tokens=1024, threads=1)),
    "windows": (random_shapes.gemma2, EngineSettings(context_tokens=512, cache_tokens=512, threads=1)),
    "latent": (random_shapes.deepseek2, EngineSettings(context_tokens=1024, cache_tokens=1024, threads=1)),
    "recurrent": (random_shapes.jamba, EngineSettings(context_tokens=1024, cache_tokens=1024, threads=1)),
    "encoder": (random_gguf.bert_embedder, EngineSettings(threads=1)),
}


@pytest.mark.parametrize(("flash_attention", "values"), [("auto", 1 + 3), ("off", 2 * 3)])
def test_layers_with_different_numbers_of_heads(
    tmp_path: Path, flash_attention: Literal["auto", "off"], values: int
) -> None:
    header = gguf.read(random_gguf.llama_tiny(tmp_path / "m.gguf"))
    metadata = {**header.metadata, "llama.block_count": 3, "llama.attention.head_count_kv": gguf.Array(3, (1, 0, 3))}
    header = replace(header, metadata=metadata, block_count=3)

    def kept(cells: int) -> int:
        settings = EngineSettings(cache_tokens=cells, flash_attention=flash_attention)
        asked = forecast.need(header, settings, amx=False)
        return asked.size_bytes - asked.later_bytes

    head_bytes = 2 * (header.embedding_length or 0) // 4
    assert kept(512) - kept(256) == 256 * head_bytes * (1 + 3 + values)


@pytest.mark.parametrize("amx", [True, False])
def test_packed_weights_lie_beside_a_mapped_file_and_in_the_place_of_a_copied_one(tmp_path: Path, amx: bool) -> None:
    header = gguf.read(packed(tmp_path / "m.gguf"))
    order = packing.look(header, amx=amx)
    mapped = forecast.need(header, EngineSettings(weights="mapped"), amx=amx).size_bytes
    copied = forecast.need(header, EngineSettings(weights="copied"), amx=amx).size_bytes
    assert mapped - copied == header.size_bytes - order.plain_bytes > header.size_bytes / 2
    without = forecast.need(replace(header, tensors={}), EngineSettings(), amx=amx).size_bytes
    assert mapped - without == order.packed_bytes


@pytest.mark.parametrize(
    ("kind", "amx", "held"), [("Q4_0", False, "copied"), ("Q8_0", False, "mapped"), ("Q8_0", True, "copied")]
)
def test_large_files_are_only_mapped_for_what_stays_in_their_order(
    tmp_path: Path, kind: str, amx: bool, held: Literal["mapped", "copied"]
) -> None:
    header = gguf.read(random_gguf.llama_tiny(tmp_path / "m.gguf"))
    header = replace(header, size_bytes=1 << 60, tensors={"output.weight": gguf.Tensor((64, 32), kind)})
    chosen = forecast.need(header, EngineSettings(), amx=amx)
    assert chosen == forecast.need(header, EngineSettings(weights=held), amx=amx)


@pytest.mark.parametrize("shape", SHAPES)
def test_within_a_tenth_of_what_it_takes(tmp_path: Path, shape: str) -> None:
    """Just loaded it takes all but what is only used later; all of it once every cell was used."""
    write, settings = SHAPES[shape]
    path = str(write(tmp_path / "model.gguf"))
    need, card = forecast.look(Load(path, settings))
    loaded, taken, known = asyncio.run(measure(path, settings, card))
    assert need.size_bytes - need.later_bytes == pytest.approx(loaded, rel=0.1)
    assert need.size_bytes == pytest.approx(taken, rel=0.1)
    assert (card.kinds, card.context_tokens, card.vision) == (known.kinds, known.context_tokens, known.vision)


async def measure(path: str, settings: EngineSettings, card: ModelCard) -> tuple[int, int, ModelCard]:
    model = LlamaCpp("m", path, settings)
    await model.start()
    loaded = taken_by(model, path)
    if "chat" in card.kinds:
        taken = await fill(model, path, (settings.context_tokens or 0) - ANSWER_TOKENS)
    else:
        await model.embed(EmbeddingRequest("m", ((5, 6, 7) * 100,) * 8), CALLER)
        taken = taken_by(model, path)
    await model.close()
    return loaded, taken, model.card


def taken_by(model: LlamaCpp, path: str) -> int:
    """What its worker takes, as if its libraries had LIBRARIES_BYTES of that."""
    libraries_kib, counts = 0, False
    for line in Path(f"/proc/{model.status().pid}/smaps").read_text().splitlines():
        match line.split():
            case [span, _, _, _, _, *file] if "-" in span:
                counts = file != [path] and file[0:1] > ["/"]
            case ["Rss:", kib, _] if counts:
                libraries_kib += int(kib)
            case ["Anonymous:", kib, _] if counts:
                libraries_kib -= int(kib)
    return model.resident_bytes() - 1024 * libraries_kib + LIBRARIES_BYTES


async def fill(model: LlamaCpp, path: str, prompt_tokens: int) -> int:
    """What it takes when as many prompts are computed side by side as there are cells for. All are still answered then:
    conversations that are kept, and memory for more of them, come to the forecast as they are kept."""
    info = model.check_ready()
    tenants = range(info.cache_tokens // info.context_tokens)
    waiting = set(tenants)
    taken = 0

    async def ask(tenant: int) -> None:
        nonlocal taken
        prompt = tuple(30 + (tenant + number) % 900 for number in range(prompt_tokens))
        request = CompletionRequest("m", (prompt,), generation=Generation(max_tokens=ANSWER_TOKENS))
        async for event in model.complete(request, Caller(request_id="r", tenant=f"{tenant}")):
            if isinstance(event, TextDelta) and tenant in waiting:
                waiting.remove(tenant)
                taken = taken if waiting else taken_by(model, path)
        assert taken, "it ended before another began"

    await asyncio.gather(*map(ask, tenants))
    return taken


@pytest.mark.parametrize("heads", [gguf.Array(3, (math.nan, 1.5, math.inf)), gguf.Array(2, (-1, 0)), -4, "4"])
def test_what_makes_no_sense_in_a_header_does_not_matter(tmp_path: Path, heads: object) -> None:
    header = gguf.read(random_gguf.llama_tiny(tmp_path / "m.gguf"))
    keys = ("attention.head_count", "attention.head_count_kv", "attention.key_length", "feed_forward_length")
    metadata: dict[str, Any] = {**header.metadata, **{f"llama.{key}": heads for key in keys}}
    asked = forecast.need(replace(header, metadata=metadata), EngineSettings(), amx=False)
    assert asked.size_bytes > asked.later_bytes > 0


def test_nothing_is_known_of_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("nothing")
    assert forecast.look(Load(str(tmp_path / "model.gguf"), EngineSettings()))[0].size_bytes == 0
    assert forecast.look(Load(str(tmp_path / "missing.gguf"), EngineSettings()))[0].size_bytes == 0
