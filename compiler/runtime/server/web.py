"""What all endpoints share: the model's name, the API key, the limits and how a body is read."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from compiler.runtime.server.card import ModelCard
from compiler.runtime.server.errors import request_errors
from compiler.runtime.server.fields import parse_body
from compiler.runtime.server.guard import Access
from compiler.runtime.server.workers import TextReaders


@dataclass(frozen=True)
class Limits:
    """How much a client may ask for.

    body_bytes:   bytes of a request's body
    tokens:       tokens of an answer
    body_seconds: how long a body may take to come
    texts:        texts of a request for embeddings
    waiting:      requests that may wait: long texts to be read, embeddings to be made, pictures
    """

    body_bytes: int = 1 << 20
    tokens: int = 4096
    body_seconds: float = 30.0
    texts: int = 2048
    waiting: int = 32


@dataclass
class Web:
    """What every endpoint needs besides its model.

    name:   of the model, as clients see it
    key:    where there is one, clients must send it as a bearer token
    limits: how much a client may ask for
    access: names that the server answers to, and web pages that may use it
    card:   what clients may know of the model

    Raises ValueError for a key that no HTTP header can carry as it stands.
    """

    name: str
    key: str | None = None
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    card: ModelCard = field(default_factory=ModelCard)
    readers: TextReaders = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.key is not None and not _fits_a_header(self.key):
            raise ValueError("the API key must be printable ASCII without spaces, and not empty")
        self.readers = TextReaders(self.limits.waiting)

    def authorize(self, http: HttpRequest, key: str | None = None) -> None:
        """Refuses a request without the API key, where there is one. `key` is what a form gives;
        without it the key stands in the header."""
        if self.key is None:
            return
        given = http.headers.get("authorization", "").encode()
        wanted = f"Bearer {self.key}".encode()
        if key is not None:
            given, wanted = key.encode(), self.key.encode()
        # In constant time: how long it takes tells nothing about the key.
        if not hmac.compare_digest(given, wanted):
            message = "the API key is missing or wrong"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    async def read_body(self, http: HttpRequest) -> dict[str, Any]:
        """The JSON object of a request that may be made. Refuses what is too large or too slow."""
        self.authorize(http)
        data = await self.receive(http)
        with request_errors():
            return await self.readers.run(len(data), parse_body, data)

    async def receive(self, http: HttpRequest) -> bytes:
        """The body of a request. Refuses what is too large or too slow."""
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in http.stream():
                    data += part
                    if len(data) > self.limits.body_bytes:
                        message = f"the request is larger than {self.limits.body_bytes} bytes"
                        raise HTTPException(413, message)
        except ClientDisconnect as error:
            raise HTTPException(400, "the client went away") from error
        except TimeoutError as error:
            message = f"the request took longer than {self.limits.body_seconds:g} s to come"
            raise HTTPException(408, message) from error
        return bytes(data)


def _fits_a_header(key: str) -> bool:
    without_spaces = key.split() == [key]
    return without_spaces and key.isascii() and key.isprintable()


class ReleasingResponse(StreamingResponse):
    """A response in pieces that frees what it holds.

    `release` is called once the response is sent or the client has left, even where that happens
    before the first piece, so that no generator has begun that could clean up.
    """

    def __init__(
        self, pieces: AsyncIterator[str], release: Callable[[], None], media_type: str
    ) -> None:
        super().__init__(pieces, media_type=media_type)
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
