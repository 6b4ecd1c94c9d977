"""Pulls over HTTP, where the real server and a hub are not needed to see what comes of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from gateway.api.admin.pulls import PullRoutes
from gateway.app.supply import LazyPulls
from gateway.config import Config, LibraryConfig
from gateway.library.messages import answer_bytes, elsewhere
from gateway.state.database import Database
from tests.gateway.api.admin.desk import Desk, at_desk


@pytest.mark.parametrize("apart", [False, True], ids=["here", "in another process"])
def test_who_may_pull_what(tmp_path: Path, apart: bool) -> None:
    library = LibraryConfig(dir=str(tmp_path / "hub"), offline=True)

    async def script(desk: Desk, database: Database) -> None:
        pulls = LazyPulls(Config(data_dir=str(tmp_path), library=library))
        ask = elsewhere(partial(answer_bytes, pulls)) if apart else pulls.ask
        desk.serve(PullRoutes(ask, ("org/*",)).routes())

        async def post(who: str, **body: object) -> tuple[int, str]:
            answer = await desk.ask(who, "POST", "/pulls", body)
            return answer.status_code, answer.text

        assert (await post("org_owner", name="org/model"))[0] == 403
        assert (await post("admin", name="other/model"))[0] == 403
        assert (await post("admin", name="../etc"))[0] == (await post("admin"))[0] == 400
        status, told = await post("admin", name="org/model", wait=True)
        assert (status, "offline" in told, '"failed"' in told) == (201, True, True)
        assert (await desk.ask("admin", "GET", "/pulls/unknown")).status_code == 404
        failed = f"/pulls/{json.loads(told)['id']}"
        assert (await desk.ask("admin", "GET", failed)).json()["status"] == "failed"
        assert (await desk.ask("admin", "POST", f"{failed}/pause")).status_code == 409
        events = (await desk.ask("admin", "GET", f"{failed}/events")).text
        assert events.startswith("data: ") and "offline" in events
        assert [one["status"] for one in (await desk.ask("admin", "GET", "/pulls")).json()["data"]] == ["failed"]
        assert [event.action for event in desk.audit.events if event.outcome == "ok"] == ["library.pull"]
        await pulls.close()

    at_desk(tmp_path, script)


def test_without_a_hub_that_can_be_asked_nothing_is_pulled(tmp_path: Path) -> None:
    library = LibraryConfig(token_file=str(tmp_path / "missing"))

    async def script(desk: Desk, database: Database) -> None:
        desk.serve(PullRoutes(LazyPulls(Config(data_dir=str(tmp_path), library=library)).ask, ()).routes())
        refused = await desk.ask("admin", "POST", "/pulls", {"name": "org/model"})
        assert refused.status_code == 409 and "token_file cannot be read" in refused.text
        desk.serve(PullRoutes(None, ()).routes())
        assert (await desk.ask("admin", "GET", "/pulls")).json()["data"] == []
        assert (await desk.ask("admin", "POST", "/pulls", {"name": "org/model"})).status_code == 404

    at_desk(tmp_path, script)
