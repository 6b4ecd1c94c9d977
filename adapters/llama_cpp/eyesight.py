"""What a model with a projector has besides one without: checked, loaded and put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from adapters.llama_cpp import gguf
from adapters.llama_cpp.arrays import Float32s
from adapters.llama_cpp.images import Encoder, Sight, Turns
from adapters.llama_cpp.looking import Looking
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.native import Context, Model
from adapters.llama_cpp.vision import Projector, fingerprint

# One makes an image's embeddings depend on where it stands in the prompt, the other its positions on the images before.
UNSUPPORTED_PROJECTORS = ("deepseek4v", "hunyuanvl")


class Eyesight:
    """The projector of a vision model. Raises GGUFError, OSError or NativeError when there is none to be had.

    `turns` replaces the lease of the model's context, which has to be computed in turn with the projector.
    """

    def __init__(
        self,
        model: Model,
        settings: EngineSettings,
        threads: int,
        lease: AbstractContextManager[None],
        wake: Callable[[], None],
    ) -> None:
        self._path = path = Path(settings.mmproj or "")
        self._cache_bytes = settings.image_cache_bytes
        self._wake = wake
        check(path)
        self.turns = turns = Turns(lease, shared=settings.lease_path is not None)
        gpu = settings.gpu_layers != 0
        self._projector = projector = Projector(
            path, model, threads=threads, gpu=gpu, pause=turns.pause, flash_attention=settings.flash_attention
        )
        if not projector.sees:
            raise gguf.GGUFError("it is not a projector for images")

    def sight(self, context: Context) -> Sight:
        tokens_max = context.batch_tokens if self._projector.whole else None
        return Sight(self._projector, fingerprint(self._path), tokens_max)

    def looking(self, context: Context) -> Looking:
        encoder = Encoder(self._encode, bytes_max=self._cache_bytes, wake=self._wake)
        return Looking(context, encoder, whole=self._projector.whole)

    def _encode(self, data: bytes) -> list[Float32s]:
        with self.turns.encoding():
            return self._projector.encode(data)


def check(path: Path) -> None:
    """Reads a projector's header before native code does. Raises GGUFError or OSError."""
    header = gguf.read(path)
    if header.architecture != "clip":
        raise gguf.GGUFError(f"it is a model of the architecture {header.architecture} and not a projector")
    kind = header.metadata.get("clip.vision.projector_type", header.metadata.get("clip.projector_type"))
    if kind in UNSUPPORTED_PROJECTORS:
        raise gguf.GGUFError(f"projectors of the type {kind} are not supported")
