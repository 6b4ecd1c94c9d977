"""Everything a client can be told went wrong: one table of codes, and the only place that knows HTTP statuses.

The body is always `{"error": {"message", "type", "param", "code"}}`. `type` follows the status alone, as clients branch
on it that way: 401 `authentication_error`, 403 `permission_error`, 404 `not_found_error`, 429 `rate_limit_error`, any
other 4xx `invalid_request_error`, every 5xx `api_error`; only `insufficient_quota` has itself as its type, as OpenAI
does it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import msgspec

from adapters import errors as adapter_errors
from adapters.errors import AdapterError
from gateway.state.database import DatabaseUnavailable
from gateway.state.shared import SharedStateUnavailable

log = logging.getLogger("gateway.errors")


class Row(msgspec.Struct, frozen=True):
    """What a code means on the wire.

    `retry_after_s` is sent when the place that raised knows nothing better; `retry` False tells SDKs not to try again
    although the status alone would make them.
    """

    status: int
    retry_after_s: float | None = None
    retry: bool | None = None


TABLE: Mapping[str, Row] = {
    "bad_request": Row(400),
    "invalid_json": Row(400),
    "invalid_value": Row(400),
    "unknown_parameter": Row(400),
    "context_length_exceeded": Row(400),
    "invalid_schema": Row(400),
    "unsupported_schema": Row(400),
    "unsupported_parameter": Row(400),
    "content_filter": Row(400),
    "content_blocked": Row(400),
    "invalid_api_key": Row(401),
    "key_revoked": Row(401),
    "key_expired": Row(401),
    "invalid_token": Row(401),
    "invalid_credentials": Row(401),
    "permission_denied": Row(403),
    "model_price_unknown": Row(403),
    "ip_denied": Row(403),
    "model_not_found": Row(404),
    "not_found": Row(404),
    "method_not_allowed": Row(405),
    "request_timeout": Row(408),
    "conflict": Row(409, retry=False),
    "idempotency_conflict": Row(409, retry=False),
    "idempotency_in_progress": Row(409, retry_after_s=1, retry=True),
    "idempotency_result_lost": Row(409, retry=False),
    "precondition_failed": Row(412),
    "request_too_large": Row(413),
    "url_too_long": Row(414),
    "unsupported_media_type": Row(415),
    "headers_too_large": Row(431),
    "rate_limit_exceeded": Row(429, retry_after_s=1),
    "insufficient_quota": Row(429, retry=False),
    "queue_full": Row(429, retry_after_s=1),
    "internal_error": Row(500),
    "upstream_invalid": Row(502),
    "upstream_error": Row(502),
    "upstream_timeout": Row(504),
    "not_cached": Row(504, retry=False),
    "model_loading": Row(503, retry_after_s=1),
    "model_unavailable": Row(503, retry_after_s=5),
    "model_invalid": Row(503, retry=False),
    "overloaded": Row(503, retry_after_s=1),
    "budget_unavailable": Row(503, retry_after_s=1),
    "guardrail_unavailable": Row(503, retry_after_s=1),
    "shutting_down": Row(503, retry_after_s=1),
    "insufficient_storage": Row(503, retry_after_s=60),
}

KINDS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


# Anthropic's types by the status, and its own statuses for some codes.
ANTHROPIC_KINDS: Mapping[int, str] = {
    **KINDS,
    402: "billing_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    504: "timeout_error",
    529: "overloaded_error",
}
ANTHROPIC_STATUSES: Mapping[str, int] = {"insufficient_quota": 402, "overloaded": 529, "model_loading": 529}


class GatewayError(Exception):
    """An answer other than success, on purpose.

    `message` is shown to the client, so it never holds a path of the server, a key, a prompt or an upstream's address.
    `owner` is for the audit log: whose it is that was asked for and has to look as if it were not there.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        row = TABLE.get(code)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s if retry_after_s is not None or row is None else row.retry_after_s
        self.headers = dict(headers or {})
        self.owner: str | None = None

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.code == "insufficient_quota":
            return "insufficient_quota"
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")

    def body(self) -> dict[str, object]:
        """The OpenAI error object, ready to be encoded."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def in_anthropic(self, request_id: str | None) -> tuple[int, dict[str, object]]:
        """The status and the error object as Anthropic has them; SDKs find the code among the details."""
        status = ANTHROPIC_STATUSES.get(self.code, self.status)
        kind = ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
        details = {"error_code": self.code} | ({"param": self.param} if self.param else {})
        error = {"type": kind, "message": self.message, "details": details}
        return status, {"type": "error", "error": error, "request_id": request_id}

    def in_responses(self, number: int) -> dict[str, object]:
        """The error as an event of the Responses API; SDKs look for `error` in any event."""
        event = {"type": "error", "sequence_number": number, "code": self.code}
        return event | {"message": self.message, "param": self.param} | self.body()

    def wire_headers(self) -> dict[str, str]:
        """The headers that belong to the answer: how long to wait, whether to try again, and the error's own."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
            headers["retry-after-ms"] = str(max(1, math.ceil(self.retry_after_s * 1000)))
        row = TABLE.get(self.code)
        if row is not None and row.retry is not None:
            headers["x-should-retry"] = "true" if row.retry else "false"
        return headers


def error(
    code: str,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> GatewayError:
    """The error of a code in the table, with the table's status."""
    return GatewayError(TABLE[code].status, code, message, param=param, retry_after_s=retry_after_s, headers=headers)


class Mapped(msgspec.Struct, frozen=True):
    """How one branch of the adapters' tree is answered; `code` None keeps the code the adapter chose."""

    status: int
    code: str | None = None
    retry_after_s: float | None = None


ADAPTER_ERRORS: Mapping[type[AdapterError], Mapped] = {
    adapter_errors.InvalidRequest: Mapped(400),
    adapter_errors.QueueFull: Mapped(429, "queue_full"),
    adapter_errors.Overloaded: Mapped(503, "overloaded"),
    adapter_errors.Busy: Mapped(503, "overloaded"),
    adapter_errors.RateLimited: Mapped(429, "rate_limit_exceeded", retry_after_s=1),
    adapter_errors.ModelLoading: Mapped(503, "model_loading"),
    adapter_errors.ModelUnavailable: Mapped(503),
    adapter_errors.Unavailable: Mapped(503),
    adapter_errors.EngineFailed: Mapped(503, "model_unavailable", retry_after_s=1),
    adapter_errors.UpstreamFailed: Mapped(502),
    adapter_errors.Unreachable: Mapped(502),
    adapter_errors.BrokeOff: Mapped(502),
    adapter_errors.UpstreamInvalid: Mapped(502),
    adapter_errors.UpstreamRefused: Mapped(502),
    adapter_errors.Timeout: Mapped(504, "upstream_timeout"),
    adapter_errors.AdapterError: Mapped(500, "internal_error"),
}


def from_adapter(exc: AdapterError) -> GatewayError:
    """The answer to what an adapter raised; the nearest class of the tree decides."""
    mapped = next(ADAPTER_ERRORS[kind] for kind in type(exc).__mro__ if kind in ADAPTER_ERRORS)
    retry_after_s = exc.retry_after_s if exc.retry_after_s is not None else mapped.retry_after_s
    headers = None if exc.attempts is None else {"x-gateway-attempts": str(exc.attempts)}
    return GatewayError(
        mapped.status,
        mapped.code or exc.code,
        exc.message,
        param=exc.param,
        retry_after_s=retry_after_s,
        headers=headers,
    )


def from_exception(exc: BaseException, request_id: str) -> GatewayError:
    """The answer to anything raised while a request was served.

    What nobody meant to raise is a bug: it is logged here, once, with its traceback, and the client learns only the
    request id under which to ask. A store of ours that does not answer is none.
    """
    if isinstance(exc, GatewayError):
        return exc
    if isinstance(exc, AdapterError):
        return from_adapter(exc)
    if isinstance(exc, DatabaseUnavailable | SharedStateUnavailable):
        log.error("request %s failed: %s", request_id, exc)
        return error("overloaded", "The server cannot reach its own data right now. Try again shortly.")
    log.error("request %s failed unexpectedly", request_id, exc_info=exc)
    return error("internal_error", f"The server had an error. Quote the request id {request_id} when you report it.")
