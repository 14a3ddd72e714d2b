"""All endpoints, and the application that they make.

To add one, write its handler in completions.py, embeddings.py, ollama.py, vision.py or status.py,
declare the fields of its body in requests.py or ollama_requests.py, and list it here; where its
body is no JSON, in BODY_TYPES too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from compiler.runtime.server.completions import CompletionServer
from compiler.runtime.server.embeddings import EmbeddingServer
from compiler.runtime.server.errors import answer_http_error, answer_own_error
from compiler.runtime.server.forms import FORM_TYPE
from compiler.runtime.server.guard import JSON, Access, Guard
from compiler.runtime.server.ollama import OllamaAnswers, OllamaEmbeddings, OllamaModels
from compiler.runtime.server.status import StatusEndpoints
from compiler.runtime.server.vision import VisionServer
from compiler.runtime.server.web import Web

Server = CompletionServer | EmbeddingServer | VisionServer

# None of them can a page send to another origin without asking first.
_PICTURES = frozenset(
    {"image/png", "image/jpeg", "image/jpg", "image/bmp", "image/webp", "application/octet-stream"}
)
DEEPSTACK = "/v1/vision/detection"
DETECT = "/v1/vision/detect"
CLASSIFY = "/v1/vision/classify"
BODY_TYPES = {DEEPSTACK: frozenset({FORM_TYPE}), DETECT: _PICTURES, CLASSIFY: _PICTURES}


def endpoints(server: Server) -> list[Route]:
    """The endpoints of a language model, an encoder, a classifier or a detector."""
    routes: list[Route] = []
    if isinstance(server, CompletionServer):
        answers = OllamaAnswers(server)
        routes += [
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/completions", server.complete, methods=["POST"]),
            Route("/api/chat", answers.chat, methods=["POST"]),
            Route("/api/generate", answers.generate, methods=["POST"]),
            *_ollama_models(server.web, _capabilities(server)),
        ]
    if isinstance(server, EmbeddingServer):
        embeddings = OllamaEmbeddings(server)
        routes += [
            Route("/v1/embeddings", server.embed, methods=["POST"]),
            Route("/api/embed", embeddings.embed, methods=["POST"]),
            Route("/api/embeddings", embeddings.embed_one, methods=["POST"]),
            *_ollama_models(server.web, ["embedding"]),
        ]
    if isinstance(server, VisionServer) and server.task == "classify":
        routes += [
            Route(CLASSIFY, server.look, methods=["POST"]),
        ]
    if isinstance(server, VisionServer) and server.task == "detect":
        routes += [
            Route(DETECT, server.look, methods=["POST"]),
            Route(DEEPSTACK, server.deepstack, methods=["POST"]),
        ]
    status = StatusEndpoints(server)
    routes += [
        Route("/v1/models", status.models),
        Route("/health", status.health),
        Route("/metrics", status.metrics),
    ]
    return routes


def _capabilities(server: CompletionServer) -> list[str]:
    return ["completion", *(["tools"] if server.text.call_form is not None else [])]


def _ollama_models(web: Web, capabilities: list[str]) -> list[Route]:
    models = OllamaModels(web, capabilities)
    return [
        Route("/api/tags", models.tags),
        Route("/api/ps", models.running),
        Route("/api/version", models.version),
        Route("/api/show", models.show, methods=["POST"]),
    ]


def application(server: Server) -> Starlette:
    """The ASGI application of a server; the server is closed when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        # `close` waits for the model's thread, which may be in the middle of a run.
        await asyncio.to_thread(server.close)

    routes = endpoints(server)
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=_middleware(server.web.access, routes),
        exception_handlers={HTTPException: answer_http_error, Exception: answer_own_error},
    )


def _middleware(access: Access, routes: Sequence[Route]) -> list[Middleware]:
    types = {route.path: BODY_TYPES.get(route.path, JSON) for route in routes}
    # The guard comes first: what it refuses gets no CORS headers either.
    middleware = [Middleware(Guard, access=access, types=types)]
    if access.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
        middleware.append(cors)
    return middleware
