"""Every error as an OpenAI error object with an HTTP status and a code that programs can tell apart."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from calm_graph.errors import (
    AugmenterError,
    AugmenterUnavailableError,
    CalmGraphError,
    InputError,
    OverloadedError,
    ServingError,
)

logger = logging.getLogger(__name__)

CLIENT_GONE = 499  # nginx's number for it; nobody receives it, but logs and metrics tell it apart
# What pydantic calls the mistake -> the code that OpenAI gives it; any other mistake is an invalid value.
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unknown_parameter": "unknown_parameter",
    "unsupported_parameter": "unsupported_parameter",
    "json_invalid": "invalid_json",
}
_STATUS_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ErrorBody(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorBody


class ApiError(CalmGraphError):
    """A request ends with this HTTP status.

    Args:
        status: The HTTP status.
        message: Where, what came and what is allowed.
        code: For programs.
        param: The field that is wrong.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> str:
        """Return the error object as JSON, in ASCII: what a request sent may not be valid Unicode."""
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        if self.status >= 500 or self.status == 408:
            kind = "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error})

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(self.body(), status_code=self.status, media_type="application/json", headers=self.headers)


class BadValueError(ApiError):
    """A field of the request has a value that is not allowed.

    Args:
        param: The field.
        message: What came and what is allowed.
        code: For programs.
    """

    def __init__(self, param: str, message: str, *, code: str = "invalid_value") -> None:
        super().__init__(400, f"{param}: {message}", code=code, param=param)


def as_api_error(error: Exception, *, request_id: str) -> ApiError:
    """Return what a client is told of an error; what nobody expected is logged and not told.

    Args:
        error: Any error.
        request_id: Of the request, by which the log entry is found.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        wait = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        return ApiError(429, str(error), code="overloaded", headers=wait)
    if isinstance(error, AugmenterUnavailableError):
        return ApiError(503, str(error), code="augmenter_unavailable")
    if isinstance(error, AugmenterError):
        return ApiError(503, str(error), code="augmenter_failed")
    if isinstance(error, ServingError):
        return ApiError(503, str(error), code="service_unavailable")
    if isinstance(error, InputError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, RequestValidationError):
        return _validation_error(error.errors())
    if isinstance(error, HTTPException):
        code = _STATUS_CODES.get(error.status_code, "http_error")
        return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)
    logger.error("request %s failed", request_id, exc_info=error)
    message = f"internal error; the server's log has it under request id {request_id}"
    return ApiError(500, message, code="internal_error")


def _validation_error(details: Sequence[Any]) -> ApiError:
    """Return the mistakes of a body; the code and the field are those of the first one."""
    messages = []
    for detail in details:
        path = _path(detail)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "missing":
            message = "is missing"
        elif detail["type"] == "extra_forbidden":
            message = "unknown parameter"
        elif detail["type"] == "json_invalid":
            message = f"is not valid JSON: {detail.get('ctx', {}).get('error', message)}"
        elif path == "" and detail["type"] in ("model_attributes_type", "model_type", "dict_type"):
            message = "a JSON object is needed, with the header Content-Type: application/json"
        messages.append(f"{path or 'body'}: {message}")
    kind = details[0]["type"]
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    return ApiError(400, "; ".join(messages[:10]), code=code, param=_path(details[0]) or None)


def _path(detail: Mapping[str, Any]) -> str:
    """Return where a mistake is, as a client would write it: `messages[0].content`."""
    parts = list(detail["loc"][1:])
    if detail["type"] == "json_invalid":
        return ""
    if "param" in detail.get("ctx", {}):
        parts.append(detail["ctx"]["param"])
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the app's routes an OpenAI error object."""

    async def handle(request: Request, error: Exception) -> Response:
        record = request.scope["calm_graph.record"]
        answer = as_api_error(error, request_id=record.request_id)
        record.error_code = answer.code
        return answer.response()

    for kind in (CalmGraphError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
