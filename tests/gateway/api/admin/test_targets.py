"""What an administrator sees of the targets of routes."""

from __future__ import annotations

from pathlib import Path

from gateway.api.admin.targets import TargetRoutes
from gateway.config_routing import HealthConfig
from gateway.routing.breaker import Breaker
from gateway.routing.health import Condition
from gateway.routing.standing import Standing
from gateway.state.database import Database
from tests.gateway.api.admin.desk import Desk, at_desk


def test_how_targets_do(tmp_path: Path) -> None:
    tired, ill = Standing(Breaker()), Standing(Breaker(), Condition(HealthConfig(unhealthy_after=1, interval_s=9)))
    tired.breaker.failed(100, retry_after_s=30)
    tired.learn(0.25)
    assert ill.condition is not None
    ill.condition.note("its health check was answered with 503")

    async def script(desk: Desk, database: Database) -> None:
        desk.serve(TargetRoutes(lambda: {"p/tired": tired, "p/ill": ill}, lambda: 110).routes())
        assert (await desk.ask("nobody", "GET", "/targets")).status_code in (401, 403)
        first, second = (await desk.ask("admin", "GET", "/targets")).json()["data"]
        assert (first["id"], first["breaker"], first["wait_s"]) == ("p/ill", "closed", 9)
        reason = "its health check was answered with 503"
        assert first["health"] == {"healthy": False, "reason": reason, "checks": 1, "failures": 1}
        assert (second["id"], second["breaker"], second["wait_s"]) == ("p/tired", "open", 20)
        assert (second["first_output_s"], second["health"]) == (0.25, None)

        page = (await desk.ask("admin", "GET", "/targets?limit=1")).json()
        assert ([one["id"] for one in page["data"]], page["next_cursor"]) == (["p/ill"], "p/ill")
        page = (await desk.ask("admin", "GET", "/targets?limit=1&after=p/ill")).json()
        assert ([one["id"] for one in page["data"]], page["next_cursor"]) == (["p/tired"], None)

    at_desk(tmp_path, script)
