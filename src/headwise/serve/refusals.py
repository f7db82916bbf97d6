"""Errors as OpenAI's clients know them: a status, and an object that says what was wrong."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from headwise.errors import HeadwiseError, did_you_mean
from headwise.schema import complaint
from headwise.serve.request import Full

Body = TypeVar("Body", bound=BaseModel)
KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(Exception):
    """A request that is answered by an error. param: the field that is wrong. after: seconds after which it may be
    taken."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, after: int = 1
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.after = status, message, code, param, after

    @property
    def headers(self) -> dict[str, str] | None:
        """What goes before the object."""
        return {"Retry-After": str(self.after)} if self.status in (429, 503) else None

    @property
    def shown(self) -> dict[str, Any]:
        """The object that a client is sent."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def no_model(name: str, own: str) -> Refused:
    """What is said to who asks for another model than a server's own."""
    return Refused(404, f"there is no model '{name}' here; {did_you_mean(name, [own])}", "model_not_found", "model")


def refusal(error: Exception) -> Refused:
    """What a client is told of an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Full):
        return Refused(429, str(error), "queue_full")
    if isinstance(error, HeadwiseError):
        return Refused(400, str(error))
    return Refused(500, "the server failed to answer; its log says why", "internal_error")


def read_body(model: type[Body], body: bytes) -> Body:
    """A body as its model, or Refused with the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        raise Refused(400, complaint(model, problem), "invalid_body", field) from None
