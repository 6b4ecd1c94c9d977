"""From a path and settings to a model that is ready to step: checks, context, first measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from adapters.llama_cpp import gguf, lora, packing, reasoning, tools
from adapters.llama_cpp.batch import Batch
from adapters.llama_cpp.buffers import Buffers
from adapters.llama_cpp.confine import cores
from adapters.llama_cpp.embedder import Embedder
from adapters.llama_cpp.eyesight import Eyesight
from adapters.llama_cpp.formats.row import ToolFormat
from adapters.llama_cpp.grammar import Compiler, Masks
from adapters.llama_cpp.guidance import Guidance
from adapters.llama_cpp.keeping import open_sessions, open_store
from adapters.llama_cpp.lease import StepLease
from adapters.llama_cpp.lora import Loras
from adapters.llama_cpp.memory import (
    CACHE_BYTES_DEFAULT,
    CONTEXT_TOKENS_DEFAULT,
    KEPT_SLOTS,
    MEASURED_TOKENS,
    PREPARED_TOKENS,
    SLOTS_MAX,
    SPARE_SHARE,
    copies_weights,
)
from adapters.llama_cpp.messages import EngineSettings, Load, ModelInfo
from adapters.llama_cpp.native import TOKEN_NULL, Context, Model, NativeError, Unfit, Vocabulary, quiet
from adapters.llama_cpp.pacing import CHUNK_TOKENS_MIN, TILE_TOKENS, Limits, Rates, block, fours, padded, spare
from adapters.llama_cpp.prompts import Prompts
from adapters.llama_cpp.sampling import Recommended
from adapters.llama_cpp.scheduler import Scheduler
from adapters.llama_cpp.store import Store
from adapters.llama_cpp.templates import CHATML, ChatTemplate, TemplateError

EMBED_SLOTS = 64
THREAD_BYTES_MIN = 32 << 20
CALIBRATION_STEP_US_MAX = 150_000
PADDED_MAX = 16
# Guesses take 10 us for each sequence, which is a lot of a shorter step.
GUESSED_STEP_US_MIN = 5_000
SOFTMAX_ARCHITECTURES = ("qwen3", "qwen3vl")


class LoadError(Exception):
    """The model cannot be served; `code` is model_invalid when another try cannot help."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory and what works on it; exactly one of `scheduler` and `embedder` is set."""

    info: ModelInfo
    vocabulary: Vocabulary
    context: Context
    prompts: Prompts
    reasoning: reasoning.ReasoningFormat | None
    compiler: Compiler
    guidance: Guidance
    recommended: Recommended
    loras: Loras
    store: Store | None
    scheduler: Scheduler | None
    embedder: Embedder | None


def now_us() -> int:
    return time.monotonic_ns() // 1000


def load(
    command: Load,
    progress: Callable[[float], None],
    lease: AbstractContextManager[None],
    wake: Callable[[], None] = lambda: None,
) -> Loaded:
    """Loads the model of `command`; `wake` is told, on another thread, of images that are ready. Raises LoadError."""
    began_us = now_us()
    path, settings = Path(command.path), command.settings
    header = _header(path, settings)
    ranks = gguf.reranks(header)
    embeds = not ranks and (gguf.embeds(header) if settings.embeddings is None else settings.embeddings)
    generates = not (embeds or ranks)
    buffers = Buffers(settings.session_ram_bytes // SPARE_SHARE)
    store = open_store(path, settings, buffers) if generates else None
    quiet()
    model = _model(path, header, settings, progress)
    template = _template(model, header)
    tool_format, reasoning_format = _formats(settings, header, model.vocabulary)
    loras = _loras(model, header, settings, generates)
    threads = settings.threads or _threads(model.size_bytes)
    contended = lease.contended if isinstance(lease, StepLease) else lambda: False
    eyes = _eyes(model, settings, threads, lease, wake)
    context_tokens = settings.context_tokens or min(model.context_train, CONTEXT_TOKENS_DEFAULT)
    context = _context(model, settings, generates, context_tokens, threads, eyes.turns if eyes else lease, buffers)
    sight = eyes.sight(context) if eyes else None
    rates = _measure(context, settings.parallel) if generates else Rates(0.0, 0.0)
    info = ModelInfo(
        description=model.description,
        architecture=header.architecture,
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        vocabulary=model.vocabulary.size,
        context_train=model.context_train,
        context_tokens=context_tokens,
        cache_tokens=context.cells,
        parallel=settings.parallel,
        threads=threads,
        embedding_dimensions=model.embedding_size,
        generates=generates,
        embeds=embeds,
        reranks=_scores(header) if ranks else None,
        fim=TOKEN_NULL not in model.vocabulary.fim,
        chat_template=bool(header.chat_template),
        tool_format=tool_format.name,
        reasoning_format=reasoning_format.name if reasoning_format else None,
        vision=eyes is not None,
        prefill_us_per_token=rates.prefill_us,
        decode_us_per_token=rates.decode_us,
        load_us=now_us() - began_us,
    )
    compiler = Compiler(model.vocabulary)
    return Loaded(
        info=info,
        vocabulary=model.vocabulary,
        context=context,
        prompts=Prompts(
            model.vocabulary, template, context_tokens, tool_format, reasoning_format, _rerank_template(header), sight
        ),
        reasoning=reasoning_format,
        compiler=compiler,
        guidance=Guidance(compiler, model.vocabulary, tool_format, reasoning_format),
        recommended=_recommended(header),
        loras=loras,
        store=store,
        scheduler=_scheduler(context, settings, rates, contended, store, eyes) if generates else None,
        embedder=None if generates else Embedder(context, ranks=ranks, contended=contended),
    )


def _header(path: Path, settings: EngineSettings) -> gguf.GGUF:
    try:
        header = gguf.read(path)
    except (gguf.GGUFError, OSError) as error:
        raise LoadError("model_invalid", f"{path.name}: {_problem(error)}") from error
    _check_kv_type(header, settings)
    return header


def _problem(error: Exception) -> str:
    """What is wrong with a file, without the folder that it lies in: clients are told."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _model(path: Path, header: gguf.GGUF, settings: EngineSettings, progress: Callable[[float], None]) -> Model:
    amx = packing.has_amx()
    copied = copies_weights(settings, packing.look(header, amx=amx).plain_bytes)
    packed = packing.is_packed(header, amx=amx)
    try:
        return Model(path, gpu_layers=settings.gpu_layers, progress=progress, copied=copied, packed=packed)
    except Unfit as error:
        raise LoadError("model_invalid", str(error)) from error


def _scores(header: gguf.GGUF) -> Literal["logit", "probability"]:
    """What a reranker's scores are: for Qwen3 llama.cpp puts a softmax behind its classifier."""
    return "probability" if header.architecture in SOFTMAX_ARCHITECTURES else "logit"


def _rerank_template(header: gguf.GGUF) -> str:
    template = header.metadata.get("tokenizer.chat_template.rerank")
    return template if isinstance(template, str) else ""


def _loras(model: Model, header: gguf.GGUF, settings: EngineSettings, generates: bool) -> Loras:
    """Loads the adapters into the model; one that does not fit makes the whole configuration invalid."""
    if settings.loras and not generates:
        raise LoadError("model_invalid", "LoRA adapters are only possible for models that generate text")
    digests = []
    for file in settings.loras:
        path = Path(file.path)
        try:
            lora.check(path, header)
            digests.append(lora.digest(path))
        except (gguf.GGUFError, OSError) as error:
            raise LoadError("model_invalid", f"LoRA adapter {file.name!r}: {_problem(error)}") from error
        model.add_lora(path)
    return Loras(settings.loras, digests)


def _formats(
    settings: EngineSettings, header: gguf.GGUF, vocabulary: Vocabulary
) -> tuple[ToolFormat, reasoning.ReasoningFormat | None]:
    """How the model writes calls and thoughts: as the settings say, or else as its template shows. The vocabulary then
    shows the marks of both."""
    template = header.chat_template or ""
    try:
        calls = tools.named(settings.tool_format or tools.sniff(template) or tools.GENERIC.name)
        name = settings.reasoning_format or reasoning.sniff(template) or reasoning.NONE
        thoughts = None if name == reasoning.NONE else reasoning.named(name)
    except StopIteration:
        raise LoadError("model_invalid", "its tool_format or reasoning_format is not known") from None
    for marker in (*calls.markers, *(thoughts.markers if thoughts else ())):
        vocabulary.show(marker)
    return calls, thoughts


def _check_kv_type(header: gguf.GGUF, settings: EngineSettings) -> None:
    """llama.cpp gives no reason when it cannot quantise a cache: q8_0 packs 32 values of a head into a block."""
    heads = header.metadata.get(f"{header.architecture}.attention.head_count")
    size = header.metadata.get(f"{header.architecture}.attention.key_length")
    if size is None and isinstance(heads, int) and heads > 0 and header.embedding_length:
        size = header.embedding_length // heads
    if settings.kv_type == "q8_0" and isinstance(size, int) and size % 32:
        raise LoadError(
            "model_invalid", f"kv_type q8_0 is not possible: its attention heads have {size} values, not 32n"
        )


def _threads(size_bytes: int) -> int:
    """One core is left to the gateway, and a small model gets fewer: its threads would wait for each other most of the
    time, and spin meanwhile."""
    return max(1, min(cores() - 1, size_bytes // THREAD_BYTES_MIN))


def _template(model: Model, header: gguf.GGUF) -> ChatTemplate:
    vocabulary = model.vocabulary
    try:
        return ChatTemplate(
            header.chat_template or CHATML,
            bos_token=vocabulary.text(vocabulary.bos).decode("utf-8", "replace"),
            eos_token=vocabulary.text(vocabulary.eos).decode("utf-8", "replace"),
        )
    except TemplateError as error:
        raise LoadError("model_invalid", f"its chat template is broken: {error}") from error


def _recommended(header: gguf.GGUF) -> Recommended:
    """What the file recommends; values that make no sense are left out."""
    fields: dict[str, float] = {}
    for key, field, most in (("temp", "temperature", 2.0), ("top_p", "top_p", 1.0), ("min_p", "min_p", 1.0)):
        value = header.metadata.get(f"general.sampling.{key}")
        if isinstance(value, float) and 0.0 <= value <= most:
            fields[field] = value
    top_k = header.metadata.get("general.sampling.top_k")
    return Recommended(**fields, top_k=top_k if isinstance(top_k, int) and top_k > 0 else 0)


def _context(
    model: Model,
    settings: EngineSettings,
    generates: bool,
    context_tokens: int,
    threads: int,
    lease: AbstractContextManager[None],
    buffers: Buffers,
) -> Context:
    if not generates:
        return Context(
            model,
            cells=context_tokens,
            slots=EMBED_SLOTS,
            batch_tokens=context_tokens,
            outputs_max=context_tokens,
            threads=threads,
            flash_attention=settings.flash_attention,
            embeddings=True,
            lease=lease,
        )
    affordable = CACHE_BYTES_DEFAULT // max(1, model.kv_bytes_per_token)
    cells = settings.cache_tokens or max(context_tokens, min(4 * context_tokens, affordable))
    if cells < context_tokens:
        raise LoadError("model_invalid", f"cache_tokens {cells} is less than context_tokens {context_tokens}")
    # Memory for the first conversation to be saved is got ready meanwhile.
    buffers.prepare(model.kv_bytes_per_token * PREPARED_TOKENS)
    # llama.cpp insists on room for one output row per sequence.
    rows = settings.parallel + KEPT_SLOTS + 1
    return Context(
        model,
        cells=-(-cells // 256) * 256,
        slots=min(rows, SLOTS_MAX),
        batch_tokens=max(settings.chunk_tokens, rows),
        outputs_max=rows,
        threads=threads,
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
        lease=lease,
        buffers=buffers,
    )


def _eyes(
    model: Model,
    settings: EngineSettings,
    threads: int,
    lease: AbstractContextManager[None],
    wake: Callable[[], None],
) -> Eyesight | None:
    try:
        return Eyesight(model, settings, threads, lease, wake) if settings.mmproj else None
    except (gguf.GGUFError, OSError, NativeError) as error:
        raise LoadError("model_invalid", f"{Path(settings.mmproj or '').name}: {_problem(error)}") from error


def _scheduler(
    context: Context,
    settings: EngineSettings,
    rates: Rates,
    contended: Callable[[], bool],
    store: Store | None,
    eyes: Eyesight | None,
) -> Scheduler:
    padding, room, step_us = _shapes(context, settings, rates)
    tiled = settings.gpu_layers == 0 and settings.flash_attention != "off"
    limits = Limits(
        parallel=settings.parallel,
        # Whatever runs has its row in a step, and prompts have some beside them.
        chunk_tokens=max(settings.chunk_tokens, settings.parallel + CHUNK_TOKENS_MIN),
        target_gap_us=settings.target_gap_ms * 1000,
        padding=padding,
        spare=room,
        step_us=step_us,
        tile=TILE_TOKENS if tiled else 1,
        block=block(context.heads, context.threads) if tiled else None,
    )
    sessions = open_sessions(context, settings, store)
    masks = Masks(context.vocabulary_size, settings.parallel)
    looking = eyes.looking(context) if eyes else None
    return Scheduler(context, sessions, limits, rates, now_us, contended, masks, looking)


def _measure(context: Context, parallel: int) -> Rates:
    """First estimates of both rates, the decode step with every slot taken; this also touches every weight once."""
    _time(context, [1])
    prompt = min(MEASURED_TOKENS, context.batch_tokens)
    return Rates(_time(context, [prompt]) / prompt, _time(context, [1] * parallel))


def _shapes(context: Context, settings: EngineSettings, rates: Rates) -> tuple[dict[int, int], ...]:
    """To how many rows a decode of so many is best padded, for how many guesses it has room, and how many microseconds
    it takes. Measured, unless it is forced or would take too long."""
    if settings.batch_padding == "on":
        padding = {size: fours(size) for size in range(3, fours(settings.parallel) + 1)}
        return padding, {size: rows - size for size, rows in padding.items()}, {}
    if settings.batch_padding == "off" or settings.gpu_layers or settings.parallel > PADDED_MAX:
        return {}, {}, {}
    # The rate comes from a single measurement, which may have been disturbed.
    slow_us = CALIBRATION_STEP_US_MAX
    if rates.decode_us > slow_us and _time(context, [1] * settings.parallel) > slow_us:
        return {}, {}, {}
    # In rounds, as what disturbs one measurement mostly disturbs the next one too.
    rounds = [{size: _time(context, [1] * size) for size in range(3, settings.parallel + 4)} for _ in range(3)]
    spent_us = {size: min(spent[size] for spent in rounds) for size in rounds[0]}
    padding = padded(spent_us)
    step_us = {size: spent_us[padding.get(size, size)] for size in spent_us}
    return padding, spare(step_us) if rates.decode_us > GUESSED_STEP_US_MIN else {}, step_us


def _time(context: Context, runs: list[int]) -> int:
    """Microseconds of one decode of sequences with the given numbers of tokens; leaves the context empty."""
    batch = Batch(context.batch_tokens, context.slots)
    for slot, tokens in enumerate(runs):
        batch.add(np.zeros(tokens, np.int32), 0, slot, outputs=1)
    began_us = now_us()
    context.decode(batch)
    context.logits(len(runs))
    spent_us = now_us() - began_us
    for slot in range(len(runs)):
        context.remove(slot)
    return spent_us
