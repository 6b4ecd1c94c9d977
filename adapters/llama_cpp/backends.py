"""Prints what this llama.cpp can compute on, as JSON; the other half of `devices.py`."""

from __future__ import annotations

import sys

import msgspec

from adapters.llama_cpp.confine import cores
from adapters.llama_cpp.devices import Build, Device, DeviceKind
from adapters.llama_cpp.native import Backends, build, cpu_features, quiet

# By the number that ggml gives each kind of device.
KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "integrated_gpu", "accelerator")


def main() -> None:
    quiet()
    backends = Backends()
    devices = tuple(
        Device(name, description, KINDS[kind] if kind < len(KINDS) else "other", free, total)
        for name, description, kind, free, total in backends.devices()
    )
    found = Build(" ".join(map(str, build()[:2])), backends.names(), cpu_features(), devices, cores())
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
