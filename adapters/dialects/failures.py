"""Errors as providers write them, to ours: by their type and code where they say one, else by the HTTP status.

Known are OpenAI's `{"error": {...}}` with what others made of it, Anthropic's, Google's (also in a list), Amazon's
`{"message": ...}`, Cohere's, and FastAPI's `{"detail": ...}`. A provider's own words reach the client only when the
request is at fault, cut short and without anything that looks like a key, an address or an account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from adapters.errors import AdapterError, InvalidRequest, RateLimited, Timeout, UpstreamInvalid, UpstreamRefused

WORDS_CHARS_MAX = 500
# What of a provider's words is looked at: some of the expressions take as long as the square of a text that is made for
# that.
READ_CHARS_MAX = 4096
RETRY_AFTER_S_MAX = 3600.0

_CONTEXT = re.compile(
    r"context[_ ]length|context window|maximum context|context size|prompt is too long|too many (input )?tokens|"
    r"input (is|was) too long|input token count.*exceeds|exceeds? the (model'?s )?(maximum|max|available)[\w ]*"
    r"(tokens|context)|reduce the length|max_model_len|maximum number of tokens|exceed_context_size",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content[_ ](filter|policy|management)|responsible ?ai|moderation|safety system|flagged|blocked by|"
    r"guardrail_intervened|prohibited_content",
    re.IGNORECASE,
)
_QUOTA = re.compile(
    r"insufficient_quota|billing|credit balance|insufficient (balance|credits|funds)|"
    r"exceeded your current quota|payment",
    re.IGNORECASE,
)
_RATE = re.compile(r"rate.?limit|too many requests|throttl|resource.?exhausted|quota|tokens per min", re.IGNORECASE)
_OVERLOADED = re.compile(
    r"overloaded|unavailable|capacity|server.?busy|service_?unavailable|modelnotready", re.IGNORECASE
)
_DENIED = re.compile(
    r"authentication|invalid.?api.?key|permission|unauthorized|unauthenticated|access.?denied|unrecognizedclient|signature|token.*expired|expired.*token",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"not_found|model.{0,80}(does not exist|not found|not exist)|not_found_error|resourcenotfound", re.IGNORECASE
)
_INVALID = re.compile(
    r"invalid.?request|validation|invalid_?argument|bad.?request|unprocessable|unsupported|invalid_value", re.IGNORECASE
)

_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")

# What must not be told on: keys, tokens, addresses, accounts, files.
_SECRETS = re.compile(
    r"""\b(?:[a-z]+-)?(?:sk|pk|rk|key|gsk|xai|fw|tgp|AIza|ya29|AKIA|ASIA)[-_.]?[\w*.-]{6,}"""
    r"""|\b[A-Za-z0-9_-]{32,}\b|\beyJ[\w.-]+"""
    r"""|\b(?:https?|wss?|file)://\S+|\barn:\S+|\b[\w.-]+@[\w.-]+\b"""
    r"""|\b(?:org|proj|acct|user|req|organization|project)[-_ ][\w-]{8,}|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"""
    r"""|(?<!\w)/(?:[\w.-]+/){2,}[\w.-]*""",
    re.IGNORECASE,
)


class Reason(msgspec.Struct, frozen=True):
    """What a provider says: its words, every word by which it classifies the error, and after how many seconds another
    try is worth it."""

    message: str = ""
    kinds: str = ""
    param: str | None = None
    status: int | None = None
    retry_after_s: float | None = None


def failure(status: int, body: bytes, headers: Mapping[str, str], now_s: float) -> AdapterError:
    """The error behind a whole answer with a status other than success; names of headers are in lower case.

    `now_s` is the Unix time, for a `Retry-After` that is a date.
    """
    reason = _read(body)
    amazon = headers.get("x-amzn-errortype", "")
    if amazon:
        reason = msgspec.structs.replace(reason, kinds=f"{reason.kinds} {amazon}")
    asked_s = retry_after(headers, now_s)
    return _told(status, reason, reason.retry_after_s if asked_s is None else asked_s)


def failure_in_stream(payload: bytes) -> AdapterError | None:
    """The error that a payload of a stream is; None when it is none."""
    if b"error" not in payload:
        return None
    reason = _read(payload, strict=True)
    if not reason.message and not reason.kinds:
        return None
    return _told(reason.status or 0, reason, reason.retry_after_s)


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """How long the provider asks to be left alone, in seconds; None when it does not say so in a way one can use."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        elif given := headers.get("retry-after"):
            is_number = re.fullmatch(r"\d+(\.\d+)?", given.strip())
            seconds = float(given) if is_number else parsedate_to_datetime(given).timestamp() - now_s
        else:
            return None
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX) if seconds == seconds else None


def scrubbed(text: str, secrets: tuple[str, ...] = ()) -> str:
    """A provider's words as a client may read them."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[removed]")
    text = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * WORDS_CHARS_MAX])
    text = _SECRETS.sub("[removed]", text).strip()
    return text if len(text) <= WORDS_CHARS_MAX else text[: WORDS_CHARS_MAX - 3] + "..."


def _read(body: bytes, *, strict: bool = False) -> Reason:
    """`strict`: only what is plainly an error, as in a stream where anything else is too."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Reason()
    if isinstance(decoded, list) and decoded:
        decoded = decoded[0]
    if not isinstance(decoded, dict):
        return Reason()
    error = decoded.get("error")
    if isinstance(error, str):
        return Reason(_text(error), _text(decoded.get("type")))
    if isinstance(error, dict):
        inner = error.get("metadata")
        raw = _text(inner.get("raw")) if isinstance(inner, dict) else ""
        kinds = " ".join(_text(error.get(name)) for name in ("type", "code", "status", "reason"))
        code = error.get("code")
        status = code if type(code) is int and 400 <= code < 600 else None
        param = _text(error.get("param")) or None
        return Reason(_text(error.get("message")) or raw, kinds.strip(), param, status, _delay_s(error.get("details")))
    if strict:
        return Reason()
    message = decoded.get("message") or decoded.get("Message") or decoded.get("detail")
    if isinstance(message, list | dict):
        message = msgspec.json.encode(message).decode()
    return Reason(_text(message), f"{_text(decoded.get('type'))} {_text(decoded.get('code'))}".strip())


def _delay_s(details: object) -> float | None:
    """Google's `RetryInfo` among the details of an error, such as `{"retryDelay": "34.1s"}`."""
    for one in details if isinstance(details, list) else ():
        given = _DELAY.fullmatch(_text(one.get("retryDelay"))) if isinstance(one, dict) else None
        if given is not None:
            return min(float(given[1]), RETRY_AFTER_S_MAX)
    return None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value[:READ_CHARS_MAX]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _told(status: int, reason: Reason, retry_after_s: float | None) -> AdapterError:
    error = _classified(status, reason, retry_after_s)
    if not isinstance(error, InvalidRequest):
        error.words = scrubbed(reason.message)
    return error


def _classified(status: int, reason: Reason, retry_after_s: float | None) -> AdapterError:
    """What kind of error it is; its words count where the status says little, or nothing as in a stream."""
    status = status if status >= 300 else reason.status or 0
    if 300 <= status < 400:
        return UpstreamInvalid("The provider answered with a redirect, which is not followed.")
    text = f"{reason.kinds} {reason.message}"
    if status in (0, 400, 403, 413, 422):
        if _CONTEXT.search(text):
            return InvalidRequest(
                _words(reason, "The prompt is too long"), code="context_length_exceeded", param=reason.param
            )
        if _FILTER.search(text):
            return InvalidRequest(_words(reason, "The prompt was refused"), code="content_filter", param=reason.param)
    if status == 402 or (status in (0, 400, 403, 429) and _QUOTA.search(text)):
        return UpstreamRefused("The provider's account for this model has no credit.", status or 402)
    if status == 429 or (status == 0 and _RATE.search(text)):
        message = "The provider of this model limits how often this gateway may ask it. Try again later."
        return RateLimited(message, retry_after_s=retry_after_s)
    if status in (401, 403, 407) or (status in (0, 400) and _DENIED.search(reason.kinds)):
        return UpstreamRefused("The provider of this model refuses the gateway's credentials.", status or 401)
    if status in (404, 405, 410) or (status in (0, 400) and _UNKNOWN.search(text)):
        return UpstreamRefused("The provider does not know this model.", status or 404)
    if status in (408, 504):
        return Timeout("The provider of this model did not answer in time.", retry_after_s=retry_after_s)
    if (status == 0 and _INVALID.search(reason.kinds)) or 400 <= status < 500:
        return InvalidRequest(_words(reason, "The provider refused the request"), param=reason.param)
    if status == 0:
        status = 529 if _OVERLOADED.search(text) else 500
    message = (
        "The provider of this model is overloaded." if status in (503, 529) else "The provider of this model failed."
    )
    return UpstreamRefused(message, status, retry_after_s=retry_after_s)


def _words(reason: Reason, ours: str) -> str:
    words = scrubbed(reason.message)
    return f"{ours}: {words}" if words else f"{ours}."
