"""What a load amounts to: summaries, ratios, and the text of both."""

from gateway import bench_report
from gateway.bench_report import Outcome


def outcome(status: str = "ok", code: str | None = None) -> Outcome:
    return Outcome(status=status, code=code, started_s=0.0, ended_s=2.0, text_s=(0.5, 1.0))


def test_percentiles_are_linear_between_neighbours() -> None:
    assert [bench_report.percentile([1, 2, 3, 5], percent) for percent in (0, 50, 75, 100)] == [1, 2.5, 3.5, 5]
    assert bench_report.percentile([7], 99) == 7


def test_distribution_ignores_missing_values() -> None:
    assert bench_report.distribution([3.0, None, 1.0]) == bench_report.Distribution(2, 2.0, 2.0, 2.9, 2.98, 3.0)
    assert bench_report.distribution([None]) is None


def test_failures_are_counted_by_status_and_code() -> None:
    limited, full = outcome("429", "rate_limit_exceeded"), outcome("429", "queue_full")
    report = bench_report.summarise("http://a", "m", [outcome(), limited, full, outcome("timeout"), limited])
    assert (report.requests, report.succeeded) == (5, 1)
    assert report.errors == {"429 rate_limit_exceeded": 2, "429 queue_full": 1, "timeout": 1}
    text = bench_report.render(report)
    assert "1 of 5 requests" in text and "counted by pieces" in text
    assert text.endswith("\nerrors: 2 x 429 rate_limit_exceeded, 1 x 429 queue_full, 1 x timeout")


def test_without_a_success_there_are_no_numbers() -> None:
    report = bench_report.summarise("http://a", "m", [outcome("401", "invalid_api_key")] * 4)
    text = "http://a (m)\nnone of 4 requests succeeded\nerrors: 4 x 401 invalid_api_key"
    assert bench_report.render(report) == text


def test_a_comparison_sums_up_the_failures_of_all_its_runs() -> None:
    def report(*outcomes: Outcome) -> bench_report.BenchReport:
        return bench_report.summarise("http://a", "m", outcomes)

    first = (report(outcome("429", "queue_full")), report(outcome("429", "queue_full"), outcome("503")))
    text = bench_report.render(bench_report.BenchComparison(first=first, second=(report(outcome()),), ratios=()))
    assert text.endswith("\nerrors of the first: 2 x 429 queue_full, 1 x 503")


def test_ratios_are_medians_of_pairs() -> None:
    first = [{"a": 1.0, "only": 1.0}, {"a": 4.0, "only": 1.0}, {"a": 3.0, "only": 1.0}]
    second = [{"a": 1.0}, {"a": 2.0}, {"a": 1.0}]
    assert bench_report.compare_metrics(first, second) == (bench_report.Ratio("a", 3.0, 1.0, 2.0, 1.0, 3.0),)
