"""What `gateway serve` tells the person who started it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from gateway.config import Config

POLL_S = 0.1


class ModelStatus(Protocol):
    """The part of a model's status that is shown."""

    @property
    def state(self) -> str: ...

    @property
    def progress(self) -> float: ...

    @property
    def reason(self) -> str | None: ...


class Banner:
    """Prints to `out`. `admin_key` is the text of a key that was made just now and will not be shown again."""

    def __init__(self, config: Config, version: str, admin_key: str | None, out: TextIO) -> None:
        self._config = config
        self._version = version
        self._admin_key = admin_key
        self._out = out

    def show(self) -> None:
        """Where the gateway listens, the new admin key if there is one, and a request that works when pasted."""
        self._print(f"inference-gateway {self._version} listens on {url(self._config)}")
        if self._admin_key is not None:
            self._print(f"\nAdmin key (shown only now): {self._admin_key}")
        self._print(f"\nTry it:\n{curl(self._config, self._admin_key)}\n")

    async def show_loading(self, statuses: Callable[[], Mapping[str, ModelStatus]]) -> None:
        """Follow every model until it is ready or has failed; percentages only where they can be overwritten."""
        waiting = set(statuses())
        while waiting:
            await asyncio.sleep(POLL_S)
            for name, status in statuses().items():
                if name not in waiting:
                    continue
                if status.state in ("ready", "failed", "sleeping"):
                    waiting.discard(name)
                    reason = f": {status.reason}" if status.reason and status.state == "failed" else ""
                    self._print(f"{self._clear()}Model {name} {status.state}{reason}")
                elif status.state == "loading" and self._out.isatty():
                    # What follows the file takes a while as well: how fast the engine is here.
                    doing = f"loading {status.progress:4.0%}" if status.progress < 1 else "loaded, being measured"
                    self._out.write(f"{self._clear()}Model {name} {doing}")
                    self._out.flush()

    def _clear(self) -> str:
        return "\r\x1b[K" if self._out.isatty() else ""

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def url(config: Config) -> str:
    """The address a client on this machine uses."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.server.host, config.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.server.port}"


def curl(config: Config, key: str | None) -> str:
    """A first request for a shell; without a known key it takes the one in `GATEWAY_API_KEY`."""
    names = [*(model.name for model in config.models), *(route.name for route in config.routes), "MODEL"]
    lines = [
        f"  curl {url(config)}/v1/chat/completions",
        '    -H "Content-Type: application/json"',
        f"""    -d '{{"model":"{names[0]}","messages":[{{"role":"user","content":"Hello!"}}]}}'""",
    ]
    if config.auth.enabled:
        lines.insert(1, f'    -H "Authorization: Bearer {key or "$GATEWAY_API_KEY"}"')
    return " \\\n".join(lines)
