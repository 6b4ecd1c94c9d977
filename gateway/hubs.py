"""How the configured hub is reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config import Config
from gateway.secret import Secret

if TYPE_CHECKING:
    from gateway.library.hub import HubSettings


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
