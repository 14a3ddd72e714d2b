"""/v1/embeddings: an encoder behind HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import Metric
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from compiler.runtime.batching import BusyError
from compiler.runtime.embedding import Embedder
from compiler.runtime.server import requests
from compiler.runtime.server.errors import CLIENT_LEFT, model_failure, request_errors
from compiler.runtime.server.status import metric, request_metrics
from compiler.runtime.server.web import ReleasingResponse, Web
from compiler.runtime.server.workers import OVERHEAD, Worker


@dataclass
class EmbeddingCounters:
    """What happened so far. Only the event loop's thread counts."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    texts: int = 0
    tokens: int = 0


class EmbeddingJob:
    """Some texts, their tokens, and their embeddings as they are made.

    `tokenize` and `embed_next` run in the threads of workers, one after the other. `cancelled` is
    set on the event loop and says that nobody wants the rest. With `cuts`, texts that the model
    cannot take as a whole end where it does; else they are refused.
    """

    def __init__(self, embedder: Embedder, texts: Sequence[str], cuts: bool = False) -> None:
        self.cancelled = threading.Event()
        self.vectors: list[np.ndarray] = []
        self.token_count = 0
        self._embedder = embedder
        self._texts = texts
        self._cuts = cuts
        self._tokens: list[np.ndarray] = []

    @property
    def size(self) -> int:
        """Characters to be tokenized."""
        return sum(len(text) + OVERHEAD for text in self._texts)

    def tokenize(self) -> None:
        """Tokenize all texts. Raises ValueError for one that does not fit."""
        for text in self._texts:
            if self.cancelled.is_set():
                return
            self._tokens.append(self._embedder.tokens(text, self._cuts))
        self.token_count = sum(len(tokens) for tokens in self._tokens)

    def embed_next(self) -> bool:
        """Embed one more text; False when none is left."""
        number = len(self.vectors)
        if self.cancelled.is_set() or number == len(self._tokens):
            return False
        self.vectors.append(self._embedder.embed(self._tokens[number]))
        return True

    async def pieces(self, entry: Callable[[int, np.ndarray], object]) -> AsyncIterator[str]:
        """The entries of a JSON list, one for each text: numbers as text take many times the
        memory of the vectors."""
        for index, vector in enumerate(self.vectors):
            separator = ", " if index else ""
            yield separator + json.dumps(entry(index, vector))
            # A client that reads as fast as we write would never let others have the event loop.
            await asyncio.sleep(0)


class EmbeddingServer:
    """An encoder's endpoint.

    One worker runs the model. Requests that are under way take turns, text by text, so that a long
    list does not hold up a short one. A request has a place until its answer is sent; while one
    more than `limits.waiting` places are taken, the next request is refused.
    """

    def __init__(self, web: Web, embedder: Embedder) -> None:
        self.web = web
        self.embedder = embedder
        self.counters = EmbeddingCounters()
        self.active = 0
        self._model = Worker("model")

    @property
    def alive(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing runs on without a request."""

    def metrics(self) -> list[Metric]:
        counters = self.counters
        refused = counters.refused + self.web.readers.refused
        return [
            *request_metrics(counters, refused),
            metric("texts_total", "counter", counters.texts),
            metric("prompt_tokens_total", "counter", counters.tokens),
            metric("requests_active", "gauge", self.active),
        ]

    async def embed(self, http: HttpRequest) -> Response:
        """Embeds one or several texts."""
        body = await self.web.read_body(http)
        with request_errors():
            texts = requests.embedding_inputs(body, self.web.limits.texts)
            encoding = requests.ENCODING_FORMAT.read(body)
        job = EmbeddingJob(self.embedder, texts)
        return await self.respond(http, job, lambda: _json_pieces(job, encoding, self.web.name))

    async def respond(
        self, http: HttpRequest, job: EmbeddingJob, pieces: Callable[[], AsyncIterator[str]]
    ) -> Response:
        """Runs a job; `pieces` gives its answer then."""
        with request_errors():
            self._take_place()
        try:
            finished = await self._run(http, job)
        except BaseException:
            self._free_place(job)
            raise
        if not finished:
            self.counters.cancelled += 1
            self._free_place(job)
            return Response(status_code=CLIENT_LEFT)
        self.counters.texts += len(job.vectors)
        self.counters.tokens += job.token_count
        return ReleasingResponse(pieces(), lambda: self._free_place(job), "application/json")

    def _take_place(self) -> None:
        waiting = self.web.limits.waiting
        if self.active > waiting:
            self.counters.refused += 1
            raise BusyError(f"{waiting} requests are waiting already")
        self.active += 1
        self.counters.requests += 1

    def _free_place(self, job: EmbeddingJob) -> None:
        job.cancelled.set()
        self.active -= 1

    async def _run(self, http: HttpRequest, job: EmbeddingJob) -> bool:
        """Make all embeddings; False where the client went away."""
        with request_errors():
            await self.web.readers.run(job.size, job.tokenize)
        try:
            while not await http.is_disconnected():
                # One text at a time: the worker's line is where requests take turns.
                if not await self._model.run(job.embed_next):
                    return True
        except Exception as error:
            self.counters.failed += 1
            raise model_failure(error) from error
        return False


async def _json_pieces(job: EmbeddingJob, encoding: str, model: str) -> AsyncIterator[str]:
    """The answer's JSON in pieces."""

    def entry(index: int, vector: np.ndarray) -> object:
        return {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}

    yield '{"object": "list", "data": ['
    async for piece in job.pieces(entry):
        yield piece
    usage = {"prompt_tokens": job.token_count, "total_tokens": job.token_count}
    yield f'], "model": {json.dumps(model)}, "usage": {json.dumps(usage)}}}'


def _encoded(vector: np.ndarray, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
