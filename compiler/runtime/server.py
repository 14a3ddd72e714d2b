"""Serves a language model over HTTP in the way of OpenAI's API: /v1/chat/completions,
/v1/completions, /v1/models. Of an encoder it serves /v1/embeddings.

/health tells whether the model runs, /metrics has counters as Prometheus reads them.
docs/security.md says what clients are held to; guard.py refuses requests by their head, asked.py by
their fields.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from compiler.runtime import asked
from compiler.runtime.batching import Batcher, BusyError, Request
from compiler.runtime.embedding import Embedder
from compiler.runtime.guard import Access, Guard, error_body
from compiler.runtime.text import Flow, Text

T = TypeVar("T")

# Characters up to which a text is read beside longer ones, so that it need not wait for them.
SHORT = 1 << 14
OVERHEAD = 16  # characters that a message or a text counts beside its own


@dataclass(frozen=True)
class Limits:
    """What a client may ask for: bytes of a request, seconds for them to come, tokens of an answer,
    texts to embed."""

    body_bytes: int = 1 << 20
    tokens: int = 4096
    body_seconds: float = 30.0
    texts: int = 2048
    waiting: int = 32


class Line:
    """One thread that does what waits for it, in order; with more than `waiting` in line, if given,
    it refuses."""

    def __init__(self, name: str, waiting: int | None = None) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting, self._inside, self.refused = waiting, 0, 0

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function. Raises BusyError."""
        if self._waiting is not None and self._inside > self._waiting:
            self.refused += 1
            raise BusyError(f"{self._waiting} long texts are waiting already")
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, function, *arguments
            )
        finally:
            self._inside -= 1


class Reading:
    """Parses and tokenizes away from the event loop; short requests do not wait for long ones."""

    def __init__(self, waiting: int) -> None:
        self._short, self._long = Line("short texts"), Line("long texts", waiting)

    @property
    def refused(self) -> int:
        return self._long.refused

    async def run(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that reads `size` characters. Raises BusyError."""
        line = self._short if size <= SHORT else self._long
        return await line.run(function, *arguments)


@dataclass
class Web:
    """What every server here has. `key`, where there is one, must come as a bearer token."""

    name: str
    key: str | None = None
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)

    def __post_init__(self) -> None:
        key = self.key
        if key is not None and not (key.isascii() and key.isprintable() and key.split() == [key]):
            raise ValueError("the API key must be printable ASCII without spaces, and not empty")
        self.reading = Reading(self.limits.waiting)

    def app(self, routes: Sequence[Route], close: Callable[[], None]) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(close)

        middleware = [Middleware(Guard, access=self.access)]
        if self.access.origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=sorted(self.access.origins),
                    allow_methods=["GET", "POST"],
                    allow_headers=["authorization", "content-type"],
                )
            )
        handlers = {HTTPException: _http_error, Exception: _own_error}
        common = [Route("/v1/models", self.models)]
        return Starlette(
            routes=[*routes, *common],
            lifespan=lifespan,
            middleware=middleware,
            exception_handlers=handlers,
        )

    def authorize(self, http: HttpRequest) -> None:
        given = http.headers.get("authorization", "")
        if self.key is not None and not hmac.compare_digest(
            given.encode(), f"Bearer {self.key}".encode()
        ):
            raise HTTPException(
                401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    async def body(self, http: HttpRequest) -> dict[str, Any]:
        """The JSON object of a request, of limited size."""
        self.authorize(http)
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in http.stream():
                    data += part
                    if len(data) > self.limits.body_bytes:
                        raise HTTPException(
                            413, f"the request is larger than {self.limits.body_bytes} bytes"
                        )
        except ClientDisconnect as error:
            raise HTTPException(400, "the client went away") from error
        except TimeoutError as error:
            raise HTTPException(
                408, f"the request took longer than {self.limits.body_seconds:g} s to come"
            ) from error
        with _bad_requests():
            return await self.reading.run(len(data), asked.body, bytes(data))

    async def models(self, http: HttpRequest) -> Response:
        self.authorize(http)
        return JSONResponse(
            {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "local"}]}
        )


class _Embeddings:
    """The tokens of some texts, and their embeddings as they are made. `cancelled` says that nobody
    wants them."""

    def __init__(self, embedder: Embedder, texts: Sequence[str]) -> None:
        self.cancelled = threading.Event()
        self.vectors: list[np.ndarray] = []
        self.count = 0
        self._embedder, self._texts = embedder, texts
        self._tokens: list[np.ndarray] = []

    def read(self) -> None:
        """Tokenize all texts. Raises ValueError for one that does not fit."""
        for text in self._texts:
            if self.cancelled.is_set():
                return
            self._tokens.append(self._embedder.tokens(text))
        self.count = sum(map(len, self._tokens))

    def step(self) -> bool:
        """Embed one more text; False when none is left."""
        if self.cancelled.is_set() or len(self.vectors) == len(self._tokens):
            return False
        self.vectors.append(self._embedder.embed(self._tokens[len(self.vectors)]))
        return True


@dataclass
class EmbeddingCounters:
    """What happened so far."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    texts: int = 0
    tokens: int = 0


class EmbeddingServer:
    """An encoder behind HTTP: /v1/embeddings.

    One thread runs the model. Requests that are under way take turns, text by text, so that a long
    list does not hold up a short one; beyond `waiting` of them the next is refused. A place is free
    again when the answer is taken.
    """

    def __init__(self, web: Web, embedder: Embedder) -> None:
        self.web, self.embedder = web, embedder
        self.counters, self.active = EmbeddingCounters(), 0
        self._model = Line("model")

    def app(self) -> Starlette:
        routes = [
            Route("/v1/embeddings", self._embed, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        return self.web.app(routes, lambda: None)

    async def _health(self, http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, http: HttpRequest) -> Response:
        self.web.authorize(http)
        c = self.counters
        return _prometheus(
            [
                ("requests_total", "counter", c.requests),
                ("requests_refused_total", "counter", c.refused + self.web.reading.refused),
                ("requests_cancelled_total", "counter", c.cancelled),
                ("requests_failed_total", "counter", c.failed),
                ("texts_total", "counter", c.texts),
                ("prompt_tokens_total", "counter", c.tokens),
                ("requests_active", "gauge", self.active),
            ]
        )

    async def _embed(self, http: HttpRequest) -> Response:
        body = await self.web.body(http)
        with _bad_requests():
            texts = asked.inputs(body, self.web.limits.texts)
            kind = asked.encoding(body)
        if self.active > self.web.limits.waiting:
            self.counters.refused += 1
            raise _busy(BusyError(f"{self.web.limits.waiting} requests are waiting already"))
        self.active += 1
        self.counters.requests += 1
        made = _Embeddings(self.embedder, texts)
        try:
            size = sum(len(text) + OVERHEAD for text in texts)
            if not await self._make(http, made, size):
                self.counters.cancelled += 1
                self._left(made)
                return Response(status_code=499)
        except BaseException:
            self._left(made)
            raise
        self.counters.texts += len(texts)
        self.counters.tokens += made.count
        return _Kept(
            self._json(made, kind), lambda: self._left(made), media_type="application/json"
        )

    async def _make(self, http: HttpRequest, made: _Embeddings, size: int) -> bool:
        """Make all embeddings; False where the client went away."""
        with _bad_requests():
            await self.web.reading.run(size, made.read)
        try:
            while not await http.is_disconnected():
                if not await self._model.run(made.step):
                    return True
        except Exception as error:
            self.counters.failed += 1
            raise _failure(error) from error
        return False

    def _left(self, made: _Embeddings) -> None:
        """The request's place is free."""
        made.cancelled.set()
        self.active -= 1

    async def _json(self, made: _Embeddings, kind: str) -> AsyncIterator[str]:
        """The answer in pieces: numbers as text take many times the memory of the vectors."""
        yield '{"object": "list", "data": ['
        for index, vector in enumerate(made.vectors):
            found = (
                base64.b64encode(vector.tobytes()).decode() if kind == "base64" else vector.tolist()
            )
            entry = json.dumps({"object": "embedding", "index": index, "embedding": found})
            yield f", {entry}" if index else entry
            await asyncio.sleep(0)  # a reader that keeps up would never let others have the loop
        usage = {"prompt_tokens": made.count, "total_tokens": made.count}
        yield f'], "model": {json.dumps(self.web.name)}, "usage": {json.dumps(usage)}}}'


class _Answer:
    """The tokens of an answer as text, piece by piece, for the event loop."""

    def __init__(self, server: Server, tokens: list[int], wanted: asked.Wanted) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self._writing = server.writing
        self._flow = Flow(server.text, wanted.stops)
        self._request = Request(tokens, wanted.limit, wanted.sampling, self._emit)
        self._over = False
        self._error: Exception | None = None
        self.prompt, self.count, self.finish = len(tokens), 0, "length"
        server.batcher.submit(self._request)

    def cancel(self) -> None:
        self._request.cancelled.set()

    async def parts(self) -> AsyncIterator[str]:
        """Pieces of text; whoever stops reading cancels the request."""
        try:
            while not self._over:
                tokens = await self._more()
                part = await self._writing.run(self._settle, tokens)
                if part:
                    yield part
                if self._error is not None:
                    raise self._error
        finally:
            self.cancel()

    def usage(self) -> dict[str, int]:
        total = self.prompt + self.count
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.count,
            "total_tokens": total,
        }

    def _emit(self, token: int | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, token)

    async def _more(self) -> list[int]:
        """The tokens that came meanwhile, at least one unless the answer is over."""
        tokens: list[int] = []
        while not self._over and (not tokens or not self._arrived.empty()):
            item = await self._arrived.get()
            if isinstance(item, int):
                tokens.append(item)
                continue
            self._over, self._error = True, item
        return tokens

    def _settle(self, tokens: list[int]) -> str:
        """The text that some more tokens settle."""
        parts = []
        for token in tokens:
            self.count += 1
            parts.append(self._flow.push(token))
            if self._flow.ended:
                self._over, self._error, self.finish = True, None, "stop"
                return "".join(parts)
        if self._over:
            parts.append(self._flow.rest())
        return "".join(parts)


class Server:
    """A language model behind HTTP."""

    def __init__(self, web: Web, text: Text, batcher: Batcher) -> None:
        self.web, self.text, self.batcher = web, text, batcher
        self.writing = Line("answers")

    def app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        return self.web.app(routes, self.batcher.close)

    async def _chat(self, http: HttpRequest) -> Response:
        body = await self.web.body(http)
        with _bad_requests():
            wanted, messages = asked.wanted(body, self.web.limits.tokens), asked.messages(body)
            size = sum(len(m["role"]) + len(m["content"]) + OVERHEAD for m in messages)
            tokens = await self.web.reading.run(size, self.text.conversation, messages)
        return await self._answer(http, tokens, wanted, "chat.completion")

    async def _complete(self, http: HttpRequest) -> Response:
        body = await self.web.body(http)
        with _bad_requests():
            wanted, prompt = (
                asked.wanted(body, self.web.limits.tokens),
                asked.prompt(body, self.batcher.model.context),
            )
            if isinstance(prompt, str):
                prompt = await self.web.reading.run(len(prompt), self.text.encode, prompt)
        return await self._answer(http, prompt, wanted, "text_completion")

    async def _answer(
        self, http: HttpRequest, tokens: list[int], wanted: asked.Wanted, kind: str
    ) -> Response:
        with _bad_requests():
            # In front of the answer, which would hold a list of any length until the garbage
            # collector comes by.
            self.batcher.check(tokens)
            answer = _Answer(self, tokens, wanted)
        if wanted.stream:
            events = self._events(answer, wanted, kind)
            return _Kept(events, answer.cancel, media_type="text/event-stream")
        task = asyncio.ensure_future(_joined(answer))
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.25)
                if not task.done() and await http.is_disconnected():
                    return Response(status_code=499)
            text = task.result()
        except Exception as error:
            raise _failure(error) from error
        finally:
            task.cancel()
            answer.cancel()
        choice = {"index": 0, "finish_reason": answer.finish, "logprobs": None}
        choice |= (
            {"message": {"role": "assistant", "content": text}}
            if kind == "chat.completion"
            else {"text": text}
        )
        return JSONResponse(self._head(kind) | {"choices": [choice], "usage": answer.usage()})

    async def _events(self, answer: _Answer, wanted: asked.Wanted, kind: str) -> AsyncIterator[str]:
        chat = kind == "chat.completion"
        head = self._head(f"{kind}.chunk" if chat else kind)

        def event(part: Mapping[str, Any] | str, finish: str | None = None) -> str:
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
            choice |= {"delta": part} if chat else {"text": part}
            return f"data: {json.dumps(head | {'choices': [choice]})}\n\n"

        if chat:
            yield event({"role": "assistant", "content": ""})
        try:
            async for part in answer.parts():
                yield event({"content": part} if chat else part)
        except Exception as error:
            failed = _failure(error)
            yield f"data: {json.dumps(error_body(failed.status_code, failed.detail))}\n\n"
            return
        yield event({} if chat else "", answer.finish)
        if wanted.usage:
            yield f"data: {json.dumps(head | {'choices': [], 'usage': answer.usage()})}\n\n"
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.web.name,
        }

    async def _health(self, http: HttpRequest) -> Response:
        alive = self.batcher.alive
        return JSONResponse(
            {"status": "ok" if alive else "the model has stopped"}, 200 if alive else 503
        )

    async def _metrics(self, http: HttpRequest) -> Response:
        self.web.authorize(http)
        c = self.batcher.counters
        return _prometheus(
            [
                ("requests_total", "counter", c.requests),
                ("requests_refused_total", "counter", c.refused + self.web.reading.refused),
                ("requests_cancelled_total", "counter", c.cancelled),
                ("requests_failed_total", "counter", c.failed),
                ("prompt_tokens_total", "counter", c.prompt_tokens),
                ("generated_tokens_total", "counter", c.generated_tokens),
                ("requests_active", "gauge", self.batcher.active),
                ("requests_waiting", "gauge", self.batcher.queued),
            ],
            _quantiles(c.first_token),
        )


class _Kept(StreamingResponse):
    """A response in pieces; `left` is called when it is given or the client is gone, even before
    the first piece."""

    def __init__(
        self, pieces: AsyncIterator[str], left: Callable[[], None], media_type: str
    ) -> None:
        super().__init__(pieces, media_type=media_type)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


async def _joined(answer: _Answer) -> str:
    return "".join([part async for part in answer.parts()])


def _prometheus(rows: Iterable[tuple[str, str, int]], lines: Sequence[str] = ()) -> Response:
    found = []
    for name, kind, value in rows:
        found += [f"# TYPE coral_bundle_{name} {kind}", f"coral_bundle_{name} {value}"]
    return PlainTextResponse(
        "\n".join([*found, *lines]) + "\n", media_type="text/plain; version=0.0.4"
    )


def _quantiles(seconds: Sequence[float]) -> list[str]:
    """What Prometheus reads of the seconds to the first token."""
    times = sorted(seconds)
    lines = ["# TYPE coral_bundle_first_token_seconds summary"]
    for share in (0.5, 0.95) if times else ():
        found = times[min(len(times) - 1, int(share * len(times)))]
        lines.append(f'coral_bundle_first_token_seconds{{quantile="{share}"}} {found:.6f}')
    return lines


@contextlib.contextmanager
def _bad_requests() -> Iterator[None]:
    """What the client asked wrongly, and what there is no room for."""
    try:
        yield
    except BusyError as error:
        raise _busy(error) from error
    except ValueError as error:
        raise HTTPException(400, _line(error)) from error


def _busy(error: BusyError) -> HTTPException:
    return HTTPException(429, f"{error}: try again", {"Retry-After": "1"})


def _failure(error: Exception) -> HTTPException:
    return HTTPException(500, f"the model failed: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        error_body(error.status_code, str(error.detail)),
        error.status_code,
        dict(error.headers or {}),
    )


async def _own_error(http: HttpRequest, error: Exception) -> Response:
    """Our own bug: the client hears of it in one line, the log has the rest."""
    return JSONResponse(error_body(500, "the server failed"), 500)
