"""What the gateway counts, as plain Python objects that become Prometheus text when they are scraped.

`METRICS` is the complete list; a name outside of it cannot be counted. Observing costs under a microsecond. Each metric
keeps at most `SERIES_MAX` label sets; further ones are counted together with every label saying `other`.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from adapters.types import Usage
from gateway.scrape import together

SERIES_MAX = 200
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GUARDRAIL_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)

Labels = tuple[str, ...]
Gauge = tuple[str, Labels, float]
GaugeSource = Callable[[], Iterable[Gauge]]


class Metric(msgspec.Struct, frozen=True):
    """A metric as it is documented; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[Metric, ...] = (
    Metric("gateway_requests_total", "counter", "HTTP requests answered.", ("route", "method", "status")),
    Metric(
        "gateway_request_duration_seconds",
        "histogram",
        "Time from a request's arrival to the last byte of its answer.",
        ("route",),
        SECONDS_BUCKETS,
    ),
    Metric(
        "gateway_inference_requests_total",
        "counter",
        "Inference requests by how they ended: ok, cancelled, or the code of the error.",
        ("model", "outcome"),
    ),
    Metric("gateway_prompt_tokens_total", "counter", "Prompt tokens, cached ones included.", ("model",)),
    Metric("gateway_cached_tokens_total", "counter", "Prompt tokens that were not computed again.", ("model",)),
    Metric("gateway_completion_tokens_total", "counter", "Generated tokens.", ("model",)),
    Metric(
        "gateway_refused_total",
        "counter",
        "Inference requests over a limit, by its kind: requests, tokens, concurrency, budget.",
        ("kind",),
    ),
    Metric(
        "gateway_cache_requests_total",
        "counter",
        "Inference requests by what the response cache did: hit, miss, bypass.",
        ("model", "outcome"),
    ),
    Metric("gateway_cache_bytes", "gauge", "What the response cache keeps, as far as this process knows."),
    Metric("gateway_cache_evictions_total", "counter", "Answers that made room for others in the response cache."),
    Metric(
        "gateway_cache_failures_total",
        "counter",
        "Answers that the response cache could not look up, read or keep, because its Redis was away.",
    ),
    Metric("gateway_cost_nano_usd_total", "counter", "What inference cost, in billionths of a US dollar.", ("model",)),
    Metric("gateway_alerts_total", "counter", "Budgets that reached a threshold, by percentage.", ("percent",)),
    Metric(
        "gateway_alert_deliveries_total", "counter", "Attempts to tell an alert: sent, failed.", ("channel", "outcome")
    ),
    Metric("gateway_ledger_pending", "gauge", "Entries of the ledger that are not durable yet."),
    Metric("gateway_ledger_entries_total", "counter", "Entries of the ledger written since the start."),
    Metric("gateway_audit_pending", "gauge", "Entries of the audit log that are not durable yet."),
    Metric("gateway_audit_entries_total", "counter", "Entries of the audit log written since the start."),
    Metric("gateway_audit_lost_total", "counter", "Entries of the audit log lost while the database was away."),
    Metric("gateway_shared_state_degraded", "gauge", "1 while Redis is away and this process keeps limits alone."),
    Metric("gateway_issuer_keys_age_seconds", "gauge", "Time since an issuer's keys were fetched.", ("issuer",)),
    Metric(
        "gateway_issuer_fetches_total",
        "counter",
        "How often an issuer was asked for its keys since the start: ok, failed.",
        ("issuer", "outcome"),
    ),
    Metric(
        "gateway_target_breaker", "gauge", "1 while a target of routes rests, 0.5 while it is tried again.", ("target",)
    ),
    Metric("gateway_target_running", "gauge", "Requests that a target of routes works on.", ("target",)),
    Metric("gateway_target_requests_total", "counter", "Tries at a target of routes since the start.", ("target",)),
    Metric("gateway_target_failures_total", "counter", "Those of them that were its failures.", ("target",)),
    Metric(
        "gateway_target_first_output_seconds",
        "gauge",
        "Moving average of the time a target of routes takes to begin its answer.",
        ("target",),
    ),
    Metric(
        "gateway_hedges_total",
        "counter",
        "Second targets of a route since the start by what became of them: won, lost, refused (over the cap).",
        ("model", "outcome"),
    ),
    Metric(
        "gateway_hedge_cost_nano_usd_total",
        "counter",
        "What calls may have cost that were given up since the start, in billionths of a US dollar.",
        ("model",),
    ),
    Metric(
        "gateway_mirrored_requests_total",
        "counter",
        "Copies of requests for the shadow of a route: ok, failed, dropped.",
        ("model", "outcome"),
    ),
    Metric(
        "gateway_mirror_first_output_seconds",
        "histogram",
        "Time to the first output of requests of which there was a copy, and of these copies: real, shadow.",
        ("model", "side"),
        SECONDS_BUCKETS,
    ),
    Metric("gateway_target_healthy", "gauge", "0 while the health check of a target of routes fails.", ("target",)),
    Metric(
        "gateway_target_checks_total",
        "counter",
        "Health checks of a target of routes since the start: ok, failed.",
        ("target", "outcome"),
    ),
    Metric("gateway_outbox_bytes", "gauge", "What waits on the local disk for the database to come back."),
    Metric("gateway_ledger_refused", "gauge", "Entries that the database refuses, which lie beside the outbox."),
    Metric("gateway_reservations", "gauge", "Running requests that hold a part of a limit."),
    Metric(
        "gateway_time_to_first_token_seconds",
        "histogram",
        "Time from the start of an inference request to its first output.",
        ("model",),
        SECONDS_BUCKETS,
    ),
    Metric(
        "gateway_inter_token_gap_seconds",
        "histogram",
        "Time between two outputs of one stream.",
        ("model",),
        GAP_BUCKETS,
    ),
    Metric(
        "gateway_guardrail_checks_total",
        "counter",
        "Requests and answers that a guardrail looked at: passed, blocked, masked, logged, failed.",
        ("guardrail", "stage", "outcome"),
    ),
    Metric(
        "gateway_guardrail_seconds",
        "histogram",
        "Time a guardrail took for one request or answer.",
        ("guardrail",),
        GUARDRAIL_BUCKETS,
    ),
    Metric("gateway_queue_depth", "gauge", "Requests waiting for a place in the engine.", ("model",)),
    Metric("gateway_running_requests", "gauge", "Requests the engine is computing.", ("model",)),
    Metric("gateway_model_state", "gauge", "1 for the state the model is in, 0 for the others.", ("model", "state")),
    Metric("gateway_model_memory_bytes", "gauge", "Memory that a local model takes; 0 while it sleeps.", ("model",)),
    Metric("gateway_model_waiting", "gauge", "Requests that wait for the model to be loaded.", ("model",)),
    Metric("gateway_model_loads_total", "counter", "How often the model was loaded.", ("model",)),
    Metric("gateway_pool_memory_bytes", "gauge", "Memory that all local models take."),
    Metric("gateway_pool_memory_max_bytes", "gauge", "Memory that all local models may take."),
    Metric("gateway_engine_restarts", "gauge", "How often the model's worker was started again.", ("model",)),
    Metric("gateway_kv_cells_used", "gauge", "Cells of the KV cache in use.", ("model",)),
    Metric("gateway_kv_cells_max", "gauge", "Cells the KV cache has.", ("model",)),
    Metric("gateway_sessions", "gauge", "Conversations that are kept for their next turn.", ("model",)),
    Metric(
        "gateway_session_bytes", "gauge", "What kept conversations occupy outside of the KV cache.", ("model", "tier")
    ),
    Metric(
        "gateway_session_lookups_total",
        "counter",
        "Requests by where the conversation that they continue was found: cells, ram, disk or none.",
        ("model", "tier"),
    ),
    Metric(
        "gateway_session_events_total",
        "counter",
        "What happened to kept conversations: spilled to memory, restored from it or from disk, written to disk, "
        "write_failed, corrupt or mismatched on disk (then computed again), expired, evicted to make room.",
        ("model", "event"),
    ),
    Metric(
        "gateway_grammars_total",
        "counter",
        "Grammars of schemas, tools and other constraints by what became of them: compiled, reused or refused.",
        ("model", "outcome"),
    ),
    Metric("gateway_grammar_compile_seconds_total", "counter", "Time spent on compiling grammars.", ("model",)),
    Metric(
        "gateway_guesses_total",
        "counter",
        "Guesses at tokens that spare rows computed since the worker started: right, which saved a step, or wrong.",
        ("model", "outcome"),
    ),
    Metric(
        "gateway_images_encoded_total", "counter", "Images turned into embeddings since the worker started.", ("model",)
    ),
    Metric(
        "gateway_images_reused_total",
        "counter",
        "Images whose embeddings were there already since the worker started.",
        ("model",),
    ),
    Metric("gateway_image_cache_bytes", "gauge", "What the embeddings of the latest images occupy.", ("model",)),
    Metric("gateway_connections", "gauge", "Open client connections."),
    Metric("gateway_process_resident_memory_bytes", "gauge", "Resident memory of the gateway process."),
    Metric("gateway_process_cpu_seconds_total", "counter", "CPU time of the gateway process."),
    Metric("gateway_process_start_time_seconds", "gauge", "When the gateway process started, as a Unix time."),
    Metric("gateway_build_info", "gauge", "1, with the version as its label.", ("version",)),
)


class Sum:
    """What was counted for one label set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Counter:
    """Sums by label set."""

    def __init__(self) -> None:
        self.sums: dict[Labels, Sum] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        try:
            self.sums[labels].value += amount
        except KeyError:
            self.sum(labels).value += amount

    def sum(self, labels: Labels) -> Sum:
        """Where a label set is counted, for whoever counts it often."""
        if labels not in self.sums:
            labels = _admit(self.sums, labels)
        return self.sums.setdefault(labels, Sum())


class Histogram:
    """Counts by label set and bucket. A row is one count per bucket, one for what is above, then the sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.rows: dict[Labels, list[float]] = {}

    def observe(self, labels: Labels, value: float) -> None:
        row = self.rows.get(labels)
        if row is None:
            row = self.row(labels)
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value

    def row(self, labels: Labels) -> list[float]:
        """Where a label set is counted, for whoever counts it often."""
        if labels not in self.rows:
            labels = _admit(self.rows, labels)
        return self.rows.setdefault(labels, [0] * (len(self.bounds) + 2))


def _admit(known: Mapping[Labels, object], labels: Labels) -> Labels:
    return labels if len(known) < SERIES_MAX else ("other",) * len(labels)


class Telemetry:
    """Everything observed since the start."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._started_at = time.time()
        self._counters = {m.name: Counter() for m in METRICS if m.kind == "counter"}
        self._histograms = {m.name: Histogram(m.buckets) for m in METRICS if m.kind == "histogram"}
        self._sources: list[GaugeSource] = [self._process]
        # The number of this process among those of one port, and what the others count.
        self.apart: tuple[int, Callable[[], Mapping[int, bytes]]] | None = None
        self._requests = self._counters["gateway_requests_total"]
        self._durations = self._histograms["gateway_request_duration_seconds"]
        self._inferences = self._counters["gateway_inference_requests_total"]
        self._prompt_tokens = self._counters["gateway_prompt_tokens_total"]
        self._cached_tokens = self._counters["gateway_cached_tokens_total"]
        self._completion_tokens = self._counters["gateway_completion_tokens_total"]
        self._refused = self._counters["gateway_refused_total"]
        self._cost = self._counters["gateway_cost_nano_usd_total"]
        self._cached_answers = self._counters["gateway_cache_requests_total"]
        self._alerts = self._counters["gateway_alerts_total"]
        self._alerts_told = self._counters["gateway_alert_deliveries_total"]
        self._first_tokens = self._histograms["gateway_time_to_first_token_seconds"]
        self._mirrored = self._counters["gateway_mirrored_requests_total"]
        self._mirror_took = self._histograms["gateway_mirror_first_output_seconds"]
        # The times between two outputs of a stream, by model: public, as every token is observed.
        self.gaps = self._histograms["gateway_inter_token_gap_seconds"]
        self._guardrails = self._counters["gateway_guardrail_checks_total"]
        self._guardrail_seconds = self._histograms["gateway_guardrail_seconds"]
        # Where the busiest things are counted: answers by route, method and status, and tokens by model.
        self._answered: dict[tuple[str, str, int], tuple[Sum, list[float]]] = {}
        self._used: dict[str, tuple[Sum, Sum, Sum]] = {}

    def request(self, route: str, method: str, status: int, duration_s: float) -> None:
        """An HTTP request was answered; `route` is the path of its endpoint, never the path the client sent."""
        try:
            answered, row = self._answered[route, method, status]
        except KeyError:
            answered, row = self._requests.sum((route, method, str(status))), self._durations.row((route,))
            if len(self._answered) < SERIES_MAX:
                self._answered[route, method, status] = answered, row
        answered.value += 1
        row[bisect_left(SECONDS_BUCKETS, duration_s)] += 1
        row[-1] += duration_s

    def inference(self, model: str, outcome: str) -> None:
        """An inference request ended: `ok`, `cancelled`, or the code of its error."""
        self._inferences.add((model, outcome))

    def tokens(self, model: str, usage: Usage) -> None:
        """What an inference request used."""
        try:
            prompt, cached, completion = self._used[model]
        except KeyError:
            counters = self._prompt_tokens, self._cached_tokens, self._completion_tokens
            prompt, cached, completion = (counter.sum((model,)) for counter in counters)
            if len(self._used) < SERIES_MAX:
                self._used[model] = prompt, cached, completion
        prompt.value += usage.prompt_tokens
        cached.value += usage.cached_tokens
        completion.value += usage.completion_tokens

    def refused(self, kind: str) -> None:
        """A limit kept an inference request out."""
        self._refused.add((kind,))

    def cache(self, model: str, outcome: str) -> None:
        """What the response cache did with an inference request."""
        self._cached_answers.add((model, outcome))

    def charged(self, model: str, cost_nano: int) -> None:
        """What an inference request cost."""
        self._cost.add((model,), cost_nano)

    def alert(self, percent: int) -> None:
        """A budget has reached a threshold."""
        self._alerts.add((str(percent),))

    def alert_told(self, channel: str, outcome: str) -> None:
        """A channel was tried with an alert."""
        self._alerts_told.add((channel, outcome))

    def guardrail(self, guardrail: str, stage: str, outcome: str) -> None:
        """A guardrail looked at a request or an answer."""
        self._guardrails.add((guardrail, stage, outcome))

    def guardrail_seconds(self, guardrail: str, seconds: float) -> None:
        """How long that took."""
        self._guardrail_seconds.observe((guardrail,), seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """A stream's first output came `seconds` after its request."""
        self._first_tokens.observe((model,), seconds)

    def mirrored(self, model: str, outcome: str) -> None:
        """A copy of a request ended: `ok`, `failed` or `dropped`."""
        self._mirrored.add((model, outcome))

    def mirror_took(self, model: str, side: str, seconds: float) -> None:
        """How long a request of which there is a copy (`real`), or the copy (`shadow`), took to its first output."""
        self._mirror_took.observe((model, side), seconds)

    def gauge_source(self, source: GaugeSource) -> None:
        """Ask `source` for (metric, label values, value) at every scrape."""
        self._sources.append(source)

    def scrape(self) -> bytes:
        """What this process counted, and beside it what others did that serve the same port."""
        if self.apart is None:
            return self.render()
        number, others = self.apart
        return together({**others(), number: self.render()})

    def render(self) -> bytes:
        """Everything in the Prometheus text format 0.0.4."""
        gauges = self._read_gauges()
        lines: list[str] = []
        for metric in METRICS:
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            if metric.kind == "histogram":
                lines.extend(_histogram_lines(metric, self._histograms[metric.name]))
                continue
            values = gauges[metric.name] if metric.name in gauges else self._counters_of(metric)
            lines.extend(f"{metric.name}{_label_text(metric.labels, at)} {value:.15g}" for at, value in values.items())
        return ("\n".join(lines) + "\n").encode()

    def _counters_of(self, metric: Metric) -> dict[Labels, float]:
        counter = self._counters.get(metric.name)
        return {} if counter is None else {labels: sum.value for labels, sum in counter.sums.items()}

    def _read_gauges(self) -> dict[str, dict[Labels, float]]:
        known = {metric.name for metric in METRICS}
        gauges: dict[str, dict[Labels, float]] = {}
        for source in self._sources:
            for name, labels, value in source():
                assert name in known, name
                values = gauges.setdefault(name, {})
                if labels in values or len(values) < SERIES_MAX:
                    values[labels] = value
        return gauges

    def _process(self) -> Iterator[Gauge]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield "gateway_process_resident_memory_bytes", (), resident_bytes(usage)
        yield "gateway_process_cpu_seconds_total", (), usage.ru_utime + usage.ru_stime
        yield "gateway_process_start_time_seconds", (), self._started_at
        yield "gateway_build_info", (self._version,), 1


def resident_bytes(usage: resource.struct_rusage) -> int:
    """Resident memory now where the kernel tells it (Linux), else its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return usage.ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")


def _histogram_lines(metric: Metric, histogram: Histogram) -> Iterator[str]:
    for labels, row in histogram.rows.items():
        cumulative = 0.0
        for bound, count in zip((*histogram.bounds, "+Inf"), row[:-1], strict=True):
            cumulative += count
            text = _label_text((*metric.labels, "le"), (*labels, str(bound)))
            yield f"{metric.name}_bucket{text} {cumulative:.15g}"
        text = _label_text(metric.labels, labels)
        yield f"{metric.name}_sum{text} {row[-1]:.15g}"
        yield f"{metric.name}_count{text} {cumulative:.15g}"


def _label_text(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True)) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
