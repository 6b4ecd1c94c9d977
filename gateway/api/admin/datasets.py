"""Datasets: files of requests, as batches take them, with what they would cost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from gateway import errors
from gateway.api.admin.forecasts import Forecast, ForecastAsked, Forecasts, sampled
from gateway.api.admin.library import Text, told
from gateway.api.admin.routes import Call, Moment, Page, Paging, Route, kept, shown
from gateway.library.datasets import MADE, Datasets
from gateway.library.files import File, Status, Wanted
from gateway.library.requests import Dataset

ALL = "/admin/v1/datasets"
ONE = "/admin/v1/datasets/{id}"


class DatasetQuery(Paging, kw_only=True, frozen=True):
    """`q` are words, each the beginning of one in a dataset's name or source."""

    q: Text | None = None
    status: Status | None = None


class DatasetShown(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset. `status` is verifying while it is made, then ready or error. `requests` says how many requests were
    made of its rows and which rows are none; `source` is what they are of, `path` the file of them."""

    object: str = "dataset"
    id: str
    name: str
    status: Status
    reason: str | None
    source: str
    path: str | None
    size_bytes: int
    sha256: str | None
    requests: Dataset | None
    created_at: Moment


class DatasetRoutes:
    """`/admin/v1/datasets`. They are made by pulls."""

    def __init__(self, datasets: Datasets | None, forecasts: Forecasts) -> None:
        self._maybe = datasets
        self._forecasts = forecasts

    @property
    def _datasets(self) -> Datasets:
        return kept(self._maybe)

    def routes(self) -> tuple[Route, ...]:
        read, write = "library.read", "library.write"
        return (
            Route(
                "GET", ALL, read, self.list, "Datasets, the newest first", query=DatasetQuery, answer=list[DatasetShown]
            ),
            Route("GET", ONE, read, self.get, "One dataset", answer=DatasetShown),
            Route("DELETE", ONE, write, self.delete, "Delete a dataset", action="dataset.delete"),
            Route(
                "GET",
                ONE + "/forecast",
                read,
                self.forecast,
                "How many tokens a dataset's requests have, and what they may cost",
                query=ForecastAsked,
                answer=Forecast,
                description="A local model counts the tokens; for any other they are estimated. Nothing is answered.",
            ),
        )

    async def list(self, call: Call[DatasetQuery, None]) -> Page[DatasetShown]:
        asked = call.query
        wanted = Wanted(text=asked.q, status=asked.status, kind="dataset", how=MADE)
        files, more = await self._datasets.imports.files.page(wanted, asked.limit, asked.after)
        return Page([_shown(file) for file in files], files[-1].id if more else None)

    async def _found(self, call: Call[Any, Any]) -> File:
        with told():
            return await self._datasets.get(call.path["id"])

    async def get(self, call: Call[None, None]) -> DatasetShown:
        return _shown(await self._found(call))

    async def delete(self, call: Call[None, None]) -> None:
        file = await self._found(call)
        with told():
            await self._datasets.imports.delete(file.id)
        call.note(file.id, name=file.name)

    async def forecast(self, call: Call[ForecastAsked, None]) -> Forecast:
        file = await self._found(call)
        if file.dataset is None or file.status != "ready":
            raise errors.error("conflict", f"The dataset is {file.status}.")
        try:
            lines = await asyncio.to_thread(sampled, Path(file.path), file.dataset.rows)
        except OSError:
            raise errors.error("conflict", "The file of the dataset is gone.") from None
        return await self._forecasts.of(call.principal, file.id, lines, file.dataset.rows, call.query)


def _shown(file: File) -> DatasetShown:
    return shown(DatasetShown, file, reason=file.reason or None, path=file.path or None, requests=file.dataset)
