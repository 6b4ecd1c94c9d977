"""Opens the library of files."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.api.mount import Library
from gateway.audit import GATEWAY, Audit, Event
from gateway.config import Config
from gateway.hubs import collector_of, hub_settings, library_folder, open_shelf, referred, shelf_of
from gateway.library.datasets import Datasets
from gateway.library.files import Files
from gateway.library.finding import Finding
from gateway.library.garbage import Garbage, sweep
from gateway.library.importing import Imports
from gateway.library.links import Links
from gateway.regularly import Regularly
from gateway.state.database import Database, DatabaseError
from gateway.stores import open_database

if TYPE_CHECKING:
    from gateway.library.hub import Hub
    from gateway.library.shelf import Shelf

COLLECT_FIRST_S = 600.0

log = logging.getLogger("gateway.library")


async def open_library(
    config: Config, database: Database | None, audit: Audit, stack: AsyncExitStack
) -> Library | None:
    """What is done to files, where there is a database to keep what is known of them."""
    if database is None:
        return None

    def open_hub() -> Hub:
        # Asking hubs takes libraries that a start should not wait for.
        from gateway.library.hub import Hub

        return Hub(hub_settings(config))

    sources = [Path(folder) for folder in config.library.import_dirs]
    files = Files(database)
    imports = Imports(
        files, library_folder(config), sources=sources, referred=referred(config), shelf=shelf_of(config, files)
    )
    await imports.open()
    stack.push_async_callback(imports.close)
    links = Links(database, imports, folders=[Path(folder) for folder in config.library.link_dirs])
    finding = Finding(open_hub, files)
    stack.callback(finding.close)
    collector = collector_of(config, files)
    if config.library.collect_hours is not None:
        every_s = config.library.collect_hours * 3600.0
        sweeping = partial(sweep, collector, partial(_note_collected, audit))
        sweeper = Regularly(sweeping, every_s, first_s=min(COLLECT_FIRST_S, every_s), jitter=0.0)
        sweeper.start()
        stack.push_async_callback(sweeper.close)
    datasets = Datasets(imports)
    stack.push_async_callback(datasets.close)
    return Library(
        imports, links, finding, collector, datasets, (Path(config.data_dir), library_folder(config), *sources)
    )


def _note_collected(audit: Audit, found: list[Garbage]) -> None:
    details: dict[str, str | int | bool] = {"count": len(found), "bytes": sum(one.size_bytes for one in found)}
    audit.add(Event(action="library.collect", actor=GATEWAY, details=details))


async def open_distant_shelf(config: Config, stack: AsyncExitStack) -> Shelf | None:
    """What the library is told of pulls by a process that answers nobody and has nothing else to keep."""
    if not config.auth.enabled:
        return None
    try:
        database = await open_database(config, serve=False)
        stack.push_async_callback(database.close)
        return await open_shelf(config, database)
    except (DatabaseError, OSError) as error:
        log.warning("the library will not know of pulls: %s", error)
        return None
