"""Mutated GGUF files through the import of a real server: it never dies, and nothing bad comes in.

    python -m tests.faults.mutated_imports [--files 20000] [--seed 1]

Each file is a small model with some bytes changed, most of them in its header, or cut off, or with a number of its
header replaced by an extreme one. What comes in as ready has a header that the gateway's reader takes once more.
"""

from __future__ import annotations

import argparse
import collections
import random
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from gateway.library import taking
from tests.e2e.server import ADMIN_KEY, Server
from tests.models import random_gguf

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
CLIENTS = 4
ATONCE = 200


def mutated(data: bytes, header_bytes: int, draw: random.Random) -> bytes:
    """The file with something wrong with it, or with nothing that matters."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(header_bytes if draw.random() < 0.9 else len(out))
        match draw.randrange(4):
            case 0:
                out[at] = draw.randrange(256)
            case 1:
                out[at] ^= 1 << draw.randrange(8)
            case 2:
                out[at : at + 8] = struct.pack("<Q", draw.choice(EXTREMES))
            case _:
                other = draw.randrange(header_bytes)
                out[at : at + 16] = out[other : other + 16]
    return bytes(out[: draw.randrange(len(out))] if draw.random() < 0.1 else out)


def run(files: int, seed: int) -> int:
    draw, outcomes = random.Random(seed), collections.Counter[str]()
    with tempfile.TemporaryDirectory(prefix="mutated-") as name:
        root = Path(name)
        data = random_gguf.llama_tiny(root / "base.gguf").read_bytes()
        folder = root / "models"
        folder.mkdir()
        config = f"library: {{import_dirs: [{folder}]}}\n"
        started, wrong = time.monotonic(), list[str]()
        with Server(root / "server", config=config, ready=False) as server, ThreadPoolExecutor(CLIENTS) as pool:
            headers = {"authorization": f"Bearer {ADMIN_KEY}"}
            with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:

                def bring(path: Path) -> str:
                    made = client.post("/admin/v1/library/files", json={"path": str(path), "how": "link", "wait": True})
                    file = made.json()
                    if made.status_code != 201:
                        return f"{made.status_code}"
                    if file["status"] == "ready":
                        taking.look(path)  # Raises, if it was no model after all.
                    if client.delete(f"/admin/v1/library/files/{file['id']}").status_code != 204:
                        wrong.append(f"{path.name} could not be deleted")
                    path.unlink()
                    return str(file["status"])

                for first in range(0, files, ATONCE):
                    paths = []
                    for number in range(first, min(files, first + ATONCE)):
                        path = folder / f"{number}.gguf"
                        path.write_bytes(mutated(data, 40_000, draw))
                        paths.append(path)
                    outcomes.update(pool.map(bring, paths))
                    if server.process.poll() is not None:
                        wrong.append(f"the gateway died near file {first}")
                        break
                    if first % 2000 == 0:
                        print(first, dict(outcomes), f"{time.monotonic() - started:.0f} s", flush=True)
                alive = client.get("/health/live").status_code == 200
                memory = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
        print(dict(outcomes), f"{time.monotonic() - started:.0f} s", f"{int(memory) * 4 // 1024} MiB resident")
    if set(outcomes) - {"ready", "quarantined", "error"} or not alive:
        wrong.append(f"other outcomes than files may have: {dict(outcomes)}")
    print("\n".join(wrong) or "as promised")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Mutated GGUF files through the import of a real server.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(run(options.files, options.seed))
