from __future__ import annotations

import logging

import pytest

from adapters import errors as adapter_errors
from adapters.errors import AdapterError
from gateway import errors
from gateway.errors import GatewayError
from gateway.state.database import DatabaseUnavailable
from gateway.state.shared import SharedStateUnavailable


def adapter_error_types(kind: type[AdapterError] = AdapterError) -> list[type[AdapterError]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in adapter_error_types(sub))]


@pytest.mark.parametrize("kind", adapter_error_types())
def test_every_adapter_error_is_mapped(kind: type[AdapterError]) -> None:
    assert kind in errors.ADAPTER_ERRORS


@pytest.mark.parametrize(
    ("raised", "status", "code", "retry_after"),
    [
        (adapter_errors.InvalidRequest("no", code="context_length_exceeded"), 400, "context_length_exceeded", None),
        (adapter_errors.QueueFull("full", retry_after_s=2.2), 429, "queue_full", "3"),
        (adapter_errors.Overloaded("full", retry_after_s=0.2), 503, "overloaded", "1"),
        (adapter_errors.ModelLoading("soon", retry_after_s=4), 503, "model_loading", "4"),
        (adapter_errors.ModelUnavailable("broken", code="model_invalid"), 503, "model_invalid", None),
        (adapter_errors.ModelUnavailable("broken"), 503, "model_unavailable", "5"),
        (adapter_errors.EngineFailed("died"), 503, "model_unavailable", "1"),
        (adapter_errors.Timeout("late"), 504, "upstream_timeout", None),
    ],
)
def test_adapter_errors_on_the_wire(raised: AdapterError, status: int, code: str, retry_after: str | None) -> None:
    error = errors.from_adapter(raised)
    assert (error.status, error.code, error.message) == (status, code, raised.message)
    assert error.wire_headers().get("retry-after") == retry_after


def test_a_failure_says_how_often_a_route_tried() -> None:
    raised = adapter_errors.Unreachable("gone")
    assert "x-gateway-attempts" not in errors.from_adapter(raised).wire_headers()
    raised.attempts = 3
    assert errors.from_adapter(raised).wire_headers()["x-gateway-attempts"] == "3"


@pytest.mark.parametrize("code", errors.TABLE)
def test_every_code_has_a_complete_body(code: str) -> None:
    error = errors.error(code, "text", param="model")
    assert error.body() == {"error": {"message": "text", "type": error.kind, "param": "model", "code": code}}
    assert error.status == errors.TABLE[code].status
    if error.status == 503 and code != "model_invalid":
        assert int(error.wire_headers()["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_value", "invalid_request_error"),
        ("invalid_api_key", "authentication_error"),
        ("permission_denied", "permission_error"),
        ("model_not_found", "not_found_error"),
        ("queue_full", "rate_limit_error"),
        ("insufficient_quota", "insufficient_quota"),
        ("model_loading", "api_error"),
    ],
)
def test_type_follows_the_status(code: str, kind: str) -> None:
    assert errors.error(code, "text").kind == kind


def test_waiting_times_are_whole_seconds_rounded_up_and_exact_milliseconds() -> None:
    headers = errors.error("queue_full", "text", retry_after_s=1.2001).wire_headers()
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1201")
    assert errors.error("queue_full", "text", retry_after_s=0).wire_headers()["retry-after"] == "1"
    assert errors.error("insufficient_quota", "text").wire_headers()["x-should-retry"] == "false"
    assert "x-should-retry" not in headers


def test_a_bug_is_logged_once_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        try:
            raise ValueError("/secret/path")
        except ValueError as exc:
            error = errors.from_exception(exc, "req1")
    assert (error.status, error.code) == (500, "internal_error")
    assert "secret" not in str(error.body())
    assert "req1" in error.message
    assert len(caplog.records) == 1
    assert "req1" in caplog.text
    assert "Traceback" in caplog.text


def test_errors_on_purpose_pass_through_unlogged(caplog: pytest.LogCaptureFixture) -> None:
    error = GatewayError(418, "teapot", "text", headers={"x-a": "b"})
    assert errors.from_exception(error, "req1") is error
    assert error.wire_headers() == {"x-a": "b"}
    assert not caplog.records


@pytest.mark.parametrize("exc", [DatabaseUnavailable("postgres at 10.0.0.1: gone"), SharedStateUnavailable("redis")])
def test_a_store_of_ours_that_is_away_is_no_bug_and_not_named(exc: Exception) -> None:
    error = errors.from_exception(exc, "req1")
    assert (error.status, error.code) == (503, "overloaded") and str(exc) not in error.message
