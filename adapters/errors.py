"""What can go wrong behind an adapter, said in one tree.

AdapterError
├── InvalidRequest       the caller's fault; `code` and `param` say what, nothing was generated
├── Busy                 turned away at once, with the time after which a place is expected
│   ├── QueueFull        the tenant has used up its share of the queue
│   ├── Overloaded       the whole queue is taken by tenants within their shares
│   └── RateLimited      a provider turns its caller away, which is this gateway
├── Unavailable          the target cannot serve now
│   ├── ModelLoading     it will, after `retry_after_s`
│   └── ModelUnavailable it failed to load, keeps dying, or was stopped
├── EngineFailed         the engine died or broke while it worked on the request
├── UpstreamFailed       a remote target failed
│   ├── Unreachable      there was no connection, so nothing was sent
│   ├── BrokeOff         the connection ended before the answer did
│   ├── UpstreamInvalid  what came is not what was agreed on
│   └── UpstreamRefused  it answered with an error; `status` says which
└── Timeout              a deadline passed

Adapters raise only these; `gateway/errors.py` gives each its HTTP status.
"""


class AdapterError(Exception):
    """Base of everything an adapter raises on purpose.

    `code` is the machine-readable name from the public error table, `param` the request field at fault and
    `retry_after_s` the seconds after which another try is worth it (None: unknown). A route says how many `attempts` it
    made. `words` are a provider's own, for whoever runs the gateway and not for its clients, without what must not be
    told on.
    """

    code = "internal_error"
    attempts: int | None = None
    words = ""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(AdapterError):
    code = "invalid_value"


class Busy(AdapterError):
    code = "overloaded"


class QueueFull(Busy):
    code = "queue_full"


class Overloaded(Busy):
    code = "overloaded"


class RateLimited(Busy):
    code = "rate_limit_exceeded"


class Unavailable(AdapterError):
    code = "model_unavailable"


class ModelLoading(Unavailable):
    code = "model_loading"


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class EngineFailed(AdapterError):
    code = "engine_failed"


class UpstreamFailed(AdapterError):
    code = "upstream_error"


class Unreachable(UpstreamFailed):
    code = "upstream_error"


class BrokeOff(UpstreamFailed):
    code = "upstream_error"


class UpstreamInvalid(UpstreamFailed):
    code = "upstream_invalid"


class UpstreamRefused(UpstreamFailed):
    """`status` is the upstream's own, for whoever decides about another try. Its words are never in the message."""

    code = "upstream_error"

    def __init__(self, message: str, status: int, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status


class Timeout(AdapterError):
    code = "upstream_timeout"


def in_full(error: AdapterError) -> str:
    """A failure with what the provider said of it, which clients are not told."""
    status = str(error.status) if isinstance(error, UpstreamRefused) else ""
    said = ": ".join(filter(None, (status, error.words)))
    return f"{error.message} ({said})" if said else error.message
