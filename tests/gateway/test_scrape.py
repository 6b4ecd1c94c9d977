from __future__ import annotations

from gateway.scrape import together
from gateway.telemetry import Telemetry


def test_samples_stand_together_by_their_names_and_apart_by_their_process() -> None:
    one = b'# HELP a About a.\n# TYPE a counter\na{m="x{y"} 1\n# HELP b About b.\n# TYPE b gauge\nb 2\n'
    two = b'# HELP a About a.\n# TYPE a counter\na{m="z"} 3\n# HELP b About b.\n# TYPE b gauge\n'
    assert together({1: two, 0: one}).decode().splitlines() == [
        "# HELP a About a.",
        "# TYPE a counter",
        'a{worker="0",m="x{y"} 1',
        'a{worker="1",m="z"} 3',
        "# HELP b About b.",
        "# TYPE b gauge",
        'b{worker="0"} 2',
    ]


def test_every_metric_goes_through() -> None:
    telemetry = Telemetry("1")
    telemetry.inference("m", "ok")
    telemetry.first_token("m", 0.1)
    alone = telemetry.scrape().decode()
    telemetry.apart = 0, lambda: {1: telemetry.render()}
    both = telemetry.scrape().decode()
    samples = [line for line in alone.splitlines() if not line.startswith("#")]
    comments = [line for line in alone.splitlines() if line.startswith("#")]
    lines = both.splitlines()
    assert len(lines) == len(comments) + 2 * len(samples)
    assert len(set(lines)) == len(lines)
    assert 'gateway_inference_requests_total{worker="1",model="m",outcome="ok"} 1' in lines
