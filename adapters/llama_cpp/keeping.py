"""What a worker keeps conversations with, from its settings: the store on disk, the sessions, and public prefixes."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from adapters.llama_cpp.buffers import Buffers
from adapters.llama_cpp.kept import PUBLIC, Budget, Cells
from adapters.llama_cpp.messages import ChatPrompt, EngineSettings, TextPrompt
from adapters.llama_cpp.native import Vocabulary, build
from adapters.llama_cpp.prompts import Prompts
from adapters.llama_cpp.sequence import Sequence
from adapters.llama_cpp.sessions import Sessions
from adapters.llama_cpp.store import Store
from adapters.llama_cpp.weights import compatibility
from adapters.types import Generation

# With the digest of the weights at hand, opening takes milliseconds; while it is computed, requests are served.
OPEN_WAIT_S = 2.0


def open_store(path: Path, settings: EngineSettings, buffers: Buffers) -> Store | None:
    """The disk tier of the model at `path`, which begins to open; None without one."""
    if settings.session_dir is None or settings.session_disk_bytes <= 0:
        return None
    folder = Path(settings.session_dir)
    others = [*build(), settings.kv_type, settings.gpu_layers, "unified"]
    if settings.flash_attention == "off":
        # Without it llama.cpp holds values the other way round.
        others.append("transposed")
    store = Store(folder, partial(compatibility, path, folder, others), settings.session_key, buffers)
    store.start()
    return store


def open_sessions(cells: Cells, settings: EngineSettings, store: Store | None) -> Sessions:
    """Uses are dated by the wall clock, because the dates outlive the process."""
    budget = Budget(
        ram_bytes=settings.session_ram_bytes,
        disk_bytes=settings.session_disk_bytes,
        count=settings.session_count_max,
        ttl_s=settings.session_ttl_s,
        disk_ttl_s=settings.session_disk_ttl_s,
    )
    sessions = Sessions(cells, budget, lambda: time.time_ns() // 1000, store)
    if store is not None:
        store.opened.wait(OPEN_WAIT_S)
        sessions.tiers.settle()
    return sessions


def public(prompts: Prompts, vocabulary: Vocabulary, prefixes: tuple[ChatPrompt | TextPrompt, ...]) -> list[Sequence]:
    """What computes the declared prefixes, once, for all tenants. Raises Refusal for one that cannot be rendered."""
    nothing = Generation(max_tokens=0)
    return [
        Sequence(
            -1 - index,
            0,
            prompts.beginning(prefix),
            nothing,
            tenant=PUBLIC,
            session_key=None,
            max_tokens=0,
            pieces=vocabulary,
        )
        for index, prefix in enumerate(prefixes)
    ]
