"""/api/...: a language model or an encoder as clients of Ollama ask for them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from compiler.runtime.server import ollama_requests, requests
from compiler.runtime.server.completions import CompletionServer
from compiler.runtime.server.embeddings import EmbeddingJob, EmbeddingServer
from compiler.runtime.server.errors import request_errors
from compiler.runtime.server.fields import Body
from compiler.runtime.server.formats import Json
from compiler.runtime.server.ollama_formats import OllamaChat, OllamaText, OllamaWriter
from compiler.runtime.server.requests import CompletionOptions
from compiler.runtime.server.web import Web

# What a name stands for that has no tag.
_TAG = ":latest"


class OllamaModels:
    """The one model of a server, as lists of models have it. `capabilities` says what it can."""

    def __init__(self, web: Web, capabilities: list[str]) -> None:
        self._web = web
        self._capabilities = capabilities

    async def tags(self, http: HttpRequest) -> Response:
        self._web.authorize(http)
        modified = {"modified_at": self._web.card.modified.isoformat()}
        return JSONResponse({"models": [self._entry() | modified]})

    async def running(self, http: HttpRequest) -> Response:
        self._web.authorize(http)
        # It never expires, so there is no `expires_at`.
        memory: Json = {"size_vram": 0}
        if self._web.card.context is not None:
            memory["context_length"] = self._web.card.context
        return JSONResponse({"models": [self._entry() | memory]})

    async def version(self, http: HttpRequest) -> Response:
        self._web.authorize(http)
        return JSONResponse({"version": self._web.card.version})

    async def show(self, http: HttpRequest) -> Response:
        body = await self._web.read_body(http)
        check_model(self._web, body)
        card = self._web.card
        info: Json = {"general.architecture": _FORMAT, "general.name": card.title}
        if card.context is not None:
            info[f"{_FORMAT}.context_length"] = card.context
        found = {
            "modelfile": "",
            "parameters": "",
            "template": card.template,
            "details": _DETAILS,
            "model_info": info,
            "capabilities": self._capabilities,
            "modified_at": card.modified.isoformat(),
        }
        return JSONResponse(found)

    def _entry(self) -> Json:
        card = self._web.card
        name = self._web.name if ":" in self._web.name else self._web.name + _TAG
        return {
            "name": name,
            "model": name,
            "size": card.bytes,
            "digest": card.digest,
            "details": _DETAILS,
        }


_FORMAT = "coral-bundle"
# A bundle does not say more of what it was made of.
_DETAILS = {
    "parent_model": "",
    "format": _FORMAT,
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


class OllamaAnswers:
    """A language model's endpoints."""

    def __init__(self, server: CompletionServer) -> None:
        self._server = server

    async def chat(self, http: HttpRequest) -> Response:
        """Answers the last message of a conversation."""
        body = await self._server.web.read_body(http)
        check_model(self._server.web, body)
        writer = OllamaWriter(OllamaChat(), ollama_requests.model_name(body))
        with request_errors():
            options = self._options(body, ollama_requests.CHAT)
            if not body.get("messages"):
                return _loaded(body, writer)
            tokens = await self._server.read_chat(requests.chat_messages(body), options.tools)
            options = self._within(options, body, tokens)
        return await self._server.respond(http, tokens, options, writer)

    async def generate(self, http: HttpRequest) -> Response:
        """Answers a prompt, as the one message of a conversation, or continues it where `raw` says
        so or the model takes no conversations."""
        body = await self._server.web.read_body(http)
        check_model(self._server.web, body)
        writer = OllamaWriter(OllamaText(), ollama_requests.model_name(body))
        with request_errors():
            options = self._options(body, ollama_requests.GENERATE)
            prompt = ollama_requests.text_field(body, "prompt")
            if not prompt:
                return _loaded(body, writer)
            tokens = await self._prompt_tokens(body, prompt)
            options = self._within(options, body, tokens)
        return await self._server.respond(http, tokens, options, writer)

    def _options(self, body: Body, known: set[str]) -> CompletionOptions:
        return ollama_requests.answer_options(body, known, self._server.web.limits.tokens)

    def _within(
        self, options: CompletionOptions, body: Body, tokens: list[int]
    ) -> CompletionOptions:
        """The options, with an answer that ends where `num_ctx` is full."""
        places = ollama_requests.places(body, self._server.batcher.model.context)
        if len(tokens) >= places:
            raise ValueError(
                f"num_ctx: the prompt has {len(tokens)} tokens; it must have fewer than {places}"
            )
        return replace(options, limit=min(options.limit, places - len(tokens)))

    async def _prompt_tokens(self, body: Body, prompt: str) -> list[int]:
        system = ollama_requests.text_field(body, "system")
        raw = ollama_requests.RAW.read(body)
        if raw or not self._server.text.has_template:
            if system:
                raise ValueError("system: needs the model's chat template")
            return await self._server.read_text(prompt)
        messages = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return await self._server.read_chat(messages)


class OllamaEmbeddings:
    """An encoder's endpoints."""

    def __init__(self, server: EmbeddingServer) -> None:
        self._server = server

    async def embed(self, http: HttpRequest) -> Response:
        """Embeds one or several texts."""
        body = await self._server.web.read_body(http)
        check_model(self._server.web, body)
        with request_errors():
            most = self._server.web.limits.texts
            texts, cuts = ollama_requests.texts_to_embed(body, most)
        model = ollama_requests.model_name(body)
        began = time.monotonic()
        job = EmbeddingJob(self._server.embedder, texts, cuts)
        return await self._server.respond(http, job, lambda: _embeddings(job, model, began))

    async def embed_one(self, http: HttpRequest) -> Response:
        """Embeds one text, as older clients ask for it."""
        body = await self._server.web.read_body(http)
        check_model(self._server.web, body)
        with request_errors():
            text = ollama_requests.text_to_embed(body)
        job = EmbeddingJob(self._server.embedder, [text], cuts=True)
        return await self._server.respond(http, job, lambda: _embedding(job))


def check_model(web: Web, body: Body) -> None:
    """Refuses a request for another model than this server has."""
    with request_errors():
        name = ollama_requests.model_name(body)
    if name.removesuffix(_TAG) != web.name.removesuffix(_TAG):
        # A name may be as long as a request.
        raise HTTPException(404, f"model '{name[:60]}' not found: this server has '{web.name}'")


def _loaded(body: Body, writer: OllamaWriter) -> Response:
    """The answer to a request without a prompt, by which clients load and unload models."""
    if ollama_requests.asks_to_unload(body):
        raise ValueError("keep_alive: the model stays loaded for as long as the server runs")
    return JSONResponse(writer.loaded())


async def _embeddings(job: EmbeddingJob, model: str, began: float) -> AsyncIterator[str]:
    yield f'{{"model": {json.dumps(model)}, "embeddings": ['
    async for piece in job.pieces(lambda index, vector: vector.tolist()):
        yield piece
    nanoseconds = round((time.monotonic() - began) * 1e9)
    yield f'], "total_duration": {nanoseconds}, "load_duration": 0, '
    yield f'"prompt_eval_count": {job.token_count}}}'


async def _embedding(job: EmbeddingJob) -> AsyncIterator[str]:
    yield json.dumps({"embedding": job.vectors[0].tolist()})
