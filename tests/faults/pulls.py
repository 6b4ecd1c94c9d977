"""`python -m tests.faults.pulls`: pulls that are cut off and killed at random bytes. Exit code 1: something was wrong.

    python -m tests.faults.pulls [--cuts 100] [--kills 100] [--cancels 20] [--seed 1]

Each journey is one large file that `gateway pull` fetches from a hub on loopback, started anew whenever it was killed
or has given up, until it is there. What the hub sends more than once is counted there: each trouble may cost 8 MiB. The
file has to be what it was, and nothing else may be left. Then pulls of a real server are cancelled.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from gateway.library.store import Store
from tests.e2e.server import ROOT, Server
from tests.faults.race import Outcome
from tests.faults.storm import KINDS, Cut, Storm, Trouble, troubles
from tests.hub import COMMIT

AGAIN_BYTES_MAX = 8 << 20
SIZES = (64 << 20, 200 << 20)
TROUBLES_EACH = 10
PARALLEL = 4
NAME = "org/model:Q8_0"


class Many(msgspec.Struct, frozen=True):
    """How many troubles of each sort there are to be."""

    cuts: int
    kills: int
    cancels: int


class Journey(msgspec.Struct, kw_only=True):
    """How one file came: the hub's count of what it sent again, how often the command was run, what was wrong."""

    size_bytes: int
    again: list[int]
    runs: int
    wrong: list[str]


def journey(folder: Path, content: bytes, coming: list[Trouble]) -> Journey:
    """Pull until the file is there."""
    folder.mkdir(parents=True)
    running: list[subprocess.Popen[bytes]] = []
    done, runs, wrong = b"", 0, []
    with Storm(content, coming, lambda: running[-1].kill()) as hub:
        (folder / "config.yaml").write_text(f'library: {{endpoint: "{hub.endpoint}", dir: "{folder / "hub"}"}}\n')
        while runs <= len(coming) + 1 and not done:
            running.append(_command(folder))
            said, error = running[-1].communicate()
            runs += 1
            done = said.strip()
            if running[-1].returncode not in (0, 1, -9):
                wrong.append(f"the command ended with {running[-1].returncode}: {error[-300:]!r}")
        if hub.left:
            wrong.append(f"{hub.left} troubles never came")
        if hub.served_bytes != len(content) + sum(hub.again):
            wrong.append(f"{hub.served_bytes} bytes were sent of {len(content)}")
        wrong += [f"{size} bytes were sent again" for size in hub.again if size > AGAIN_BYTES_MAX]
        wrong += _problems(folder, Path(done.decode()), hub.sha256(""))
        return Journey(size_bytes=len(content), again=hub.again, runs=runs, wrong=wrong)


def _command(folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["pull", NAME, "--config", str(folder / "config.yaml"), "--data-dir", str(folder / "state")]
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _problems(folder: Path, path: Path, sha256: str) -> list[str]:
    """What is wrong with what came, or lies there beside it."""
    if not path.is_file():
        return ["the file never came"]
    with path.open("rb") as read:
        wrong = [] if hashlib.file_digest(read, "sha256").hexdigest() == sha256 else ["the file is another one"]
    expected = {f"blobs/{sha256}", f"snapshots/{COMMIT}/{path.name}", "refs/main"}
    return wrong + [f"{name} is left" for name in sorted(files_of(folder / "hub") - expected)]


def files_of(hub: Path) -> set[str]:
    """What lies in the one repository's folder; locks lie beside it."""
    own = Store(hub).folder("org/model")
    return {str(path.relative_to(own)) for path in own.rglob("*") if path.is_symlink() or not path.is_dir()}


def cancels(folder: Path, content: bytes, count: int, draw: random.Random) -> list[str]:
    """Pulls of a server, each cancelled at a random byte; what was wrong."""
    wrong = []
    with Storm(content, [], lambda: None) as hub:
        config = f'library: {{endpoint: "{hub.endpoint}", dir: "{folder / "hub"}"}}\n'
        with Server(folder, config=config, ready=False) as server, server.client() as client:
            for number in range(count):
                at = hub.served_bytes + draw.randrange(len(content) // 2)
                pull = client.post("/admin/v1/pulls", json={"name": NAME}).json()["id"]
                while hub.served_bytes < at:
                    time.sleep(0.001)
                said = client.post(f"/admin/v1/pulls/{pull}/cancel").json()
                if said.get("status") != "cancelled":
                    wrong.append(f"cancel {number} was answered {said}")
                wrong += [f"{name} is left by cancel {number}" for name in files_of(folder / "hub")]
    return wrong


def pulls(
    folder: Path, many: Many, *, seed: int, sizes: tuple[int, int] = SIZES, kinds: Sequence[Cut] = KINDS
) -> Outcome:
    """All of it; `sizes` are those of the smallest and the largest file, in bytes."""
    draw = random.Random(seed)
    data, plans = draw.randbytes(sizes[1]), []
    count = -(-(many.cuts + many.kills) // TROUBLES_EACH)
    for number in range(count):
        size = draw.randint(*sizes)
        cuts, kills = (total * (number + 1) // count - total * number // count for total in (many.cuts, many.kills))
        plans.append((data[:size], troubles(size, cuts, kills, draw, kinds)))
    with ThreadPoolExecutor(PARALLEL) as pool:
        jobs = [pool.submit(journey, folder / str(number), *plan) for number, plan in enumerate(plans)]
        journeys = [job.result() for job in jobs]
    wrong = [problem for one in journeys for problem in one.wrong]
    wrong += cancels(folder / "cancels", data[: sizes[0]], many.cancels, draw)
    again = sorted(size for one in journeys for size in one.again)
    figures: dict[str, object] = {
        "files": len(journeys),
        "MB": sum(one.size_bytes for one in journeys) // 10**6,
        "cuts": many.cuts,
        "kills": many.kills,
        "runs": sum(one.runs for one in journeys),
        "sent again": len(again),
        "bytes again in all": sum(again),
        "most at once": max(again, default=0),
        "cancels": many.cancels,
    }
    return Outcome(figures, wrong)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.pulls", description=__doc__)
    for name, number in (("cuts", 100), ("kills", 100), ("cancels", 20), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gateway-pulls-") as folder:
        outcome = pulls(Path(folder), Many(options.cuts, options.kills, options.cancels), seed=options.seed)
    figures = ", ".join(f"{what} {figure}" for what, figure in outcome.figures.items())
    print(f"{'FAIL' if outcome.wrong else 'ok  '}  ({time.monotonic() - started_s:.0f} s): {figures}")
    for problem in outcome.wrong[:20]:
        print(f"      {problem}")
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    sys.exit(main())
