"""The pool as an administrator sees and changes it."""

from __future__ import annotations

from pathlib import Path

from adapters.llama_cpp import LlamaCpp
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.pool import Entry, Pool, PoolSettings
from adapters.llama_cpp.resident import Need, Residence
from gateway import config
from gateway.api.admin.pool import PoolRoutes
from gateway.state.database import Database
from tests.adapters.llama_cpp.test_process import argv
from tests.gateway.api.admin.desk import Desk, at_desk

MODELS = [{"name": "org/m", "path": "m.gguf", "aliases": ["n"], "lazy": True}]


class Elsewhere:
    state = "ready"
    progress = 1.0


async def look() -> Need:
    return Need(10 << 20)


def test_what_is_in_memory_and_what_an_operator_does(tmp_path: Path) -> None:
    loaded = config.load(None, {}, {"models": MODELS, "data_dir": str(tmp_path)})
    model = LlamaCpp("org/m", "m.gguf", EngineSettings(), argv=argv("plain"))
    entry = Entry(model=model, look=look, how=Residence(lazy=True, priority=3))

    async def script(desk: Desk, database: Database) -> None:
        pool = Pool([entry], PoolSettings(memory_bytes=30 << 20, chosen=True))
        model.door = pool.residents["org/m"]
        await pool.start()
        desk.serve(PoolRoutes(loaded, pool, lambda: {"org/m": model.status(), "route": Elsewhere()}).routes())

        async def do(verb: str, name: str = "org%2Fm") -> dict[str, object]:
            answer = await desk.ask("admin", "POST", f"/pool/{name}/{verb}")
            return dict(answer.json(), status=answer.status_code)

        shown = (await desk.ask("admin", "GET", "/pool")).json()
        asleep, elsewhere = shown["data"]
        assert (asleep["state"], asleep["memory_bytes"], asleep["priority"]) == ("sleeping", 10 << 20, 3)
        assert (elsewhere["state"], elsewhere["memory_bytes"]) == ("ready", None)
        assert (shown["memory_bytes"], shown["memory_bytes_max"]) == (0, 30 << 20)

        assert (await do("load", "n"))["state"] == "loading"
        await model.door.enter("t")
        shown = (await desk.ask("admin", "GET", "/pool")).json()
        ready = shown["data"][0]
        assert (ready["state"], ready["loads"], ready["eta_s"], shown["memory_bytes"]) == ("ready", 1, 0.0, 10 << 20)
        assert (await do("pin"))["pinned"] is True
        assert (await do("unpin"))["pinned"] is False
        assert (await do("unload"))["eta_s"] is None
        assert (await do("reset"))["status"] == 200
        await model.door.enter("t")
        assert (await do("sleep"))["status"] == 200
        assert (await do("wake"))["state"] == "loading"
        assert (await do("load", "unknown"))["status"] == (await do("load", "route"))["status"] == 404
        assert (await desk.ask("org_owner", "POST", "/pool/n/load")).status_code == 403
        assert (await desk.ask("org_owner", "GET", "/pool")).status_code == 403
        assert [(event.action, event.subject) for event in desk.audit.events][:2] == [
            ("pool.load", "org/m"),
            ("pool.pin", "org/m"),
        ]
        await pool.close()

    at_desk(tmp_path, script)


def test_without_a_pool_there_is_nothing_to_change(tmp_path: Path) -> None:
    async def script(desk: Desk, database: Database) -> None:
        desk.serve(PoolRoutes(config.Config(), None, lambda: {"route": Elsewhere()}).routes())
        shown = (await desk.ask("admin", "GET", "/pool")).json()
        assert ([one["id"] for one in shown["data"]], shown["memory_bytes_max"]) == (["route"], None)
        assert (await desk.ask("admin", "POST", "/pool/route/load")).status_code == 404

    at_desk(tmp_path, script)
