"""Whether a model fits this machine, for how many conversations and about how fast, from its header and sizes alone."""

from __future__ import annotations

import time

import msgspec

from adapters.llama_cpp import gguf
from adapters.llama_cpp.forecast import need
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.packing import has_amx

# What a conversation is taken to be long.
SESSION_TOKENS = 16 * 1024
# The smallest cache that anything runs with.
LEAST_TOKENS = 256
# What of the memory is left to everything else.
ROOM_SHARE = 0.9
MEASURED_BYTES = 32 << 20
MEASURED_TIMES = 5


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """`fits` says whether one conversation of `session_tokens` does. `needed_bytes` are for that one, `sessions` how
    many fit beside each other; `tokens_per_s` is what the memory's speed allows one of them."""

    fits: bool
    needed_bytes: int
    room_bytes: int
    sessions: int
    session_tokens: int
    tokens_per_s: float | None


def fit(header: gguf.GGUF, size_bytes: int, room_bytes: int, bytes_per_s: float | None) -> Fit:
    """The forecast for a model of `size_bytes` in all its parts, whose header is this but for its quantisation."""
    header = msgspec.structs.replace(header, size_bytes=size_bytes)
    room, longest = int(room_bytes * ROOM_SHARE), min(SESSION_TOKENS, header.context_length or SESSION_TOKENS)
    amx = has_amx()
    least = need(header, _settings(LEAST_TOKENS), amx=amx).size_bytes
    session = need(header, _settings(LEAST_TOKENS + longest), amx=amx).size_bytes - least
    sessions = max(0, room - least) // max(1, session)
    read = size_bytes * _read_share(header)
    return Fit(
        fits=sessions > 0,
        needed_bytes=least + session,
        room_bytes=room,
        sessions=min(sessions, 1000),
        session_tokens=longest,
        tokens_per_s=None if bytes_per_s is None or read <= 0 else float(f"{bytes_per_s / read:.2g}"),
    )


def _settings(tokens: int) -> EngineSettings:
    return EngineSettings(context_tokens=tokens, cache_tokens=tokens)


def _read_share(header: gguf.GGUF) -> float:
    """What part of the weights one token needs: of the experts only those that are asked."""
    experts = header.metadata.get(f"{header.architecture}.expert_count")
    used = header.metadata.get(f"{header.architecture}.expert_used_count")
    if not isinstance(experts, int) or not isinstance(used, int) or not 0 < used <= experts:
        return 1.0
    everything = expert = 0.0
    for name, tensor in header.tensors.items():
        size = 1.0
        for number in tensor.shape:
            size *= number
        everything += size
        expert += size if "_exps" in name else 0.0
    return 1.0 if not everything else (everything - expert + expert * used / experts) / everything


def memory_bytes_per_s() -> float:
    """How fast one core copies memory, which is about how fast it reads weights; takes some hundredths of a second."""
    source, best = bytearray(MEASURED_BYTES), 0.0
    target = memoryview(bytearray(MEASURED_BYTES))
    for _ in range(MEASURED_TIMES):
        started = time.perf_counter()
        target[:] = source
        best = max(best, 2 * MEASURED_BYTES / (time.perf_counter() - started))
    return best
