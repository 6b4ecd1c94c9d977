from __future__ import annotations

import re

import pytest

from adapters.types import Usage
from gateway.telemetry import METRICS, SERIES_MAX, Telemetry

LINE = re.compile(r'[a-z_]+(\{[a-z]+="(\\.|[^"\\\n])*"(,[a-z]+="(\\.|[^"\\\n])*")*\})? [0-9.e+-]+')


def render(telemetry: Telemetry) -> list[str]:
    return telemetry.render().decode().splitlines()


def test_counts_and_histograms_are_rendered() -> None:
    telemetry = Telemetry("1.2.3")
    telemetry.request("/v1/models", "GET", 200, 0.02)
    telemetry.request("/v1/models", "GET", 200, 400)
    telemetry.inference("m", "ok")
    telemetry.tokens("m", Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4))
    telemetry.first_token("m", 0.005)
    telemetry.gaps.observe(("m",), 0.0051)
    lines = render(telemetry)
    for expected in (
        'gateway_requests_total{route="/v1/models",method="GET",status="200"} 2',
        'gateway_request_duration_seconds_bucket{route="/v1/models",le="0.01"} 0',
        'gateway_request_duration_seconds_bucket{route="/v1/models",le="0.025"} 1',
        'gateway_request_duration_seconds_bucket{route="/v1/models",le="300.0"} 1',
        'gateway_request_duration_seconds_bucket{route="/v1/models",le="+Inf"} 2',
        'gateway_request_duration_seconds_sum{route="/v1/models"} 400.02',
        'gateway_request_duration_seconds_count{route="/v1/models"} 2',
        'gateway_inference_requests_total{model="m",outcome="ok"} 1',
        'gateway_prompt_tokens_total{model="m"} 10',
        'gateway_cached_tokens_total{model="m"} 4',
        'gateway_completion_tokens_total{model="m"} 5',
        'gateway_time_to_first_token_seconds_bucket{model="m",le="0.005"} 1',
        'gateway_inter_token_gap_seconds_bucket{model="m",le="0.005"} 0',
        'gateway_build_info{version="1.2.3"} 1',
    ):
        assert expected in lines


def test_every_metric_is_described_and_every_line_well_formed() -> None:
    telemetry = Telemetry("1")
    telemetry.inference('a"b\\c\nd', "ok")
    lines = render(telemetry)
    assert [line.split(" ")[2] for line in lines if line.startswith("# HELP")] == [metric.name for metric in METRICS]
    assert 'gateway_inference_requests_total{model="a\\"b\\\\c\\nd",outcome="ok"} 1' in lines
    assert all(LINE.fullmatch(line) for line in lines if not line.startswith("#"))


def test_label_sets_are_capped() -> None:
    telemetry = Telemetry("1")
    for i in range(SERIES_MAX * 3):
        telemetry.inference(f"model-{i}", "ok")
        telemetry.gaps.observe((f"model-{i}",), 0.1)
    lines = render(telemetry)
    assert len([line for line in lines if line.startswith("gateway_inference_requests_total{")]) == SERIES_MAX + 1
    assert f'gateway_inference_requests_total{{model="other",outcome="other"}} {SERIES_MAX * 2}' in lines
    assert f'gateway_inter_token_gap_seconds_count{{model="other"}} {SERIES_MAX * 2}' in lines


def test_what_is_above_the_cap_is_counted_together_however_often_it_comes() -> None:
    telemetry = Telemetry("0")
    for _ in range(2):
        for number in range(SERIES_MAX + 5):
            telemetry.tokens(f"m{number}", Usage(1, 2))
            telemetry.request("/r", f"M{number}", 200, 0.1)
    text = telemetry.render().decode()
    assert 'gateway_prompt_tokens_total{model="other"} 10' in text
    assert 'gateway_completion_tokens_total{model="m7"} 4' in text
    assert 'gateway_requests_total{route="other",method="other",status="other"} 10' in text


def test_gauges_are_read_at_the_scrape() -> None:
    telemetry = Telemetry("1")
    depth = 1.0
    telemetry.gauge_source(lambda: [("gateway_queue_depth", ("m",), depth)])
    assert 'gateway_queue_depth{model="m"} 1' in render(telemetry)
    depth = 7
    assert 'gateway_queue_depth{model="m"} 7' in render(telemetry)
    memory = next(line for line in render(telemetry) if line.startswith("gateway_process_resident_memory_bytes "))
    assert 1e6 < float(memory.split(" ")[1]) < 1e10


def test_an_unknown_metric_is_a_bug() -> None:
    telemetry = Telemetry("1")
    telemetry.gauge_source(lambda: [("gateway_typo", (), 1)])
    with pytest.raises(AssertionError, match="gateway_typo"):
        telemetry.render()
