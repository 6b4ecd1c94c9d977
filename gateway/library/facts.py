"""What a GGUF file says about the model in it, as far as its header can be believed: the rest is left out."""

from __future__ import annotations

from typing import Literal

import msgspec

from adapters.llama_cpp import gguf, reasoning, tools

# llama.cpp's file types: the number in `general.file_type` is the place in this list.
QUANTISATIONS = (
    "F32 F16 Q4_0 Q4_1 ? ? ? Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS "
    "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 ? ? ? TQ1_0 TQ2_0 MXFP4_MOE NVFP4 "
    "Q1_0 Q2_0"
)
TEXT_LENGTH_MAX = 200

Role = Literal["model", "projector", "adapter"]
Capability = Literal["chat", "completion", "embedding", "rerank", "tools", "reasoning"]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`role` is what the file is for, `part` and `parts` which piece of a split model it is (from 1). What the header
    does not say is None. `template`: it has a chat template."""

    role: Role = "model"
    architecture: str
    title: str | None = None
    parameters: int
    quantisation: str | None = None
    context_tokens: int | None = None
    layers: int | None = None
    width: int | None = None
    vocabulary: int = 0
    template: bool = False
    licence: str | None = None
    capabilities: tuple[Capability, ...] = ()
    part: int = 1
    parts: int = 1


def facts(header: gguf.GGUF) -> Facts:
    """The facts of a header that `gguf` has checked. Texts are made printable and short, as anybody may write them."""
    role = _role(header)
    parts = _number(header, "split.count", 1)
    return Facts(
        role=role,
        architecture=_clean(header.architecture),
        title=_text(header, "general.name"),
        parameters=header.parameters,
        quantisation=quantisation(header.file_type),
        context_tokens=header.context_length,
        layers=header.block_count,
        width=header.embedding_length,
        vocabulary=header.vocabulary,
        template=bool(header.chat_template),
        licence=_text(header, "general.license"),
        capabilities=_capabilities(header) if role == "model" else (),
        part=min(_number(header, "split.no", 0), parts - 1) + 1,
        parts=parts,
    )


def quantisation(file_type: int | None) -> str | None:
    """The name of a file type; None where there is none."""
    names = QUANTISATIONS.split()
    known = file_type is not None and 0 <= file_type < len(names) and names[file_type] != "?"
    return names[file_type] if known and file_type is not None else None


def _role(header: gguf.GGUF) -> Role:
    if header.architecture == "clip" or header.metadata.get("general.type") == "mmproj":
        return "projector"
    return "adapter" if header.metadata.get("general.type") == "adapter" else "model"


def _capabilities(header: gguf.GGUF) -> tuple[Capability, ...]:
    if gguf.reranks(header):
        return ("rerank",)
    if gguf.embeds(header):
        return ("embedding",)
    template = header.chat_template
    if not template:
        return ("completion",)
    found: list[Capability] = ["chat", "completion"]
    if tools.sniff(template) is not None:
        found.append("tools")
    if reasoning.sniff(template) is not None:
        found.append("reasoning")
    return tuple(found)


def _number(header: gguf.GGUF, key: str, least: int) -> int:
    value = header.metadata.get(key)
    return value if type(value) is int and least <= value < 1 << 16 else least


def _text(header: gguf.GGUF, key: str) -> str | None:
    value = header.metadata.get(key)
    return _clean(value) or None if isinstance(value, str) else None


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:TEXT_LENGTH_MAX]).strip()
