"""What is in memory: the local models of this process by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from adapters.llama_cpp import LlamaCpp, Status

logger = logging.getLogger(__name__)


class Pool:
    """Loads models one after the other, so that they do not fight for cores; each serves once it is ready."""

    def __init__(self, models: Iterable[LlamaCpp]) -> None:
        self._models = {model.name: model for model in models}
        self._closed = False

    async def start(self) -> None:
        """Load all models; returns when each is ready or failed. One that failed does not stop the others."""
        for model in self._models.values():
            if self._closed:
                return
            await model.start()
            status = model.status()
            logger.info("model %r is %s%s", model.name, status.state, f": {status.reason}" if status.reason else "")

    def ensure_ready(self, name: str) -> LlamaCpp:
        """The loaded model; raises ModelLoading or ModelUnavailable when it is not, KeyError when there is no such."""
        model = self._models[name]
        model.check_ready()
        return model

    def statuses(self) -> dict[str, Status]:
        return {name: model.status() for name, model in self._models.items()}

    async def close(self) -> None:
        """Stop all workers at once; none is left when this returns."""
        self._closed = True
        await asyncio.gather(*(model.close() for model in self._models.values()))
