"""Reads what an exception of the SDK carries; Azure may leave out any of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResponseNotReadError,
    StreamClosedError,
    StreamConsumedError,
)
from azure.core.polling.base_polling import OperationFailed

from infra.azure.errors import AzureErrorInfo

ADVICE_S_MAX = 300.0
"""The longest advice that is followed: whoever waits would rather ask once more than in a year."""
DEPTH_MAX = 5
"""How deep errors are looked for within errors."""


def error_info(error: AzureError) -> AzureErrorInfo:
    """Read code, message, status, advice and what is nested; never raises."""
    if isinstance(error, ClientAuthenticationError) and error.response is None:
        return AzureErrorInfo(message=str(error.message), auth=True)
    if not isinstance(error, HttpResponseError) or error.response is None:
        return AzureErrorInfo(message=_short(error))
    body = _body_of(error)
    inner = body.get("error") or body.get("Error") or body.get("odata.error")
    problem = inner if isinstance(inner, dict) else body
    text = problem.get("message") or problem.get("Message") or problem.get("error_description")
    message = _with_names(str(text or _short(error)), problem)
    status = int(error.status_code or 0)
    failed_later = isinstance(error.inner_exception, OperationFailed)
    return AzureErrorInfo(
        code=_code_of(problem),
        message=message,
        status=0 if is_unreadable(error) else 200 if failed_later else status,
        retry_after_s=advice_s(error),
        nested=tuple(_within(problem, DEPTH_MAX)),
    )


def is_unreadable(error: HttpResponseError) -> bool:
    """Whether Azure reported success without a readable body: no refusal, and no end either.

    Such as an empty page of an operation that is under way.
    """
    failed = isinstance(error.inner_exception, OperationFailed)
    return not failed and int(error.status_code or 0) < 400


def advice_s(error: HttpResponseError) -> float | None:
    """Read how long Azure asks to wait, in seconds or as a date; None if unreadable or absent.

    A date counts from the answer's own: this computer's clock may be wrong.
    """
    response: Any = error.response
    text = str(response.headers.get("Retry-After", ""))
    try:
        wait_s = float(text)
    except ValueError:
        moment, now = moment_of(text), moment_of(str(response.headers.get("Date", "")))
        if moment is None:
            return None
        wait_s = (moment - (now or datetime.now(tz=UTC))).total_seconds()
    return min(wait_s, ADVICE_S_MAX) if wait_s >= 0 and not math.isnan(wait_s) else None


def moment_of(text: str) -> datetime | None:
    """Read the time in a header; None if unreadable or absent."""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _within(problem: dict[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    """Code and message of every error inside an error, the outer ones first."""
    if depth == 0:
        return
    details = problem.get("details")
    inside = [*(details if isinstance(details, list) else [details])]
    inside += [problem.get("innererror"), problem.get("innerError")]
    for one in inside:
        if isinstance(one, dict):
            text = one.get("message") or one.get("Message") or one.get("errordetail") or ""
            yield _code_of(one), _with_names(str(text), one)
            yield from _within(one, depth - 1)


def _code_of(problem: dict[str, Any]) -> str:
    return str(problem.get("code") or problem.get("Code") or "")


def _with_names(message: str, problem: dict[str, Any]) -> str:
    """A message with the names of the policies that it speaks of, which stand beside it."""
    more = problem.get("additionalInfo")
    parts = more if isinstance(more, list) else []
    infos = [one.get("info") for one in parts if isinstance(one, dict)]
    names = [
        str(info[key])
        for info in infos
        if isinstance(info, dict)
        for key in _POLICY_NAMES
        if info.get(key) and str(info[key]) not in message
    ]
    return f"{message} (policy: {', '.join(dict.fromkeys(names))})" if names else message


_POLICY_NAMES = (
    "policyAssignmentDisplayName",
    "policyDefinitionDisplayName",
    "policyAssignmentName",
)


def _body_of(error: HttpResponseError) -> dict[str, Any]:
    response: Any = error.response
    try:
        body = response.json()
    except (ValueError, ResponseNotReadError, StreamConsumedError, StreamClosedError):
        return {}
    return body if isinstance(body, dict) else {}


def _short(error: AzureError) -> str:
    return str(error.message or error).splitlines()[0][:300] if str(error) else ""
