"""/v1/models, /health and /metrics, which every server has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from compiler.runtime.server.web import Web

_PREFIX = "coral_bundle"
_QUANTILES = (0.5, 0.95)


class ModelServer(Protocol):
    """A model behind endpoints, as far as its status is concerned."""

    web: Web

    @property
    def alive(self) -> bool:
        """Whether the model can answer."""

    def metrics(self) -> list[Metric]:
        """What Prometheus may know."""

    def close(self) -> None:
        """End what runs in other threads."""


class StatusEndpoints:
    """Tells about a server."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(server))

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
        text = generate_latest(self._registry)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Metrics(Collector):
    """The numbers of a server as they are when Prometheus asks."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        return self._server.metrics()


class RequestCounters(Protocol):
    """What any server counts of its requests."""

    requests: int
    cancelled: int
    failed: int


def request_metrics(counters: RequestCounters, refused: int) -> list[Metric]:
    """The numbers of requests that every server has."""
    return [
        metric("requests_total", "counter", counters.requests),
        metric("requests_refused_total", "counter", refused),
        metric("requests_cancelled_total", "counter", counters.cancelled),
        metric("requests_failed_total", "counter", counters.failed),
    ]


def metric(name: str, kind: Literal["counter", "gauge"], value: int) -> Metric:
    """A number; the name of a counter ends with `_total`."""
    family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    return family(f"{_PREFIX}_{name}", name.replace("_", " "), value)


def summary(name: str, values: Sequence[float]) -> Metric:
    """Quantiles of some values; none where there are no values."""
    found = Metric(f"{_PREFIX}_{name}", name.replace("_", " "), "summary")
    ordered = sorted(values)
    for quantile in _QUANTILES if ordered else ():
        index = min(len(ordered) - 1, int(quantile * len(ordered)))
        found.add_sample(found.name, {"quantile": str(quantile)}, ordered[index])
    return found
