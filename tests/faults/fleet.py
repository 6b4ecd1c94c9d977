"""Gateways in processes of their own whose model costs nothing, faults they run into, and what is in their books."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.auth.key_rules import KeyChange
from gateway.auth.key_text import load_pepper
from gateway.auth.keyring import Keyring
from gateway.auth.keys import ADMIN
from gateway.auth.records import Directory
from gateway.config import Config, load
from gateway.config_limits import ScopeLimits
from gateway.ledger import Entry
from gateway.ledger.store import Filter, Ledger
from gateway.limits.wallets import Wallets
from gateway.state.database import Database
from gateway.state.migrate import known, migrate
from gateway.stores import with_database
from tests.stores import free_port

ROOT = Path(__file__).parents[2]
START_S_MAX = 60
TOKEN_NANO = 1_000_000
CALLS = ("fdatasync", "fsync", "pwrite", "unlink", "write")
KILL = -1
LAST = 2**31 - 1

SCRIPT = """
answers:
  - chunks: [one]
  - {chunks: [one, " two", " three"], gap_s: 0.002}
  - {chunks: [a, b, c, d, e, f, g, h], gap_s: 0.001}
"""
CONFIG = """
log: {level: warning}
server: {connections_max: 10000, drain_timeout_s: 2}
auth: {pepper: the-same-pepper-for-all-replicas, admin_key: test-admin-key-0123456789}
models:
  - name: m
    script: script.yaml
    price: {input: "1", output: "1000"}
"""


class Rule(msgspec.Struct, frozen=True):
    """Calls number `first` to `last` on files whose path holds `match` fail with `error`, or kill the process."""

    call: str
    error: int
    first: int = 1
    last: int = 1
    match: str = ""


class Faults:
    """The plan that a gateway started with `environ` obeys; it can be changed at any time."""

    _SIZE = 128

    def __init__(self, folder: Path, shim: Path) -> None:
        path = folder / "faults"
        path.write_bytes(bytes(4 * self._SIZE))
        with path.open("r+b") as file:
            self._plan = mmap.mmap(file.fileno(), 0)
        self.environ = {"LD_PRELOAD": str(shim), "FAULT_PLAN": str(path)}

    def arm(self, *rules: Rule) -> None:
        self.disarm()
        for i, rule in enumerate(rules):
            at, call = i * self._SIZE, CALLS.index(rule.call) + 1
            packed = struct.pack("6i104s", 0, rule.first, rule.last, rule.error, 0, 0, rule.match.encode())
            self._plan[at : at + self._SIZE] = packed
            self._plan[at : at + 4] = struct.pack("i", call)

    def disarm(self) -> int:
        """Let everything work again; how many calls failed."""
        injected = 0
        for at in range(0, len(self._plan), self._SIZE):
            injected += struct.unpack("6i", self._plan[at : at + 24])[5]
            self._plan[at : at + 24] = bytes(24)
        return injected


def build_shim(folder: Path) -> Path:
    """Compile the library that injects faults."""
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Gateway:
    """A process that serves from `folder`, and can be started again and again at the same place."""

    def __init__(self, folder: Path, more: str = "", environ: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.data_dir = folder / "state"
        self.log = folder / "log"
        self._config = folder / "config.yaml"
        self._config.write_text(CONFIG + more)
        (folder / "script.yaml").write_text(SCRIPT)
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(folder)} | (environ or {})
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Config:
        return load(self._config, {}, {"data_dir": str(self.data_dir)})

    def start(self) -> None:
        """Begin to start; `ready` waits for it."""
        command = [sys.executable, "-m", "gateway", "serve", "--port", str(self.port)]
        command += ["--config", str(self._config), "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environ, stdout=log, stderr=log)

    async def ready(self) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + START_S_MAX
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.alive and time.monotonic() < deadline, f"no start:\n{self.log.read_text()[-2000:]}"
            await asyncio.sleep(0.01)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def create_keys(config: Config, limits: Sequence[ScopeLimits]) -> list[tuple[str, str]]:
    """A new key for each of the limits, as (id, text), and its wallet full; while no gateway runs, or beside one."""

    async def work(database: Database) -> list[tuple[str, str]]:
        await migrate(database, known())
        keyring = Keyring(Directory(database), load_pepper(Path(config.data_dir), config.auth.pepper))
        made = [await keyring.create(ADMIN, f"key {i}", settings=KeyChange(limits=one)) for i, one in enumerate(limits)]
        wallets = Wallets(database)
        for name in {one.wallet for one in limits if one.wallet is not None}:
            await wallets.open(name, "t", 0, bonus_nano=10**15)
        return [(key.id, text) for key, text in made]

    return with_database(config, work)


class Books(msgspec.Struct, frozen=True):
    """Everything that was written down about requests."""

    entries: list[Entry]
    problems: list[str]

    @property
    def charged(self) -> dict[str, int]:
        """Nano-USD by account."""
        sums: dict[str, int] = {}
        for entry in self.entries:
            for account in entry.accounts:
                sums[account] = sums.get(account, 0) + entry.charged_nano
        return sums


def read_books(config: Config) -> Books:
    """The ledger in the order of its entries' times, and what `gateway doctor` would say about its balances."""

    async def work(database: Database) -> Books:
        ledger = Ledger(database)
        entries = [entry async for entry in ledger.entries(Filter())]
        problems = await ledger.problems() + await Wallets(database).problems()
        doubles = "FROM balances WHERE account LIKE 'wallet:%' OR account LIKE 'world:%'"
        rows = await database.query(
            f"SELECT CAST(COALESCE(SUM(credits_nano - debits_nano), 0) AS BIGINT) AS total {doubles}"
        )
        if rows[0]["total"] != 0:
            problems.append(f"double entry comes to {rows[0]['total']!s}")
        return Books(entries, problems)

    return with_database(config, work)


def judge_books(books: Books, finished: Sequence[str], limit_nano: int | None = None) -> list[str]:
    """What is wrong: a finished answer without its entry or with two, a balance that is no sum, an account that was
    overspent at any prefix of the ledger."""
    wrong = list(books.problems)
    count: dict[str, int] = {}
    spent: dict[str, int] = {}
    for entry in books.entries:
        count[entry.request_id] = count.get(entry.request_id, 0) + 1
        for account in entry.accounts:
            spent[account] = spent.get(account, 0) + entry.charged_nano
            if limit_nano is not None and spent[account] > limit_nano:
                wrong.append(f"{account} is overspent by {spent[account] - limit_nano}")
    wrong += [f"{identity} has {count[identity]} entries" for identity in count if count[identity] > 1]
    wrong += [f"{identity} was finished and is lost" for identity in finished if identity not in count]
    return wrong
