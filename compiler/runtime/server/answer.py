"""One answer on its way from the thread of the model to the event loop, and from tokens to text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Literal

from compiler.runtime.batching import Batcher, Emitted, Request
from compiler.runtime.server.formats import Outcome
from compiler.runtime.server.requests import CompletionOptions
from compiler.runtime.server.workers import Worker
from compiler.runtime.text import Detokenizer, Text


class TokenQueue:
    """Hands what the model's thread emits to the event loop that this was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Emitted] = asyncio.Queue()

    def put(self, item: Emitted) -> None:
        """Called in the model's thread. Raises RuntimeError where the event loop is closed."""
        # asyncio's queues are not thread-safe: the event loop itself puts the item in.
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    async def get(self) -> Emitted:
        return await self._arrived.get()

    def empty(self) -> bool:
        return self._arrived.empty()


class Answer:
    """An answer that is being written; used on the event loop.

    `finish` says why it ended, once it has: "stop" for an end token or a stop text, "length" for
    the limit of the request or of the model's context.
    """

    def __init__(
        self, request: Request, tokens: TokenQueue, detokenizer: Detokenizer, writer: Worker
    ) -> None:
        self._request = request
        self._tokens = tokens
        self._detokenizer = detokenizer
        self._writer = writer
        self._count = 0
        self._over = False
        self._error: Exception | None = None
        self.finish: Literal["length", "stop"] = "length"

    def cancel(self) -> None:
        """Give the slot to others; the model's thread sees it before its next token."""
        self._request.cancelled.set()

    def outcome(self) -> Outcome:
        """How it went, once it is over."""
        request = self._request
        now = time.monotonic()
        return Outcome(
            finish=self.finish,
            prompt_tokens=len(request.tokens),
            tokens=self._count,
            waited=request.begun - request.arrived,
            prefill=request.first_token - request.begun,
            decode=now - request.first_token,
        )

    async def pieces(self) -> AsyncIterator[str]:
        """Text as soon as it is settled; whoever stops reading cancels the request.

        Raises what the model failed with, after the text that came before.
        """
        try:
            while not self._over:
                tokens = await self._next_tokens()
                # Detokenizing takes long in long answers, so it has a thread. Nothing else
                # touches this answer until it is done.
                piece = await self._writer.run(self._settle, tokens)
                if piece:
                    yield piece
                if self._error is not None:
                    raise self._error
        finally:
            self.cancel()

    async def text(self) -> str:
        """The whole text."""
        pieces = [piece async for piece in self.pieces()]
        return "".join(pieces)

    async def _next_tokens(self) -> list[int]:
        """All tokens that have arrived, at least one unless the answer is over."""
        tokens: list[int] = []
        while not self._over and (not tokens or not self._tokens.empty()):
            item = await self._tokens.get()
            if isinstance(item, int):
                tokens.append(item)
            else:
                self._over = True
                self._error = item
        return tokens

    def _settle(self, tokens: list[int]) -> str:
        """The text that some more tokens settle; runs in the thread of `writer`."""
        parts = []
        for token in tokens:
            self._count += 1
            parts.append(self._detokenizer.push(token))
            if self._detokenizer.ended:
                # What came behind a stop text counts no more, nor does an error.
                self._over = True
                self._error = None
                self.finish = "stop"
                return "".join(parts)
        if self._over:
            parts.append(self._detokenizer.rest())
        return "".join(parts)


def start_answer(
    batcher: Batcher, text: Text, writer: Worker, prompt: list[int], options: CompletionOptions
) -> Answer:
    """Queue a prompt for the model's thread.

    Raises BusyError where the queue is full, ValueError for tokens that the model cannot read.
    """
    tokens = TokenQueue()
    # The request knows the queue and not the answer. So a refused one leaves no cycle of objects
    # that would keep its prompt in memory until the garbage collector comes by.
    request = Request(prompt, options.limit, options.sampling, tokens.put)
    batcher.submit(request)
    return Answer(request, tokens, Detokenizer(text, options.stops), writer)
