"""Turns errors into HTTP statuses and the JSON that clients of OpenAI's or of Ollama's API read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from compiler.errors import one_line
from compiler.runtime.batching import BusyError
from compiler.runtime.server.fields import FieldError

# nginx's status for a client that went away before the answer. Nobody reads it but logs.
CLIENT_LEFT = 499


# Endpoints below it are Ollama's.
OLLAMA_PREFIX = "/api/"


def error_body(
    status: int, message: str, path: str = "", field: str | None = None
) -> dict[str, object]:
    """The JSON of an error, as the clients of a path read it; `field` is the one that is wrong."""
    if path.startswith(OLLAMA_PREFIX):
        return {"error": message}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": status}}


class BadRequest(HTTPException):
    """A request that is wrong; `field` is what is wrong in it, where that is known."""

    def __init__(self, error: ValueError) -> None:
        super().__init__(400, one_line(str(error)))
        self.field = error.name if isinstance(error, FieldError) else None


@contextlib.contextmanager
def request_errors() -> Iterator[None]:
    """Turns what is wrong with a request into 400, and what there is no room for into 429."""
    try:
        yield
    except BusyError as error:
        raise too_busy(error) from error
    except ValueError as error:
        raise BadRequest(error) from error


def too_busy(error: BusyError) -> HTTPException:
    return HTTPException(429, f"{error}: try again", {"Retry-After": "1"})


def model_failure(error: Exception) -> HTTPException:
    return HTTPException(500, f"the model failed: {one_line(str(error))}")


async def answer_http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    field = error.field if isinstance(error, BadRequest) else None
    body = error_body(error.status_code, str(error.detail), http.url.path, field)
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def answer_own_error(http: HttpRequest, error: Exception) -> Response:
    """Our own bug: the client hears of it in one line, the log has the rest."""
    return JSONResponse(error_body(500, "the server failed", http.url.path), 500)
