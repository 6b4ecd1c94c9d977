"""What memory a model will take, and what it can do, from the header of its file alone.

The parts were measured on workers of many shapes, on CPUs with AMX and without, with huge pages and without;
`tests/adapters/llama_cpp/test_forecast.py` holds the sum against real ones. Weights that are mapped from their file
count all the same, since they have to be there to be used.
"""

from __future__ import annotations

from pathlib import Path

from adapters.llama_cpp import gguf, packing
from adapters.llama_cpp.memory import (
    CACHE_BYTES_DEFAULT,
    CONTEXT_TOKENS_DEFAULT,
    KEPT_SLOTS,
    MEASURED_TOKENS,
    PREPARED_TOKENS,
    SPARE_SHARE,
    copies_weights,
)
from adapters.llama_cpp.messages import EngineSettings, Load
from adapters.llama_cpp.resident import Need
from adapters.types import Kind, ModelCard

MIB = 1 << 20
# Python, numpy, llama.cpp and everything else that a worker of any model has; and what sampling takes beside that.
PROCESS_BYTES = 65 * MIB
SAMPLING_BYTES = 4 * MIB
VOCABULARY_BYTES_PER_TOKEN = 400
Q8_0_SHARE = 34 / 64
# Without flash attention, what each head of a token has for each cell: its weight in F32, and copied in F16.
WEIGHT_BYTES = 4 + 2


def look(load: Load) -> tuple[Need, ModelCard]:
    """What a model needs and what its file says of it; nothing is known of a file that cannot be read."""
    try:
        header = gguf.read(Path(load.path))
    except (gguf.GGUFError, OSError):
        return Need(), ModelCard()
    return need(header, load.settings, amx=packing.has_amx()), card(header, load.settings)


def card(header: gguf.GGUF, settings: EngineSettings) -> ModelCard:
    """What a model can do, as its worker will say once it is loaded."""
    ranks = gguf.reranks(header)
    embeds = not ranks and (gguf.embeds(header) if settings.embeddings is None else settings.embeddings)
    kinds: tuple[Kind, ...] = ("rerank",) if ranks else ("embedding",) if embeds else ("chat", "completion")
    return ModelCard(
        context_tokens=settings.context_tokens or min(header.context_length or 1 << 30, CONTEXT_TOKENS_DEFAULT),
        kinds=kinds,
        parameters=header.parameters,
        size_bytes=header.size_bytes,
        vision=settings.mmproj is not None,
    )


def need(header: gguf.GGUF, settings: EngineSettings, *, amx: bool) -> Need:
    """What its worker will take on a processor with AMX or without. The KV cache is written to when it is made, the
    memory to compute in when it is used, but for what the first measurements touch.

    Kept conversations, and memory that is got ready for more, come to that as they are kept, up to `session_ram_bytes`
    and an eighth of that.
    """
    facts = card(header, settings)
    assert facts.context_tokens is not None
    generates = "chat" in facts.kinds
    slots = settings.parallel + KEPT_SLOTS + 1
    batch_tokens = max(settings.chunk_tokens, slots) if generates else facts.context_tokens
    cell_bytes = _cell_bytes(header, settings)
    cells = _cells(settings, facts.context_tokens, cell_bytes) if generates else 0
    files = sum(map(_file_bytes, (settings.mmproj, *(lora.path for lora in settings.loras))))
    kv_share = Q8_0_SHARE if settings.kv_type == "q8_0" else 1.0
    prepared = cell_bytes * PREPARED_TOKENS
    if not generates or prepared > settings.session_ram_bytes // SPARE_SHARE:
        prepared = 0
    outputs = slots * header.vocabulary * 4 + SAMPLING_BYTES if generates else 0
    order = packing.look(header, amx=amx)
    copied = copies_weights(settings, order.plain_bytes)
    weights = order.packed_bytes + (order.plain_bytes if copied else header.size_bytes)
    size = PROCESS_BYTES + weights + files + int(cells * cell_bytes * kv_share) + prepared
    size += header.vocabulary * VOCABULARY_BYTES_PER_TOKEN + outputs
    computing = _computing_bytes(header, settings, batch_tokens, cells or facts.context_tokens)
    measured = _computing_bytes(header, settings, min(MEASURED_TOKENS, batch_tokens), 0) if generates else 0
    return Need(size + computing, computing - measured)


def _cells(settings: EngineSettings, context_tokens: int, cell_bytes: int) -> int:
    affordable = CACHE_BYTES_DEFAULT // max(1, cell_bytes)
    cells = settings.cache_tokens or max(context_tokens, min(4 * context_tokens, affordable))
    return -(-cells // 256) * 256


def _cell_bytes(header: gguf.GGUF, settings: EngineSettings) -> int:
    """One F16 cell of the KV cache over all layers that attend. Without flash attention the values of each have as much
    room as those of the widest."""
    heads = max(_number(header, "attention.head_count", 1), 1)
    size = (header.embedding_length or 0) // heads
    key = _number(header, "attention.key_length", size)
    value = _number(header, "attention.value_length", size)
    kv_heads = header.metadata.get(f"{header.architecture}.attention.head_count_kv")
    if isinstance(kv_heads, gguf.Array):
        layers = _counts(kv_heads)
    elif f"{header.architecture}.ssm.state_size" in header.metadata:
        layers = []  # Recurrent layers have a state of a fixed size instead.
    else:
        layers = (header.block_count or 0) * [_number(header, "attention.head_count_kv", heads)]
    values = len(layers) * max(layers, default=0) if settings.flash_attention == "off" else sum(layers)
    return 2 * (sum(layers) * key + values * value)


def _computing_bytes(header: gguf.GGUF, settings: EngineSettings, batch_tokens: int, cells: int) -> int:
    """Activations of a batch, the widest with its gate, their product and that in eight bits; which of the cells each
    of its tokens sees, in a window and in all; how much of them, where flash attention does not take that tile by
    tile."""
    width = header.embedding_length or 0
    wide = _number(header, "feed_forward_length", 4 * width)
    masks = 2 if f"{header.architecture}.attention.sliding_window" in header.metadata else 1
    weights = _number(header, "attention.head_count", 0) * WEIGHT_BYTES if settings.flash_attention == "off" else 0
    return batch_tokens * (3 * (width + wide) * 4 + wide) + batch_tokens * cells * (masks * 2 + weights)


def _number(header: gguf.GGUF, name: str, otherwise: int) -> int:
    value = header.metadata.get(f"{header.architecture}.{name}")
    if isinstance(value, gguf.Array):
        return max(_counts(value), default=otherwise)
    return value if isinstance(value, int) and value >= 0 else otherwise


def _counts(array: gguf.Array) -> list[int]:
    """The numbers of an array that can be counts, without those that are zero; a file may hold anything."""
    return [number for number in array.items if isinstance(number, int) and number > 0]


def _file_bytes(path: str | None) -> int:
    try:
        return Path(path).stat().st_size if path else 0
    except OSError:
        return 0
