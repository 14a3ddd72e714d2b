"""Serves a language model over HTTP in the way of OpenAI's API: /v1/chat/completions,
/v1/completions, /v1/models. Of an encoder it serves /v1/embeddings.

/health tells whether the model runs, /metrics has counters as Prometheus reads them.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from compiler.runtime.batching import Batcher, BusyError, Request
from compiler.runtime.embedding import Embedder
from compiler.runtime.sampling import Sampling
from compiler.runtime.text import Flow, Text

# What clients may ask for that would change the answer and is not here.
_UNSUPPORTED = (
    "tools",
    "functions",
    "response_format",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "suffix",
    "echo",
)


@dataclass(frozen=True)
class Limits:
    """What a client may ask for: bytes of a request, seconds for them to come, tokens of an answer."""

    body_bytes: int = 1 << 20
    tokens: int = 4096
    body_seconds: float = 30.0


@dataclass(frozen=True)
class _Asked:
    """A request that was understood."""

    tokens: list[int]
    limit: int
    sampling: Sampling
    stops: list[str]
    stream: bool
    usage: bool


class _Answer:
    """The tokens of an answer as text, piece by piece, for the event loop."""

    def __init__(self, server: Server, asked: _Asked) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self._flow = Flow(server.text, asked.stops)
        self._request = Request(asked.tokens, asked.limit, asked.sampling, self._emit)
        self.count, self.finish = 0, "length"
        server.batcher.submit(self._request)

    def _emit(self, token: int | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._tokens.put_nowait, token)

    async def parts(self) -> AsyncIterator[str]:
        """Pieces of text; whoever stops reading cancels the request."""
        try:
            while (token := await self._tokens.get()) is not None:
                if isinstance(token, Exception):
                    raise token
                self.count += 1
                part = self._flow.push(token)
                if part:
                    yield part
                if self._flow.ended:
                    self.finish = "stop"
                    return
            part = self._flow.rest()
            if part:
                yield part
        finally:
            self._request.cancelled.set()


@dataclass
class Web:
    """What every server here has. `key`, where there is one, must come as a bearer token."""

    name: str
    key: str | None = None
    limits: Limits = field(default_factory=Limits)

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
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "the request is not JSON") from error
        if not isinstance(found, dict):
            raise HTTPException(400, "the request is not a JSON object")
        return found

    async def models(self, http: HttpRequest) -> Response:
        self.authorize(http)
        return JSONResponse(
            {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "local"}]}
        )


@dataclass
class EmbeddingServer:
    """An encoder behind HTTP: /v1/embeddings."""

    web: Web
    embedder: Embedder

    def app(self) -> Starlette:
        routes = [
            Route("/v1/embeddings", self._embed, methods=["POST"]),
            Route("/v1/models", self.web.models),
            Route("/health", self._health),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    async def _health(self, http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def _embed(self, http: HttpRequest) -> Response:
        body = await self.web.body(http)
        given, kind = body.get("input"), body.get("encoding_format", "float")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise HTTPException(400, "input: a text, or a list of texts")
        if kind not in ("float", "base64") or body.get("dimensions") is not None:
            raise HTTPException(
                400, "encoding_format: float or base64; dimensions: is not supported"
            )
        try:
            tokens = [self.embedder.tokens(text) for text in texts]
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        data = []
        for index, own in enumerate(tokens):
            vector = await asyncio.to_thread(self.embedder.embed, own)
            found = (
                base64.b64encode(vector.tobytes()).decode() if kind == "base64" else vector.tolist()
            )
            data.append({"object": "embedding", "index": index, "embedding": found})
        count = sum(map(len, tokens))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse(
            {"object": "list", "data": data, "model": self.web.name, "usage": usage}
        )


@dataclass
class Server:
    """A language model behind HTTP."""

    web: Web
    text: Text
    batcher: Batcher

    def app(self) -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.batcher.close)

        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self.web.models),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        return Starlette(
            routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error}
        )

    async def _chat(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        messages = body.get("messages")
        if (
            not isinstance(messages, list)
            or not all(_is_message(m) for m in messages)
            or not messages
        ):
            raise HTTPException(400, "messages: a list of {role, content} with text as content")
        plain = [{"role": m["role"], "content": _content(m["content"])} for m in messages]
        try:
            tokens = self.text.conversation(plain)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return await self._answer(http, self._asked(body, tokens), "chat.completion")

    async def _complete(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            prompt = prompt[0]
        if isinstance(prompt, str):
            tokens = self.text.encode(prompt)
        elif isinstance(prompt, list) and all(
            type(t) is int and 0 <= t < self.text.size for t in prompt
        ):
            tokens = prompt
        else:
            raise HTTPException(400, "prompt: a text, or a list of token numbers")
        return await self._answer(http, self._asked(body, tokens), "text_completion")

    async def _answer(self, http: HttpRequest, asked: _Asked, kind: str) -> Response:
        try:
            answer = _Answer(self, asked)
        except BusyError as error:
            raise HTTPException(429, f"{error}: try again", {"Retry-After": "1"}) from error
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        if asked.stream:
            return StreamingResponse(
                self._events(answer, asked, kind), media_type="text/event-stream"
            )
        task = asyncio.ensure_future(_joined(answer))
        while not task.done():
            await asyncio.wait([task], timeout=0.25)
            if not task.done() and await http.is_disconnected():
                task.cancel()
                return Response(status_code=499)
        try:
            text = task.result()
        except Exception as error:
            raise HTTPException(500, f"the model failed: {error}") from error
        choice = {"index": 0, "finish_reason": answer.finish, "logprobs": None}
        choice |= (
            {"message": {"role": "assistant", "content": text}}
            if kind == "chat.completion"
            else {"text": text}
        )
        return JSONResponse(
            self._head(kind) | {"choices": [choice], "usage": _usage(asked, answer)}
        )

    async def _events(self, answer: _Answer, asked: _Asked, kind: str) -> AsyncIterator[str]:
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
            yield f"data: {json.dumps(_error(500, f'the model failed: {error}'))}\n\n"
            return
        yield event({} if chat else "", answer.finish)
        if asked.usage:
            yield f"data: {json.dumps(head | {'choices': [], 'usage': _usage(asked, answer)})}\n\n"
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
        lines = []
        for name, kind, value in (
            ("requests_total", "counter", c.requests),
            ("requests_refused_total", "counter", c.refused),
            ("requests_cancelled_total", "counter", c.cancelled),
            ("requests_failed_total", "counter", c.failed),
            ("prompt_tokens_total", "counter", c.prompt_tokens),
            ("generated_tokens_total", "counter", c.generated_tokens),
            ("requests_active", "gauge", self.batcher.active),
            ("requests_waiting", "gauge", self.batcher.queued),
        ):
            lines += [f"# TYPE coral_bundle_{name} {kind}", f"coral_bundle_{name} {value}"]
        times = sorted(c.first_token)
        lines.append("# TYPE coral_bundle_first_token_seconds summary")
        for share in (0.5, 0.95) if times else ():
            seconds = times[min(len(times) - 1, int(share * len(times)))]
            lines.append(f'coral_bundle_first_token_seconds{{quantile="{share}"}} {seconds:.6f}')
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _body(self, http: HttpRequest) -> dict[str, Any]:
        found = await self.web.body(http)
        for name in _UNSUPPORTED:
            if found.get(name):
                raise HTTPException(400, f"{name}: is not supported")
        return found

    def _asked(self, body: Mapping[str, Any], tokens: list[int]) -> _Asked:
        def number(name: str, default: float, low: float, high: float) -> float:
            value = body.get(name)
            value = default if value is None else value
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not low <= value <= high
            ):
                raise HTTPException(400, f"{name}: a number from {low} to {high}")
            return value

        if number("n", 1, 1, 1) != 1 or number("best_of", 1, 1, 1) != 1:
            raise HTTPException(400, "n: is not supported above 1")
        for name in ("presence_penalty", "frequency_penalty"):
            number(name, 0, 0, 0)
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        if (
            not isinstance(stops, list)
            or len(stops) > 16
            or not all(isinstance(s, str) and s for s in stops)
        ):
            raise HTTPException(400, "stop: a text, or a list of up to 16")
        options = body.get("stream_options") or {}
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        wanted = {"max_tokens": 256 if most is None else most}
        limit = wanted["max_tokens"]
        if (
            isinstance(limit, bool)
            or not isinstance(limit, int)
            or not 1 <= limit <= self.web.limits.tokens
        ):
            raise HTTPException(400, f"max_tokens: a number from 1 to {self.web.limits.tokens}")
        seed = body.get("seed")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise HTTPException(400, "seed: a number of at least 0")
        sampling = Sampling(
            temperature=number("temperature", 1.0, 0, 2),
            top_k=int(number("top_k", 0, 0, 1 << 20)),
            top_p=number("top_p", 1.0, 0, 1),
            min_p=number("min_p", 0.0, 0, 1),
            repetition_penalty=number("repetition_penalty", 1.0, 0.1, 10),
            seed=seed,
        )
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return _Asked(tokens, limit, sampling, stops, bool(body.get("stream")), usage)


async def _joined(answer: _Answer) -> str:
    return "".join([part async for part in answer.parts()])


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and _content(message.get("content")) is not None
    )


def _content(content: object) -> str | None:
    """A message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(p, dict) and isinstance(p.get("text"), str) for p in content
    ):
        return "".join(p["text"] for p in content)
    return None


def _usage(asked: _Asked, answer: _Answer) -> dict[str, int]:
    prompt = len(asked.tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer.count,
        "total_tokens": prompt + answer.count,
    }


def _error(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        _error(error.status_code, str(error.detail)), error.status_code, dict(error.headers or {})
    )
