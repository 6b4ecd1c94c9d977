"""LoRA adapters of one model: their files checked, and what a request asks for as one set to compute with.

llama.cpp applies adapters to a whole context, so sequences are computed together only where they share a set, and cells
computed under one set are never read under another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from adapters.llama_cpp import gguf
from adapters.llama_cpp.messages import LoraFile
from adapters.types import Lora

KINDS = frozenset(("F32", "F16", "BF16", "Q8_0"))
EMBEDDING = "token_embd.weight"
INVOCATION_TOKENS = "adapter.alora.invocation_tokens"


class AdapterSet(msgspec.Struct, frozen=True):
    """Adapters applied together, each as its place in the configuration and its scale, in order of place.

    `variant` names what they make of the weights and holds across restarts; empty without any.
    """

    variant: str = ""
    scales: tuple[tuple[int, float], ...] = ()


NO_ADAPTERS = AdapterSet()


class UnknownLora(ValueError):
    """What a request asked for is not there, or is there twice; the message is for its sender."""


class Loras:
    """The adapters that requests may choose."""

    def __init__(self, files: Sequence[LoraFile], digests: Sequence[str]) -> None:
        self._files = files
        self._digests = digests
        self._places = {file.name: place for place, file in enumerate(files)}

    def chosen(self, loras: Iterable[Lora]) -> AdapterSet:
        """The set that a request asks for; one at scale 0 is left out. Raises UnknownLora."""
        scales: dict[int, float] = {}
        for lora in loras:
            known = lora.adapter if isinstance(lora.adapter, int) else self._places.get(lora.adapter, -1)
            if not 0 <= known < len(self._files):
                raise UnknownLora(f"This model has no adapter {lora.adapter!r}.")
            if known in scales:
                raise UnknownLora(f"The adapter {self._files[known].name!r} is asked for twice.")
            scales[known] = self._files[known].scale if lora.scale is None else lora.scale
        applied = tuple(sorted((place, scale) for place, scale in scales.items() if scale))
        return AdapterSet("+".join(f"{self._digests[place]}*{scale!r}" for place, scale in applied), applied)


def digest(path: Path) -> str:
    """The first half of the file's SHA-256: a file that was replaced is another adapter."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def check(path: Path, base: gguf.GGUF) -> None:
    """Whether the file is an adapter that fits the model, by its header. Raises GGUFError or OSError.

    llama.cpp checks most of this as well, but aborts on values and tensors of types that it does not expect.
    """
    header = gguf.read(path)
    for key, wanted in (
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.architecture", base.architecture),
    ):
        found = header.metadata.get(key)
        if found != wanted:
            raise gguf.GGUFError(f"{key} is {found!r} instead of {wanted!r}")
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise gguf.GGUFError(f"adapter.lora.alpha is {alpha!r}")
    if INVOCATION_TOKENS in header.metadata:
        raise gguf.GGUFError("it is an activated LoRA (aLoRA), which is not supported")
    # Norms come with some adapters and are passed over by llama.cpp.
    tensors = {name: tensor for name, tensor in header.tensors.items() if not name.endswith("_norm.weight")}
    weights = sorted({name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors})
    if not weights or set(tensors) != {name + half for name in weights for half in (".lora_a", ".lora_b")}:
        raise gguf.GGUFError("its tensors are not pairs of lora_a and lora_b")
    if EMBEDDING in weights and "output.weight" not in base.tensors:
        raise gguf.GGUFError(f"it changes {EMBEDDING!r}, which this model uses for its output as well")
    for name in weights:
        _check_pair(name, tensors[name + ".lora_a"], tensors[name + ".lora_b"], base.tensors.get(name))


def _check_pair(name: str, a: gguf.Tensor, b: gguf.Tensor, weight: gguf.Tensor | None) -> None:
    """A has the columns of the weight, B its rows, and between them is the rank; embeddings have both the other way."""
    if weight is None:
        raise gguf.GGUFError(f"the model has no tensor {name!r} (is it another model's adapter?)")
    if a.kind not in KINDS or b.kind not in KINDS:
        raise gguf.GGUFError(f"the adapter of {name!r} is of the types {a.kind} and {b.kind}")
    shapes = f"{list(a.shape)} and {list(b.shape)} for {list(weight.shape)}"
    wrong = gguf.GGUFError(f"the adapter of {name!r} has the wrong shape, {shapes} (is it another model's adapter?)")
    if not len(a.shape) == len(b.shape) == len(weight.shape) in (2, 3):
        raise wrong
    rows, columns, ranks = (b.shape[1], a.shape[0], (a.shape[1], b.shape[0]))
    if name == EMBEDDING:
        rows, columns, ranks = (a.shape[1], b.shape[1], (a.shape[0], b.shape[0]))
    experts = {a.shape[2:], b.shape[2:], weight.shape[2:]}
    if (columns, rows) != weight.shape[:2] or ranks[0] != ranks[1] or len(experts) > 1:
        raise wrong
