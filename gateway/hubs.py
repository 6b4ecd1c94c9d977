"""How the configured hub is reached, and the folder that is pulled to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from gateway.config import Config
from gateway.secret import Secret

if TYPE_CHECKING:
    from gateway.library.files import Files
    from gateway.library.garbage import Collector
    from gateway.library.hub import HubSettings
    from gateway.library.pulls import Pulls
    from gateway.library.shelf import Shelf
    from gateway.library.store import LockFile
    from gateway.state.database import Database


def hub_settings(config: Config) -> HubSettings:
    """The hub and what authorises us there; raises Unusable when the file of the token cannot be read."""
    # Asking hubs takes libraries that not everybody who starts a gateway needs.
    from gateway.library.errors import Unusable
    from gateway.library.hub import HOSTS, HubSettings

    library, token = config.library, config.library.token
    if library.token_file is not None:
        try:
            token = Secret(Path(library.token_file).read_text(encoding="ascii").strip())
        except (OSError, UnicodeDecodeError):
            raise Unusable(f"library.token_file cannot be read: {library.token_file}") from None
    return HubSettings(endpoint=library.endpoint, hosts=(*HOSTS, *library.hosts), token=token, offline=library.offline)


def open_pulls(config: Config, shelf: Shelf | None = None, room_bytes: Callable[[], int] | None = None) -> Pulls:
    """The pulls of a configuration, which close the hub with them. `shelf` hears of them; `room_bytes` is how large a
    model may be where its name leaves that open. Raises Unusable."""
    from gateway.library import machine
    from gateway.library.hub import Hub
    from gateway.library.pulls import Pulls
    from gateway.library.store import Store

    return Pulls(
        Hub(hub_settings(config)),
        Store(cache_folder(config)),
        _pins(config),
        shelf=shelf,
        room_bytes=room_bytes or machine.room_bytes,
    )


def shelf_of(config: Config, files: Files) -> Callable[[str], Shelf]:
    """What is known of the files of the hub, for each place of a library."""
    from gateway.library.shelf import Shelf
    from gateway.library.store import Store

    names = [model.pull for model in config.models if model.pull is not None]
    return lambda place: Shelf(files, Store(cache_folder(config)), _pins(config), place, names)


async def open_shelf(config: Config, database: Database) -> Shelf:
    """What is known of the files of the hub, for a process that has no library but pulls. Raises OSError."""
    from gateway.library.files import Files
    from gateway.library.importing import place_of

    files = Files(database)
    await files.open()
    return shelf_of(config, files)(await asyncio.to_thread(place_of, library_folder(config)))


def collector_of(config: Config, files: Files) -> Collector:
    """What removes files that nobody needs. Which models there are is known where any is configured, and a folder of
    sessions that was chosen may be that of others too."""
    from gateway.library.garbage import Collector, Grounds
    from gateway.library.store import Store

    local = [model.name for model in config.models if model.local]
    grounds = Grounds(
        store=Store(cache_folder(config)),
        pins=_pins(config),
        library=library_folder(config),
        sessions=Path(config.data_dir) / "sessions" if local and config.sessions.dir is None else None,
        models=frozenset(quote(name, safe="") for name in local),
        quarantine_s=config.library.quarantine_days * 86_400.0,
    )
    return Collector(files, grounds)


def _pins(config: Config) -> LockFile:
    from gateway.library.store import LockFile

    return LockFile(Path(config.data_dir) / "models.lock")


def library_folder(config: Config) -> Path:
    """Where files lie that belong to the library."""
    return Path(config.library.files_dir or Path(config.data_dir) / "library")


def referred(config: Config) -> list[Path]:
    """The files that the configuration names."""
    paths = [path for model in config.models for path in (model.file, model.engine.mmproj)]
    paths += [lora.path for model in config.models for lora in model.engine.loras]
    return [Path(path) for path in paths if path]


def cache_folder(config: Config) -> Path:
    """Where files of hubs lie: as configured, else where the hub's own tools look."""
    if config.library.dir is not None:
        return Path(config.library.dir)
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    return Path(os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub"))
