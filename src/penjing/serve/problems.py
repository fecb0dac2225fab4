"""Errors of the API, in the shape that OpenAI's clients know."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import Send

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}
_MOST_LETTERS = 1000  # a client's own words come back to him, but not megabytes of them


class Problem(Exception):
    """An answer that is an error: `status` for HTTP, `code` for programs, `param` for the field at fault.

    Units:
        retry_after: seconds until another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        message = message if len(message) <= _MOST_LETTERS else f"{message[:_MOST_LETTERS]}…"
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def document(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.document)

    async def send(self, send: Send) -> None:
        """As the whole answer."""
        headers = [(k.encode(), v.encode()) for k, v in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})

    @property
    def headers(self) -> dict[str, str]:
        found = {"content-type": "application/json"}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found
