"""What the files of the configured models say about themselves, without loading them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from adapters.llama_cpp import gguf, lora
from adapters.scripted import ScriptError, read_script
from gateway.config import ModelConfig
from gateway.library.facts import quantisation


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A configured model and its file; `problem` says why the rest is unknown."""

    name: str
    path: str
    aliases: tuple[str, ...] = ()
    architecture: str | None = None
    parameters: int | None = None
    quantisation: str | None = None
    context_tokens: int | None = None
    size_bytes: int | None = None
    embeds: bool | None = None
    problem: str | None = None


def describe(model: ModelConfig) -> ModelFile:
    """The facts in the header of the model's file, or about the script it plays; what is pulled is not here yet."""
    if model.pull is not None:
        return ModelFile(name=model.name, path=model.pull, aliases=model.aliases)
    if model.script is not None:
        return _script(model)
    try:
        header = gguf.read(Path(model.file))
    except gguf.GGUFError as error:
        return ModelFile(name=model.name, path=model.file, aliases=model.aliases, problem=f"not usable: {error}")
    except OSError as error:
        return ModelFile(name=model.name, path=model.file, aliases=model.aliases, problem=error.strerror or str(error))
    return ModelFile(
        name=model.name,
        path=model.file,
        aliases=model.aliases,
        architecture=header.architecture,
        parameters=header.parameters,
        quantisation=quantisation(header.file_type),
        context_tokens=header.context_length,
        size_bytes=header.size_bytes,
        embeds=gguf.embeds(header),
        problem=_adapter_problem(model, header),
    )


def _script(model: ModelConfig) -> ModelFile:
    known = ModelFile(name=model.name, path=model.file, aliases=model.aliases, architecture="script")
    try:
        return replace(known, context_tokens=read_script(Path(model.file)).context_tokens)
    except ScriptError as error:
        return replace(known, problem=str(error))


def _adapter_problem(model: ModelConfig, header: gguf.GGUF) -> str | None:
    """What is wrong with the first LoRA adapter that does not fit the model."""
    for adapter in model.engine.loras:
        try:
            lora.check(Path(adapter.path), header)
        except (gguf.GGUFError, OSError) as error:
            return f"LoRA adapter {adapter.name!r}: {getattr(error, 'strerror', None) or error}"
    return None


def size(size_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def count(number: int) -> str:
    """A large number for people: 1.3M, 494M, 7.6B."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return str(number)
