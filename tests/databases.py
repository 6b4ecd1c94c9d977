"""Databases that have their tables already: a file with them is made once and copied, as making it takes many syncs."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from functools import cache
from pathlib import Path

from gateway.state.migrate import known, migrate
from gateway.state.sqlite import FILE_NAME, Sqlite, open_sqlite


@cache
def _fresh() -> bytes:
    """The file of a database in which nothing is yet."""

    async def make(folder: Path) -> None:
        database = await open_sqlite(folder, serve=False)
        await migrate(database, known())
        await database.close()

    with tempfile.TemporaryDirectory() as folder:
        # Whoever asks has a loop already.
        making = threading.Thread(target=lambda: asyncio.run(make(Path(folder))))
        making.start()
        making.join()
        return (Path(folder) / FILE_NAME).read_bytes()


def _place(path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(_fresh())


async def open_migrated(data_dir: Path, *, serve: bool) -> Sqlite:
    """As `open_sqlite`, with all tables."""
    _place(data_dir / FILE_NAME)
    return await open_sqlite(data_dir, serve=serve)
