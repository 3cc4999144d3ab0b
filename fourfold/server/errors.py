"""What goes wrong over HTTP: one line that names the field and the remedy, in OpenAI's form, with the right status."""

import re
from typing import Any

from fastapi.responses import JSONResponse

from fourfold.engine.request import EngineBusy
from fourfold.errors import FourfoldError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}
FIELD = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*): ")  # how the library's errors begin that name a field


class ApiError(Exception):
    """An answer that is an error. type: by default what belongs to the status; param: the field; code: what happened."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
        self.type, self.headers = type or TYPES.get(status, "server_error"), headers or {}

    def body(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """{"type": "error", "error": {type, message}}, as the Messages API has it."""
        kinds = {402: "billing_error", 503: "overloaded_error"}
        kind = kinds.get(self.status) or (self.type if self.status in TYPES else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


class NotFound(ApiError):
    """A model or thing that is not here."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(404, message, param=param, code=code)


def bad(field: str, message: str, code: str | None = None) -> ApiError:
    """A 400 for one field of the request; `message` goes on after the field's name and a colon."""
    return ApiError(400, f"{field}: {message}", param=field, code=code)


def api_error(error: Exception) -> ApiError:
    """Any failure as an answer: a full queue is 429, what a user can put right 400, all else 500 without its details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusy):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(max(1, round(error.retry_after)))})
    if isinstance(error, FourfoldError) and isinstance(status := getattr(error, "status", None), int):  # what the ledger refuses
        return ApiError(status, str(error), code=getattr(error, "code", None))
    if type(error) is FourfoldError:  # nothing that the request could have said better
        return ApiError(500, str(error), code="engine_error")
    if isinstance(error, FourfoldError):
        field = FIELD.match(str(error))
        return ApiError(400, str(error), param=field[1] if field else None)
    return ApiError(500, "internal error; the server's log says more", code="internal_error")


def error_response(error: ApiError, path: str) -> JSONResponse:
    """An error as a response, in the form of the API that `path` belongs to."""
    return JSONResponse(error.anthropic() if path.startswith("/v1/messages") else error.body(), error.status, error.headers)
