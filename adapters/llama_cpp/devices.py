"""What this llama.cpp can compute on, asked of a process of its own, because the gateway never loads it."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Literal

import msgspec

from adapters.llama_cpp.process import worker_environment

TIMEOUT_S = 60.0
OUTPUT_BYTES_MAX = 1 << 20

DeviceKind = Literal["cpu", "gpu", "integrated_gpu", "accelerator", "other"]


class Device(msgspec.Struct, frozen=True):
    """Something that layers can be put on; memory in bytes, 0 where nobody says."""

    name: str
    description: str
    kind: DeviceKind
    free_bytes: int
    total_bytes: int


class Build(msgspec.Struct, frozen=True):
    """A llama.cpp: its version, the back ends that it was built with, what it makes use of in the CPU, its devices, and
    the physical cores that may be used."""

    version: str
    backends: tuple[str, ...]
    cpu_features: tuple[str, ...]
    devices: tuple[Device, ...]
    cores: int


class NoBuild(Exception):
    """llama.cpp cannot be asked; the message says why."""


async def ask() -> Build:
    """Raises NoBuild."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "adapters.llama_cpp.backends",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=worker_environment(os.environ),
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate()
        return msgspec.json.decode(out[:OUTPUT_BYTES_MAX], type=Build)
    except TimeoutError:
        raise NoBuild("llama.cpp does not say what it can compute on") from None
    except msgspec.DecodeError:
        raise NoBuild(f"llama.cpp cannot be loaded: exit code {process.returncode}") from None
    finally:
        if process.returncode is None:
            process.kill()
