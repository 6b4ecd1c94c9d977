"""What this machine has for models: processor, memory, drives and devices; and what would run well on it."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from adapters.llama_cpp.devices import Build, NoBuild, ask
from adapters.llama_cpp.memory import CGROUP, memory_bytes
from gateway.library.drives import TURNS_ROTATIONAL, TURNS_SOLID, Drives
from gateway.library.fitting import ROOM_SHARE, memory_bytes_per_s

MEMINFO = Path("/proc/meminfo")
# What weights may take of the memory: the rest is for conversations, and for everything else that runs.
WEIGHTS_SHARE = 0.6
# Beside weights and conversations: the process, and what it computes in.
BESIDE_BYTES = 600 << 20
CONTEXTS = (4096, 8192, 16_384, 32_768)
CONTEXT_USEFUL = 8192
# From the least loss to the most, with the bits that a weight takes on average.
QUANTISATIONS = (("Q8_0", 8.5), ("Q6_K", 6.6), ("Q5_K_M", 5.7), ("Q4_K_M", 4.85), ("Q3_K_M", 3.9), ("IQ2_M", 2.7))
USUAL = "Q4_K_M"
# What is usual today: billions of weights, and the bytes that a token of a conversation takes in 16 bits.
SIZES = (
    *((0.5, 12 << 10), (1.5, 28 << 10), (4, 144 << 10), (8, 128 << 10)),
    *((14, 192 << 10), (32, 256 << 10), (70, 320 << 10)),
)
# Below this many tokens a second nobody reads along.
SPEED_MIN = 3.0


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """The file system that a folder is on. `rotational` None: nobody knows."""

    folder: str
    total_bytes: int
    free_bytes: int
    read_only: bool
    rotational: bool | None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What to run of models of so many billions of weights: the quantisation that loses least with the longest context
    that memory holds; and about how fast."""

    parameters_billions: float
    quantisation: str
    size_bytes: int
    context_tokens: int
    tokens_per_s: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`cores` are physical ones that may be used, `threads` what an engine should have of them. `memory_bytes` is what
    a container is bounded to, where there is one. `build` None: `problem` says why llama.cpp cannot be asked."""

    object: str = "library.hardware"
    system: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    available_bytes: int
    memory_bytes_per_s: float
    disks: tuple[Disk, ...]
    build: Build | None
    problem: str | None
    advice: tuple[Advice, ...]


async def machine(folders: Sequence[Path]) -> Machine:
    """Look at it; that takes about a second."""
    build, problem = None, None
    try:
        build = await ask()
    except NoBuild as error:
        problem = str(error)
    speed = await asyncio.to_thread(memory_bytes_per_s)
    room, cores = memory_bytes(), build.cores if build is not None else os.cpu_count() or 1
    gpus = 0 if build is None else sum(one.total_bytes for one in build.devices if one.kind == "gpu")
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=await asyncio.to_thread(_processor),
        cores=cores,
        threads=max(1, cores - 1),
        memory_bytes=room,
        available_bytes=available_bytes(),
        memory_bytes_per_s=speed,
        disks=tuple(await asyncio.to_thread(_disks, folders)),
        build=build,
        problem=problem,
        advice=advise(max(room, gpus), speed),
    )


def advise(room_bytes: int, bytes_per_s: float) -> tuple[Advice, ...]:
    """For each usual size of models that fits at all, the largest first."""
    left = int(room_bytes * ROOM_SHARE) - BESIDE_BYTES
    found = (_advice(billions, token_bytes, left, bytes_per_s) for billions, token_bytes in reversed(SIZES))
    return tuple(one for one in found if one is not None)


def _advice(billions: float, token_bytes: int, left_bytes: int, bytes_per_s: float) -> Advice | None:
    """The quantisation that loses least among those that are quick enough, down to the usual one; else the best that
    fits; with the least context that is of use, or half of it where no other way is left."""
    sizes = {name: int(billions * 1e9 * bits / 8) for name, bits in QUANTISATIONS}
    for context in (CONTEXT_USEFUL, CONTEXT_USEFUL // 2):
        fitting = [name for name in sizes if sizes[name] + context * token_bytes <= left_bytes]
        usual = [name for name in fitting if sizes[name] >= sizes[USUAL]]
        quick = [name for name in usual if bytes_per_s / sizes[name] >= SPEED_MIN]
        for name in (*quick, *usual[-1:], *fitting):
            size = sizes[name]
            return Advice(
                parameters_billions=billions,
                quantisation=name,
                size_bytes=size,
                context_tokens=max(one for one in CONTEXTS if size + one * token_bytes <= left_bytes),
                tokens_per_s=float(f"{bytes_per_s / size:.2g}"),
            )
    return None


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _disks(folders: Sequence[Path]) -> list[Disk]:
    found, drives = [], Drives()
    for folder in dict.fromkeys(folders):
        there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
        status, turns = os.statvfs(there), drives.turns_of(there.stat().st_dev)
        found.append(
            Disk(
                folder=str(folder),
                total_bytes=status.f_blocks * status.f_frsize,
                free_bytes=status.f_bavail * status.f_frsize,
                read_only=bool(status.f_flag & os.ST_RDONLY),
                rotational={TURNS_ROTATIONAL: True, TURNS_SOLID: False}.get(turns),
            )
        )
    return found


def room_bytes(cgroup: Path = CGROUP) -> int:
    """How large a model may be."""
    return int(memory_bytes(cgroup) * WEIGHTS_SHARE)


def available_bytes(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> int:
    """The memory that could be taken now without anything being swapped out or killed; caches of files give way."""
    available = [int(line.split()[1]) * 1024 for line in _lines(meminfo) if line.startswith("MemAvailable:")]
    bounds = [memory_bytes(cgroup), *available]
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        files = [int(line.split()[1]) for line in _lines(cgroup / "memory.stat") if line.startswith("inactive_file ")]
        bounds.append(max(limit - used + sum(files), 0))
    return min(bounds)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None
