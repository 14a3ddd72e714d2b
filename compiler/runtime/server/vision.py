"""/v1/vision/...: a classifier or a detector behind HTTP, also as DeepStack's clients speak."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from compiler.runtime.batching import BusyError
from compiler.runtime.runner import Runner
from compiler.runtime.server import requests
from compiler.runtime.server.errors import CLIENT_LEFT, model_failure, request_errors
from compiler.runtime.server.forms import Form, read_form
from compiler.runtime.server.status import metric, request_metrics, summary
from compiler.runtime.server.web import Web
from compiler.runtime.server.workers import Worker
from compiler.runtime.vision import Prediction, VisionError, as_json

# What a detector returns where a client of DeepStack names no confidence, as DeepStack has it.
DEEPSTACK_CONFIDENCE = 0.4
_KEPT_SECONDS = 1000


@dataclass
class VisionCounters:
    """What happened so far. Only the event loop's thread counts."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    predictions: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_SECONDS))


@dataclass(frozen=True)
class Seen:
    """What is in a picture of `size` (height, width), and how long it took."""

    size: tuple[int, int]
    predictions: Sequence[Prediction]
    seconds: float


class ClientLeftError(Exception):
    """Nobody waits for the answer."""


class VisionServer:
    """The endpoints of a classifier or a detector.

    One worker decodes pictures and reads outputs; the runner's threads run the model, several
    pictures at once where there are several devices. A request has a place from before its body is
    read until it is answered, so that no more than `limits.waiting` and one bodies are in memory.

    Raises VisionError for a bundle that does not say how it takes pictures or what its outputs
    mean.
    """

    def __init__(self, web: Web, runner: Runner) -> None:
        self.web = web
        self.runner = runner
        task = runner.vision.task
        if task is None:
            raise VisionError("the bundle does not say what its outputs mean: it cannot be served")
        self.task: str = task
        self.counters = VisionCounters()
        self.active = 0
        self._worker = Worker("pictures")

    @property
    def alive(self) -> bool:
        return True

    def close(self) -> None:
        self.runner.close()

    def metrics(self) -> list[Metric]:
        counters = self.counters
        return [
            *request_metrics(counters, counters.refused),
            metric("predictions_total", "counter", counters.predictions),
            metric("requests_active", "gauge", self.active),
            summary("picture_seconds", counters.seconds),
        ]

    async def look(self, http: HttpRequest) -> Response:
        """Says what is in the picture that is the body."""
        self.web.authorize(http)
        with request_errors():
            least = requests.min_confidence(http.query_params.get("min_confidence"))
            most = requests.most_predictions(http.query_params.get("top"))
            place = self._place()
        with place:
            body = await self.web.receive(http)
            try:
                seen = await self._look(http, body, least, most)
            except ClientLeftError:
                return Response(status_code=CLIENT_LEFT)
        return JSONResponse(as_json(self.task, seen.size, seen.predictions))

    async def deepstack(self, http: HttpRequest) -> Response:
        """Says what is in the picture of a form, in the words of DeepStack."""
        try:
            with request_errors():
                place = self._place()
            with place:
                seen = await self._look_at_form(http)
        except ClientLeftError:
            return Response(status_code=CLIENT_LEFT)
        except HTTPException as error:
            body = {"success": False, "error": str(error.detail), "duration": 0}
            return JSONResponse(body, error.status_code, dict(error.headers or {}))
        found = [_deepstack_entry(prediction) for prediction in seen.predictions]
        return JSONResponse({"success": True, "predictions": found, "duration": seen.seconds})

    async def _look_at_form(self, http: HttpRequest) -> Seen:
        # Where the key is in the header, a wrong one ends the request before its body is read.
        in_header = "authorization" in http.headers
        if in_header:
            self.web.authorize(http)
        form = await self._read_form(http)
        if not in_header:
            self.web.authorize(http, form.fields.get("api_key", ""))
        with request_errors():
            least = requests.min_confidence(form.fields.get("min_confidence") or None)
            picture = _picture(form)
        return await self._look(http, picture, DEEPSTACK_CONFIDENCE if least is None else least)

    async def _read_form(self, http: HttpRequest) -> Form:
        # The body is let go at the end of this function: the form holds a copy of the picture.
        body = await self.web.receive(http)
        content_type = http.headers.get("content-type", "")
        with request_errors():
            return await self._worker.run(read_form, content_type, body)

    async def _look(
        self, http: HttpRequest, picture: bytes, least: float | None, most: int | None = None
    ) -> Seen:
        """Raises HTTPException, and ClientLeftError where the client went away."""
        start = time.perf_counter()
        vision = self.runner.vision
        await self._require_client(http)
        with request_errors():
            prepared = await self._worker.run(vision.prepare, picture)
        await self._require_client(http)
        try:
            outputs = await self.runner.run_async(self.runner.first_step(vision.inputs(prepared)))
            found = await self._worker.run(vision.read, outputs, prepared, least, most)
        except Exception as error:
            self.counters.failed += 1
            raise model_failure(error) from error
        seconds = time.perf_counter() - start
        self.counters.predictions += len(found)
        self.counters.seconds.append(seconds)
        return Seen(prepared.size, found, seconds)

    async def _require_client(self, http: HttpRequest) -> None:
        if await http.is_disconnected():
            self.counters.cancelled += 1
            raise ClientLeftError

    def _place(self) -> AbstractContextManager[None]:
        """A place for a request. Raises BusyError."""
        waiting = self.web.limits.waiting
        if self.active > waiting:
            self.counters.refused += 1
            raise BusyError(f"{waiting} requests are waiting already")
        self.counters.requests += 1
        return self._taken()

    @contextmanager
    def _taken(self) -> Iterator[None]:
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1


def _picture(form: Form) -> bytes:
    if "image" not in form.files:
        raise ValueError("No valid image file found")  # in DeepStack's own words
    return form.files["image"]


def _deepstack_entry(prediction: Prediction) -> dict[str, object]:
    assert prediction.box is not None
    left, top, right, bottom = (round(side) for side in prediction.box)
    return {
        "label": prediction.label,
        "confidence": prediction.score,
        "x_min": left,
        "y_min": top,
        "x_max": right,
        "y_max": bottom,
    }
