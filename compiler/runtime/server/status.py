"""/v1/models, /health and /metrics, which every server has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from compiler.runtime.server.web import Web

_PREFIX = "coral_bundle"
_QUANTILES = (0.5, 0.95)


class ModelServer(Protocol):
    """A model behind endpoints, as far as its status is concerned."""

    web: Web

    @property
    def alive(self) -> bool:
        """Whether the model can answer."""

    def metrics(self) -> list[str]:
        """Lines of Prometheus's text format."""

    def close(self) -> None:
        """End what runs in other threads."""


class StatusEndpoints:
    """Tells about a server."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    async def models(self, http: HttpRequest) -> Response:
        self._server.web.authorize(http)
        model = {"id": self._server.web.name, "object": "model", "owned_by": "local"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, http: HttpRequest) -> Response:
        # Without the API key, as load balancers ask.
        if self._server.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "the model has stopped"}, 503)

    async def metrics(self, http: HttpRequest) -> Response:
        self._server.web.authorize(http)
        text = "\n".join(self._server.metrics()) + "\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def metric(name: str, kind: Literal["counter", "gauge"], value: int) -> list[str]:
    """A number as Prometheus reads it."""
    return [f"# TYPE {_PREFIX}_{name} {kind}", f"{_PREFIX}_{name} {value}"]


def summary(name: str, values: Sequence[float]) -> list[str]:
    """Quantiles of some values as Prometheus reads them; none where there are no values."""
    lines = [f"# TYPE {_PREFIX}_{name} summary"]
    ordered = sorted(values)
    if not ordered:
        return lines
    last = len(ordered) - 1
    for quantile in _QUANTILES:
        index = min(last, int(quantile * len(ordered)))
        lines.append(f'{_PREFIX}_{name}{{quantile="{quantile}"}} {ordered[index]:.6f}')
    return lines
