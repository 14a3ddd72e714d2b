"""/v1/chat/completions and /v1/completions: a language model behind HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial

from prometheus_client.core import Metric
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from compiler.runtime.batching import Batcher
from compiler.runtime.grammar import Constraint, GrammarError, is_installed
from compiler.runtime.server import requests
from compiler.runtime.server.answer import Answer, Prompt, merged, start_answers
from compiler.runtime.server.errors import CLIENT_LEFT, model_failure, request_errors
from compiler.runtime.server.fields import FieldError
from compiler.runtime.server.formats import (
    ChatFormat,
    Format,
    OpenAiWriter,
    Piece,
    TextFormat,
    Writer,
)
from compiler.runtime.server.requests import AnswerLimits, CompletionOptions, Message
from compiler.runtime.server.status import metric, request_metrics, summary
from compiler.runtime.server.tools import TOOL_CHOICE, TOOLS, Tools
from compiler.runtime.server.web import ReleasingResponse, Web
from compiler.runtime.server.workers import OVERHEAD, SHORT_TEXT, Worker
from compiler.runtime.text import Text

# How often a client that waits for a whole answer is looked after: does it still wait?
LOOK_SECONDS = 0.25


class CompletionServer:
    """A language model's endpoints.

    Prompts are tokenized by the readers of `web`, `batcher` runs the model in a thread of its own,
    and one worker turns the tokens of all answers into text.
    """

    def __init__(self, web: Web, text: Text, batcher: Batcher) -> None:
        self.web = web
        self.text = text
        self.batcher = batcher
        self._writer = Worker("answers")

    @property
    def alive(self) -> bool:
        return self.batcher.alive

    def close(self) -> None:
        self.batcher.close()

    def metrics(self) -> list[Metric]:
        counters = self.batcher.counters
        refused = counters.refused + self.web.readers.refused
        return [
            *request_metrics(counters, refused),
            metric("prompt_tokens_total", "counter", counters.prompt_tokens),
            metric("reused_tokens_total", "counter", counters.reused_tokens),
            metric("generated_tokens_total", "counter", counters.generated_tokens),
            metric("requests_active", "gauge", self.batcher.active),
            metric("requests_waiting", "gauge", self.batcher.queued),
            summary("first_token_seconds", counters.first_token),
        ]

    async def chat(self, http: HttpRequest) -> Response:
        """Answers the last message of a conversation."""
        body = await self.web.read_body(http)
        with request_errors():
            options = requests.chat_options(body, self._limits())
            tokens = await self.read_chat(requests.chat_messages(body), options.tools)
        return await self._respond(http, tokens, options, ChatFormat())

    async def complete(self, http: HttpRequest) -> Response:
        """Continues a text."""
        body = await self.web.read_body(http)
        with request_errors():
            options = requests.completion_options(body, self._limits())
            prompt = requests.completion_prompt(body, self.batcher.longest_prompt)
            if isinstance(prompt, str):
                prompt = await self.read_text(prompt)
        return await self._respond(http, prompt, options, TextFormat())

    async def read_chat(self, messages: list[Message], tools: Tools | None = None) -> list[int]:
        """The tokens of a conversation. Raises ValueError, BusyError."""
        definitions = None if tools is None else tools.definitions
        if definitions is not None and self.text.call_form is None:
            raise FieldError(TOOLS, "the model's chat template has no known form of calls")
        size = sum(len(m["role"]) + len(m["content"]) + OVERHEAD for m in messages)
        if definitions is not None:
            size += len(json.dumps(definitions))
        return await self.web.readers.run(size, self.text.conversation, messages, definitions)

    async def read_text(self, text: str) -> list[int]:
        """The tokens of a text. Raises ValueError, BusyError."""
        return await self.web.readers.run(len(text), self.text.encode, text)

    def _limits(self) -> AnswerLimits:
        context = self.batcher.model.context
        # More at once could never be queued.
        return AnswerLimits(self.web.limits.tokens, context, self.batcher.waiting)

    async def _respond(
        self, http: HttpRequest, tokens: list[int], options: CompletionOptions, form: Format
    ) -> Response:
        has_logprobs = options.likeliest is not None
        writer = OpenAiWriter(form, self.web.name, options.include_usage, has_logprobs)
        return await self.respond(http, tokens, options, writer)

    async def respond(
        self, http: HttpRequest, tokens: list[int], options: CompletionOptions, writer: Writer
    ) -> Response:
        """Answers a prompt, in pieces where the options say so."""
        with request_errors():
            constraint = await self._constraint(options)
            prompt = Prompt(tokens, constraint)
            answers = start_answers(self.batcher, self.text, self._writer, prompt, options)
        if options.stream:
            pieces = self._pieces(answers, writer)
            return ReleasingResponse(pieces, lambda: _cancel(answers), writer.media_type)
        return await self._whole(http, answers, writer)

    async def _constraint(self, options: CompletionOptions) -> Constraint | None:
        """What holds an answer to a schema, or to a call. Raises FieldError, BusyError."""
        grammars = self.text.grammars
        form = self.text.call_form
        if options.schema is not None:
            field = options.schema.field
            make = partial(grammars.constraint, options.schema.value)
        elif options.tools is not None and options.tools.forced and form is not None:
            field = TOOL_CHOICE
            schemas = options.tools.schemas()
            make = partial(grammars.call, form, {n: schemas[n] for n in options.tools.forced})
        else:
            return None
        if not is_installed():
            raise FieldError(field, "needs the package llguidance on the server")
        try:
            # Large schemas take long, also where they are short texts.
            return await self.web.readers.run(SHORT_TEXT + 1, make)
        except GrammarError as error:
            raise FieldError(field, str(error)) from error

    async def _whole(
        self, http: HttpRequest, answers: Sequence[Answer], writer: Writer
    ) -> Response:
        """Whole answers at once; their slots are freed where the client goes away meanwhile."""
        reading = asyncio.gather(*(answer.whole() for answer in answers))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=LOOK_SECONDS)
                if not reading.done() and await http.is_disconnected():
                    return Response(status_code=CLIENT_LEFT)
            choices = reading.result()
        except Exception as error:
            raise model_failure(error) from error
        finally:
            reading.cancel()
            _cancel(answers)
        outcomes = [answer.outcome() for answer in answers]
        return JSONResponse(writer.whole(choices, outcomes))

    async def _pieces(self, answers: Sequence[Answer], writer: Writer) -> AsyncIterator[str]:
        """The answers as they are written."""
        for index in range(len(answers)):
            if begin := writer.begin(index):
                yield begin
        try:
            async with contextlib.aclosing(merged(answers)) as found:
                async for index, piece in found:
                    if written := _written(answers[index], index, piece, writer):
                        yield written
        except Exception as error:
            # The status is long sent: an error can only come as a piece.
            failure = model_failure(error)
            yield writer.failure(failure.status_code, failure.detail)
            return
        yield writer.end([answer.outcome() for answer in answers])


def _written(answer: Answer, index: int, piece: Piece | None, writer: Writer) -> str:
    if piece is None:
        return writer.last(index, answer.outcome())
    return writer.piece(index, piece)


def _cancel(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.cancel()
