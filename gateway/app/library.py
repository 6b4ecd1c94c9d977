"""Opens the library of files."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from pathlib import Path

from gateway.config import Config
from gateway.library.files import Files
from gateway.library.importing import Imports
from gateway.state.database import Database

log = logging.getLogger("gateway.library")


async def open_library(config: Config, database: Database | None, stack: AsyncExitStack) -> Imports | None:
    """What imports files, where there is a database to keep what is known of them."""
    if database is None:
        return None
    sources = [Path(folder) for folder in config.library.import_dirs]
    imports = Imports(Files(database), library_folder(config), sources=sources, referred=referred(config))
    await imports.open()
    stack.push_async_callback(imports.close)
    return imports


def library_folder(config: Config) -> Path:
    """Where imported files lie."""
    return Path(config.library.files_dir or Path(config.data_dir) / "library")


def referred(config: Config) -> list[Path]:
    """The files that the configuration names."""
    paths = [path for model in config.models for path in (model.file, model.engine.mmproj)]
    paths += [lora.path for model in config.models for lora in model.engine.loras]
    return [Path(path) for path in paths if path]
