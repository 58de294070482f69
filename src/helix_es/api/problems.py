"""Errors as RFC 9457 problem details: a stable code, and a text that says what to do."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from helix_es.core.errors import HelixError

log = structlog.get_logger(__name__)

# code -> (status, title); the table in docs of the API is this one
PROBLEMS: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "The body is not JSON"),
    "invalid_request": (400, "The request does not have the right form"),
    "unauthorized": (401, "No valid API key"),
    "not_a_worker": (403, "The key is not this worker's"),
    "not_an_analyst": (403, "The owner is no analyst"),
    "session_not_found": (404, "There is no such session"),
    "turn_not_found": (404, "There is no such turn"),
    "file_not_found": (404, "There is no such file"),
    "not_found": (404, "There is nothing here"),
    "task_not_found": (404, "There is no such task"),
    "method_not_allowed": (405, "This address does not do that"),
    "turn_open": (409, "A turn is open"),
    "session_closed": (409, "The session is closed"),
    "session_is_batch": (409, "The session is a fine-tune"),
    "stale_attempt": (409, "The task is not this worker's any more"),
    "worker_name_taken": (409, "Another GPU has that name"),
    "conflict": (409, "Somebody else was first"),
    "body_too_large": (413, "The body is too large"),
    "file_too_large": (413, "The file is too large"),
    "output_too_large": (413, "The output is too large"),
    "output_needed": (422, "The output is not remembered as a whole"),
    "unknown_model": (422, "There is no such model"),
    "wrong_type": (422, "The model does not make that"),
    "empty_prompt": (422, "The prompt is empty"),
    "prompt_too_long": (422, "The prompt is too long"),
    "invalid_params": (422, "A parameter is not allowed"),
    "mode_unavailable": (422, "This mode is not served"),
    "invalid_file": (422, "The file is not allowed"),
    "invalid_dataset": (422, "The dataset is not right"),
    "unknown_adapter": (422, "There is no such adapter"),
    "does_not_fit": (422, "No GPU can hold the model"),
    "idempotency_key_reused": (422, "The key belongs to another request"),
    "too_many_waiting": (429, "The owner has too many turns waiting"),
    "internal": (500, "Something went wrong here"),
    "log_unavailable": (503, "The log does not answer"),
    "log_full": (507, "The log is full"),
    "sql_refused": (422, "The statement is not allowed"),
    "sql_error": (422, "The query failed"),
    "sql_timeout": (422, "The query took too long"),
    "sql_too_large": (422, "The query needs too much memory"),
    "unknown_query": (422, "There is no such query"),
    "sql_busy": (503, "Too many queries run"),
    "analytics_unavailable": (503, "There are no analytics"),
}

_BY_STATUS = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}


class Problem(msgspec.Struct, kw_only=True):
    """The body of every error under /api/v1."""

    type: str
    title: str
    status: int
    detail: str
    code: str


def classify(error: Exception) -> tuple[str, int, str]:
    """Return (code, status, detail) of any error that a handler can raise."""
    if isinstance(error, HelixError):
        status = PROBLEMS.get(error.code, (500, ""))[0]
        return error.code, status, str(error)
    if isinstance(error, ValidationException):
        return "invalid_request", 400, _validation(error)
    if isinstance(error, HTTPException):
        if error.status_code == 400:
            return ("invalid_json" if _not_json(error) else "invalid_request"), 400, error.detail
        code = _BY_STATUS.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal")
        return code, error.status_code, error.detail or PROBLEMS[code][1]
    if isinstance(error, UnicodeDecodeError | RecursionError):  # the decoder lets these through
        return "invalid_json", 400, "the body is not UTF-8, or nested too deeply"
    log.error("unexpected_error", error=f"{type(error).__name__}: {error}", exc_info=error)
    return "internal", 500, "an error that nobody expected; it stands in the server's log"


def _not_json(error: BaseException) -> bool:
    """Whether a decoder gave up on the bytes themselves; `ValidationError` is a `DecodeError` too."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, msgspec.DecodeError):
            return not isinstance(cause, msgspec.ValidationError)
        cause = cause.__cause__ or cause.__context__
    return False


def _validation(error: ValidationException) -> str:
    """Name each field, and what is wrong with it."""
    extra: Any = error.extra
    parts = []
    for each in extra if isinstance(extra, list) else []:
        if isinstance(each, dict):
            where = str(each.get("key", "")).removeprefix("data.")
            parts.append(f"{where}: {each.get('message', '')}" if where else str(each.get("message", "")))
    return "; ".join(parts) or error.detail


def problem(_request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """The exception handler of the API."""
    code, status, detail = classify(error)
    body = Problem(
        type=f"urn:helix:problem:{code}",
        title=PROBLEMS.get(code, (status, code))[1],
        status=status,
        detail=detail,
        code=code,
    )
    headers = {"Retry-After": "1"} if status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Response(body, status_code=status, media_type="application/problem+json", headers=headers)
