"""What a model is said to need and to be, held against its worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Literal

import pytest
from gguf import GGMLQuantizationType
from msgspec.structs import replace

from adapters.llama_cpp import LlamaCpp, forecast, gguf
from adapters.llama_cpp.messages import EngineSettings, Load
from adapters.types import Caller, CompletionRequest, EmbeddingRequest, Generation, ModelCard, TextDelta
from tests.models import random_gguf, random_shapes
from tests.models.vocabularies import byte_level_bpe

CALLER = Caller(request_id="r", tenant="t")
# Enough that an answer lasts until the others begin.
ANSWER_TOKENS = 64
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


@pytest.mark.parametrize(
    ("kind", "shape", "amx_bytes", "other_bytes"),
    [
        ("Q4_0", (64, 32), 18 * 64, 18 * 64),
        ("Q4_0", (64, 24), 18 * 48, 18 * 48),  # Not for AMX.
        ("Q4_0", (64, 30), 0, 0),
        ("Q8_0", (64, 32), (34 + 4) * 64, 0),
        ("Q8_0", (64, 32, 4), 0, 0),  # Experts.
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
def test_weights_in_another_order(
    tmp_path: Path, kind: str, shape: tuple[int, ...], amx_bytes: int, other_bytes: int
) -> None:
    """They lie beside a mapped file, in the place of a copied one, and beside embeddings that they are a copy of."""
    header = gguf.read(random_gguf.llama_tiny(tmp_path / "m.gguf"))
    _, values, size = next(row for row in gguf.TENSOR_TYPES.values() if row[0] == kind)
    size *= prod(shape) // values

    def taken(weights: Literal["mapped", "copied"], amx: bool, *names: str, architecture: str = "llama") -> int:
        """Beside the file."""
        settings = EngineSettings(weights=weights)
        file = replace(header, size_bytes=len(names) * size, architecture=architecture)
        other = forecast.need(replace(file, tensors={}), settings, amx=amx)
        file = replace(file, tensors=dict.fromkeys(names, gguf.Tensor(shape, kind)))
        return forecast.need(file, settings, amx=amx).size_bytes - other.size_bytes

    for amx, packed in ((True, amx_bytes), (False, other_bytes)):
        assert taken("mapped", amx, "output.weight") == packed
        assert taken("copied", amx, "output.weight") == max(packed - size, 0)
        assert taken("copied", amx, "token_embd.weight") == packed
        assert taken("mapped", amx, "token_embd.weight", "output.weight") == packed
        assert taken("copied", amx, "token_embd.weight", architecture="bert") == 0
        assert taken("mapped", amx, "token_embd.weight", "per_layer_token_embd.weight") == packed


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
    loaded = model.resident_bytes()
    if "chat" in card.kinds:
        taken = await fill(model, (settings.context_tokens or 0) - ANSWER_TOKENS)
    else:
        await model.embed(EmbeddingRequest("m", ((5, 6, 7) * 100,) * 8), CALLER)
        taken = model.resident_bytes()
    await model.close()
    return loaded, taken, model.card


async def fill(model: LlamaCpp, prompt_tokens: int) -> int:
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
                taken = taken if waiting else model.resident_bytes()
        assert taken, "it ended before another began"

    await asyncio.gather(*map(ask, tenants))
    return taken


def test_nothing_is_known_of_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("nothing")
    assert forecast.look(Load(str(tmp_path / "model.gguf"), EngineSettings()))[0].size_bytes == 0
    assert forecast.look(Load(str(tmp_path / "missing.gguf"), EngineSettings()))[0].size_bytes == 0
