"""Errors as a client gets them, in the shape of OpenAI's API."""

from typing import Any

from starlette.responses import JSONResponse


class ApiError(Exception):
    """`status`, what is wrong, and the field that it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, headers

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


class ClientGone(Exception):
    """The client closed its connection before it had the answer."""
