"""The metrics of several processes as one Prometheus text."""

from __future__ import annotations

from collections.abc import Mapping


def together(texts: Mapping[int, bytes]) -> bytes:
    """The texts of processes by their numbers, each sample with the label `worker` of its process.

    A process that is started again begins its own series anew, as every process does, and touches no other.
    """
    families: dict[str, list[str]] = {}
    for number, text in sorted(texts.items()):
        samples: list[str] = []
        for line in text.decode().splitlines():
            if line.startswith("# "):
                if line.startswith("# HELP "):
                    family = line.split(" ", 3)[2]
                    samples = families.setdefault(family, [])
                if line not in samples:
                    samples.append(line)
                continue
            name, brace, rest = line.partition("{")
            if brace and " " not in name:
                samples.append(f'{name}{{worker="{number}",{rest}')
            else:
                name, _, value = line.partition(" ")
                samples.append(f'{name}{{worker="{number}"}} {value}')
    return ("\n".join(line for lines in families.values() for line in lines) + "\n").encode()
