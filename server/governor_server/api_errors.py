"""Errors that a client reads, in the shape that OpenAI's clients understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

Headers = list[tuple[bytes, bytes]]

SHAPE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["integer", "string", "null"]},
            },
        }
    },
}
"""What an error looks like, as a JSON schema."""


class ApiError(Exception):
    """An error to answer a request with: the HTTP `status`, a stable word for its `type`, and a message that
    says how to put it right. `headers` go with it.

    Only what was never sent upstream says `retry_after_s`: it may be tried again without harm.
    """

    def __init__(
        self, status: int, type: str, message: str, *, retry_after_s: int = 0, headers: Headers | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.headers: Headers = list(headers or ())
        if retry_after_s:
            self.headers.append((b"retry-after", b"%d" % retry_after_s))

    @property
    def body(self) -> dict[str, Any]:
        """The body, parsed."""
        error = {"message": str(self), "type": self.type, "param": None, "code": self.status}
        return {"error": error}

    def dumped(self) -> bytes:
        """The body."""
        return orjson.dumps(self.body)


def described(errors: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of errors, by status and what it means."""
    content = {"application/json": {"schema": SHAPE}}
    return {status: {"description": text, "content": content} for status, text in errors.items()}
