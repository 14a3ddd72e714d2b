"""One answer on its way from the thread of the model to the event loop, and from tokens to text."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from compiler.runtime.batching import Batcher, Emitted, Request
from compiler.runtime.calls import CallReader
from compiler.runtime.grammar import Constraint
from compiler.runtime.sampling import MAX_SEED, Sampling, Scored
from compiler.runtime.server.formats import Finish, Outcome, Piece, TokenScore
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
        self,
        request: Request,
        tokens: TokenQueue,
        text: Text,
        options: CompletionOptions,
        writer: Worker,
    ) -> None:
        self._request = request
        self._tokens = tokens
        self._text = text
        calls = options.tools is not None
        decode = text.decode_calls if calls else text.decode
        self._detokenizer = Detokenizer(text, options.stops, decode)
        self._tools = options.tools
        self._reader = CallReader(text.call_form) if calls and text.call_form else None
        self._writer = writer
        self._count = 0
        self._over = False
        self._error: Exception | None = None
        # Probabilities whose text is not settled.
        self._scores: deque[TokenScore] = deque()
        self.finish: Finish = "length"

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
            reused=request.reused,
            tokens=self._count,
            waited=request.begun - request.arrived,
            prefill=request.first_token - request.begun,
            decode=now - request.first_token,
        )

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text as soon as it is settled; whoever stops reading cancels the request.

        Raises what the model failed with, after the text that came before.
        """
        try:
            while not self._over:
                tokens = await self._next_tokens()
                # Detokenizing takes long in long answers, so it has a thread. Nothing else
                # touches this answer until it is done.
                piece = await self._writer.run(self._settle, tokens)
                if piece.text or piece.scores or piece.calls:
                    yield piece
                if self._error is not None:
                    raise self._error
        finally:
            self.cancel()

    async def whole(self) -> Piece:
        """All of it at once."""
        pieces = [piece async for piece in self.pieces()]
        text = "".join(piece.text for piece in pieces)
        scores = itertools.chain.from_iterable(piece.scores for piece in pieces)
        calls = itertools.chain.from_iterable(piece.calls for piece in pieces)
        return Piece(text, list(scores), list(calls))

    async def _next_tokens(self) -> list[int | Scored]:
        """All tokens that have arrived, at least one unless the answer is over."""
        tokens: list[int | Scored] = []
        while not self._over and (not tokens or not self._tokens.empty()):
            item = await self._tokens.get()
            if isinstance(item, int | Scored):
                tokens.append(item)
            else:
                self._over = True
                self._error = item
        return tokens

    def _settle(self, tokens: list[int | Scored]) -> Piece:
        """What some more tokens settle; runs in the thread of `writer`."""
        parts = []
        for token in tokens:
            self._count += 1
            parts.append(self._push(token))
            if self._detokenizer.ended:
                # What came behind a stop text counts no more, nor does an error.
                self._over = True
                self._error = None
                self.finish = "stop"
                break
        else:
            if self._over:
                parts.append(self._detokenizer.rest())
        piece = Piece("".join(parts), list(self._settled_scores()))
        return piece if self._reader is None else self._with_calls(piece, self._reader)

    def _with_calls(self, piece: Piece, reader: CallReader) -> Piece:
        """A piece without what is, or may become, a call; the last one with the calls."""
        text = reader.push(piece.text)
        if not self._over or self._error is not None:
            return replace(piece, text=text)
        rest, calls = reader.rest()
        if self._tools is not None and self._tools.single:
            calls = calls[:1]
        if calls:
            self.finish = "tool_calls"
        return replace(piece, text=text + rest, calls=calls)

    def _push(self, item: int | Scored) -> str:
        """The text that a token settles."""
        token = item.token if isinstance(item, Scored) else item
        start = self._detokenizer.length
        text = self._detokenizer.push(token)
        if isinstance(item, Scored) and token not in self._text.ends:
            self._scores.append(self._score(item, start))
        return text

    def _score(self, item: Scored, start: int) -> TokenScore:
        likeliest = [(self._text.token_text(token), value) for token, value in item.likeliest]
        return TokenScore(self._text.token_text(item.token), item.logprob, likeliest, start)

    def _settled_scores(self) -> Iterator[TokenScore]:
        """Those of tokens that begin within the text that was given: what a stop text cut off has
        none."""
        while self._scores and self._scores[0].start < self._detokenizer.given:
            yield self._scores.popleft()


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt, and what its answers are held to; None: nothing."""

    tokens: list[int]
    constraint: Constraint | None


async def merged(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Piece | None], None]:
    """The pieces of several answers as they come, each with the answer's index; None where one is
    over. Raises what the model failed with; whoever stops reading cancels all of them."""
    arrived: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(1)

    async def read(index: int) -> None:
        try:
            async for piece in answers[index].pieces():
                await arrived.put((index, piece))
        except Exception as error:
            await arrived.put((index, error))
        else:
            await arrived.put((index, None))

    readers = [asyncio.ensure_future(read(index)) for index in range(len(answers))]
    left = len(answers)
    try:
        while left:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            yield index, item
    finally:
        for reader in readers:
            reader.cancel()
        for answer in answers:
            answer.cancel()


def start_answers(
    batcher: Batcher,
    text: Text,
    writer: Worker,
    prompt: Prompt,
    options: CompletionOptions,
) -> list[Answer]:
    """Queue a prompt for the model's thread, once for each answer that is asked for.

    Raises BusyError where the queue is full, ValueError for tokens that the model cannot read.
    """
    queues = [TokenQueue() for _ in range(options.choices)]
    requests = []
    for index, tokens in enumerate(queues):
        # The request knows the queue and not the answer. So a refused one leaves no cycle of
        # objects that would keep its prompt in memory until the garbage collector comes by.
        sampling = _of_choice(options.sampling, index)
        request = Request(prompt.tokens, options.limit, sampling, tokens.put, options.likeliest)
        if prompt.constraint is not None:
            request.constraint = prompt.constraint.copy()
        requests.append(request)
    batcher.submit(*requests)
    return [
        Answer(request, tokens, text, options, writer)
        for request, tokens in zip(requests, queues, strict=True)
    ]


def _of_choice(sampling: Sampling, index: int) -> Sampling:
    """With a seed too, each answer to one prompt is drawn differently."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % (MAX_SEED + 1))
