"""Models for pools whose loads and requests only take time, and a recorder that notices when a promise is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from adapters.errors import AdapterError, ModelLoading, ModelUnavailable
from adapters.llama_cpp.pool import Entry, Pool, PoolSettings
from adapters.llama_cpp.resident import Need, Residence, Source


class Recorder:
    """What the models of a pool did. Whatever breaks a promise raises where it happens."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.taken: dict[str, int] = {}
        self.loads: list[str] = []
        self.slept: list[str] = []

    def take(self, model: FakeModel) -> None:
        assert model.name not in self.taken, "loaded twice at the same time"
        self.taken[model.name] = model.size_bytes
        self.loads.append(model.name)
        assert sum(self.taken.values()) <= self.memory_bytes, "out of memory"


class FakeModel:
    """`failures` loads fail for good before one succeeds."""

    def __init__(self, name: str, recorder: Recorder, size_bytes: int = 10, load_s: float = 1.0) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.load_s = load_s
        self.failures = 0
        self.ready = False
        self.failed = False
        self.running = 0
        self.served = 0
        self._recorder = recorder
        self._loading_until_s = 0.0

    @property
    def busy(self) -> bool:
        return self.running > 0

    def absence(self) -> AdapterError | None:
        if self.ready:
            return None
        if self.failed:
            return ModelUnavailable("failed")
        return ModelLoading("loading", retry_after_s=1.0)

    def left_s(self) -> float:
        return max(self._loading_until_s - asyncio.get_running_loop().time(), 0.0)

    async def load(self) -> bool:
        self._recorder.take(self)
        self.failed = False
        self._loading_until_s = asyncio.get_running_loop().time() + self.load_s
        await asyncio.sleep(self.load_s)
        if self.failures:
            self.failures -= 1
            self.failed = True
            del self._recorder.taken[self.name]
            return False
        self.ready = self.name in self._recorder.taken
        return self.ready

    async def sleep(self) -> None:
        assert not self.running, "taken out of memory while it was busy"
        self.ready = False
        await asyncio.sleep(0.2)
        if self._recorder.taken.pop(self.name, None) is not None:
            self._recorder.slept.append(self.name)


class Bench:
    """A pool of such models, and requests to them."""

    def __init__(
        self,
        memory_bytes: int = 20,
        settings: PoolSettings | None = None,
        depth_max: int = 64,
        **models: tuple[FakeModel | None, Residence],
    ) -> None:
        self.recorder = Recorder(memory_bytes)
        self.models: dict[str, FakeModel] = {}
        entries = []
        for name, (given, how) in models.items():
            model = given or FakeModel(name, self.recorder)
            model._recorder = self.recorder
            self.models[name] = model
            entries.append(entry(model, how, depth_max))
        self.settings = settings or PoolSettings(memory_bytes=memory_bytes, chosen=True)
        self.pool = Pool(entries, self.settings, clock=lambda: asyncio.get_running_loop().time())

    async def ask(self, name: str, seconds: float = 0.1, tenant: str = "t") -> str:
        """A request that runs so long; how it ended."""
        model = self.models[name]
        try:
            await self.pool.residents[name].enter(tenant)
        except AdapterError as error:
            assert not isinstance(error, ModelLoading) or (error.retry_after_s or 0) > 0
            return error.code
        assert model.ready, "let in to a model that is not there"
        model.running += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            model.running -= 1
        model.served += 1
        return "ok"

    def states(self) -> dict[str, str]:
        return {name: resident.place for name, resident in self.pool.residents.items()}


def entry(model: FakeModel, how: Residence, depth_max: int = 64, source: Source | None = None) -> Entry:
    async def look() -> Need:
        return Need(model.size_bytes)

    return Entry(model=model, look=look, how=how, queue_depth_max=depth_max, source=source)


def bench(names: Iterable[str] = "abc", memory_bytes: int = 20, how: Residence | None = None, **more: object) -> Bench:
    """A pool of models of 10 bytes each."""
    how = how or Residence(lazy=True)
    return Bench(memory_bytes, **more, **dict.fromkeys(names, (None, how)))  # type: ignore[arg-type]
