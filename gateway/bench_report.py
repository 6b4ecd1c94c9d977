"""What `gateway bench` says of a load: numbers of one run, ratios of two endpoints' runs, and both as text.

Times are in seconds; the text has milliseconds.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Times are readings of `time.perf_counter`; counts are the endpoint's own, where it gave any.

    The status is `ok`, an HTTP status, `timeout`, `stream error`, `invalid stream`, `cut` when the end of the answer
    was missing, or the name of a transport error; the code is what the endpoint called its error.
    """

    status: str
    code: str | None = None
    started_s: float
    ended_s: float
    text_s: tuple[float, ...] = ()  # when each piece with text arrived
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the answer was complete."""
        return self.status == "ok"

    @property
    def failure(self) -> str:
        """What a failed request is counted by."""
        return f"{self.status} {self.code}" if self.code else self.status

    @property
    def tokens(self) -> int:
        """Output tokens by the endpoint's usage, else the number of pieces."""
        return len(self.text_s) if self.output_tokens is None else self.output_tokens

    @property
    def first_token_s(self) -> float | None:
        """Time from the start of the request to its first text."""
        return self.text_s[0] - self.started_s if self.text_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Times between pieces of text."""
        return [later - earlier for earlier, later in itertools.pairwise(self.text_s)]

    @property
    def total_s(self) -> float:
        """Time from the start of the request to the end of the answer."""
        return self.ended_s - self.started_s


class Distribution(msgspec.Struct, frozen=True):
    """A summary of a set of times in seconds."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one run; distributions are of complete answers and None when there was none."""

    url: str
    model: str
    requests: int
    succeeded: int
    errors: dict[str, int]  # failed requests by status and, where the endpoint gave one, code
    wall_s: float  # from the first start to the last end
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_reported: bool  # whether every answer came with the endpoint's own count, instead of counting pieces
    requests_per_s: float
    output_tokens_per_s: float
    first_token: Distribution | None
    gap: Distribution | None
    total: Distribution | None


class Ratio(msgspec.Struct, frozen=True):
    """One metric of a comparison: medians of each side, and of the ratios first/second with their range."""

    metric: str
    first: float
    second: float
    ratio: float
    lowest: float
    highest: float


class BenchComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Reports of alternating runs of two endpoints, and the ratio of every metric that both have."""

    first: tuple[BenchReport, ...]
    second: tuple[BenchReport, ...]
    ratios: tuple[Ratio, ...]


def summarise(url: str, model: str, outcomes: Sequence[Outcome]) -> BenchReport:
    """The report of a set of requests that belong together."""
    complete = [outcome for outcome in outcomes if outcome.ok]
    started = min((outcome.started_s for outcome in outcomes), default=0.0)
    wall = max((outcome.ended_s for outcome in outcomes), default=0.0) - started
    output = sum(outcome.tokens for outcome in complete)
    return BenchReport(
        url=url,
        model=model,
        requests=len(outcomes),
        succeeded=len(complete),
        errors=dict(Counter(outcome.failure for outcome in outcomes if not outcome.ok)),
        wall_s=wall,
        input_tokens=sum(outcome.input_tokens or 0 for outcome in complete),
        cached_tokens=sum(outcome.cached_tokens or 0 for outcome in complete),
        output_tokens=output,
        tokens_reported=all(outcome.output_tokens is not None for outcome in complete),
        requests_per_s=len(complete) / wall if wall else 0.0,
        output_tokens_per_s=output / wall if wall else 0.0,
        first_token=distribution(outcome.first_token_s for outcome in complete),
        gap=distribution(gap for outcome in complete for gap in outcome.gaps_s),
        total=distribution(outcome.total_s for outcome in complete),
    )


def distribution(values: Iterable[float | None]) -> Distribution | None:
    """The summary of the values that are not None; None for none."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Distribution(len(ordered), statistics.fmean(ordered), p50, p95, p99, ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of ascending values, linear between neighbours."""
    position = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
    return below + (above - below) * (position % 1)


def metrics(report: BenchReport) -> dict[str, float]:
    """The numbers of a report by name with unit, in the order they are shown in."""
    numbers = {"requests/s": report.requests_per_s, "output tokens/s": report.output_tokens_per_s}
    for name, times_ms in _times_ms(report).items():
        numbers |= {f"{name} {field} ms": time_ms for field, time_ms in times_ms.items()}
    return numbers


def _times_ms(report: BenchReport) -> dict[str, dict[str, float]]:
    parts = {"first token": report.first_token, "gap": report.gap, "total": report.total}
    fields = ("mean", "p50", "p95", "p99", "max")
    return {name: {field: getattr(part, field) * 1000 for field in fields} for name, part in parts.items() if part}


def compare_metrics(first: Sequence[dict[str, float]], second: Sequence[dict[str, float]]) -> tuple[Ratio, ...]:
    """Medians over repetitions of the metrics that every one of them has; the ratio is first/second of each pair."""
    rows = []
    for name in (name for name in first[0] if all(name in numbers for numbers in (*first, *second))):
        ones, twos = [numbers[name] for numbers in first], [numbers[name] for numbers in second]
        ratios = [one / two if two else math.nan for one, two in zip(ones, twos, strict=True)]
        one, two, ratio = (statistics.median(numbers) for numbers in (ones, twos, ratios))
        rows.append(Ratio(name, one, two, ratio, lowest=min(ratios), highest=max(ratios)))
    return tuple(rows)


def render(result: BenchReport | BenchComparison) -> str:
    """The result as text for a terminal."""
    return _render_report(result) if isinstance(result, BenchReport) else _render_comparison(result)


def _render_report(report: BenchReport) -> str:
    title, errors = f"{report.url} ({report.model})", _render_errors("errors", [report])
    if not report.succeeded:
        return "\n".join([title, f"none of {report.requests} requests succeeded", *errors])
    counted = "reported" if report.tokens_reported else "counted by pieces of text"
    lines = [
        title,
        f"{report.succeeded} of {report.requests} requests in {report.wall_s:.2f} s: "
        f"{report.requests_per_s:.2f} requests/s, {report.output_tokens_per_s:.1f} output tokens/s ({counted})",
        f"tokens: {report.input_tokens} in, {report.cached_tokens} of them cached, {report.output_tokens} out",
        f"\n{'ms':<14}{'mean':>10}{'p50':>10}{'p95':>10}{'p99':>10}{'max':>10}",
    ]
    for name, times_ms in _times_ms(report).items():
        lines.append(f"{name:<14}" + "".join(f"{time_ms:>10.1f}" for time_ms in times_ms.values()))
    return "\n".join([*lines, *errors])


def _render_comparison(comparison: BenchComparison) -> str:
    first, second = comparison.first, comparison.second
    lines = [
        f"first   {first[0].url} ({first[0].model})",
        f"second  {second[0].url} ({second[0].model})",
        f"{len(first)} repetitions each; medians, and the median ratio first/second with its range",
        f"\n{'metric':<22}{'first':>12}{'second':>12}{'ratio':>9}{'lowest':>9}{'highest':>9}",
    ]
    for row in comparison.ratios:
        numbers = f"{row.first:>12.1f}{row.second:>12.1f}{row.ratio:>9.3f}{row.lowest:>9.3f}{row.highest:>9.3f}"
        lines.append(f"{row.metric:<22}{numbers}")
    lines += _render_errors("errors of the first", first) + _render_errors("errors of the second", second)
    return "\n".join(lines)


def _render_errors(title: str, reports: Iterable[BenchReport]) -> list[str]:
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    counts = ", ".join(f"{count} x {status}" for status, count in errors.most_common())
    return [f"{title}: {counts}"] if errors else []
