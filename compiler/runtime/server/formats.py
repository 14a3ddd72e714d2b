"""Answers to chats and completions as OpenAI's clients read them: one JSON object, or events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from compiler.runtime.calls import Call
from compiler.runtime.server.errors import error_body

Json = dict[str, Any]

END_OF_EVENTS = "data: [DONE]\n\n"


Finish = Literal["length", "stop", "tool_calls"]


@dataclass(frozen=True)
class Outcome:
    """How an answer went.

    finish:        why it ended: "stop" for an end token or a stop text, "length" for the limit of
                   the request or of the model's context, "tool_calls" for calls of tools
    prompt_tokens: tokens of the prompt
    reused:        of these, tokens that were in the cache already
    tokens:        tokens of the answer
    waited, prefill, decode: seconds until it got a slot, to its first token, and from there on
    """

    finish: Finish
    prompt_tokens: int
    reused: int
    tokens: int
    waited: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class TokenScore:
    """A token of an answer with natural logarithms of probabilities.

    text:      what it adds to the text
    logprob:   its own
    likeliest: texts of the likeliest tokens with theirs, the likeliest first
    start:     characters of the answer in front of it
    """

    text: str
    logprob: float
    likeliest: list[tuple[str, float]]
    start: int


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: some text, where they were asked for the scores of its tokens, and
    calls of tools."""

    text: str
    scores: list[TokenScore]
    calls: Sequence[Call] = ()


class Writer(Protocol):
    """Writes the answers to one prompt, its choices, as the clients of some endpoint read them."""

    media_type: str  # of an answer that is streamed

    def begin(self, index: int) -> str:
        """What comes before any text of a choice; may be empty."""

    def piece(self, index: int, piece: Piece) -> str:
        """A piece of a choice."""

    def last(self, index: int, outcome: Outcome) -> str:
        """What comes behind the text of a choice; may be empty."""

    def end(self, outcomes: Sequence[Outcome]) -> str:
        """What comes behind all choices."""

    def failure(self, status: int, message: str) -> str:
        """An error behind the text so far, where the status is long sent."""

    def whole(self, choices: Sequence[Piece], outcomes: Sequence[Outcome]) -> Json:
        """Answers that are not streamed."""


class Format(Protocol):
    """What differs between OpenAI's two endpoints."""

    id_prefix: str
    kind: str  # `object` of a whole answer
    event_kind: str  # `object` of an event

    def whole(self, piece: Piece) -> Json:
        """A whole answer, as a part of its choice."""

    def first(self) -> Json | None:
        """The event before any text, as a part of its choice; None where there is none."""

    def piece(self, piece: Piece) -> Json:
        """A piece of an answer, as a part of an event's choice."""

    def last(self) -> Json:
        """The event that tells why the answer ended, as a part of its choice."""

    def logprobs(self, scores: Sequence[TokenScore]) -> Json:
        """The probabilities of tokens."""


class ChatFormat:
    """Answers of /v1/chat/completions: messages of the assistant."""

    id_prefix = "chatcmpl"
    kind = "chat.completion"
    event_kind = "chat.completion.chunk"

    def whole(self, piece: Piece) -> Json:
        message: Json = {"role": "assistant", "content": piece.text}
        if piece.calls:
            # OpenAI's own answers have no content then, not even an empty one.
            message["content"] = piece.text or None
            message["tool_calls"] = _calls(piece.calls)
        return {"message": message}

    def first(self) -> Json | None:
        return {"delta": {"role": "assistant", "content": ""}}

    def piece(self, piece: Piece) -> Json:
        delta: Json = {"content": piece.text} if piece.text else {}
        if piece.calls:
            # An answer has its calls in one piece, so the first of them has the index 0.
            numbered = enumerate(_calls(piece.calls))
            delta["tool_calls"] = [{"index": index} | call for index, call in numbered]
        return {"delta": delta}

    def last(self) -> Json:
        return {"delta": {}}

    def logprobs(self, scores: Sequence[TokenScore]) -> Json:
        content = []
        for score in scores:
            top = [token_logprob(text, logprob) for text, logprob in score.likeliest]
            content.append(token_logprob(score.text, score.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}


class TextFormat:
    """Answers of /v1/completions: plain text."""

    id_prefix = "cmpl"
    kind = "text_completion"
    event_kind = "text_completion"

    def whole(self, piece: Piece) -> Json:
        return {"text": piece.text}

    def first(self) -> Json | None:
        return None

    def piece(self, piece: Piece) -> Json:
        return {"text": piece.text}

    def last(self) -> Json:
        return {"text": ""}

    def logprobs(self, scores: Sequence[TokenScore]) -> Json:
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [dict(score.likeliest) for score in scores],
            "text_offset": [score.start for score in scores],
        }


class OpenAiWriter:
    """Writes an answer of OpenAI's API: JSON, or server-sent events that share their id."""

    media_type = "text/event-stream"

    def __init__(self, form: Format, model: str, include_usage: bool, has_logprobs: bool) -> None:
        self._form = form
        self._include_usage = include_usage
        self._has_logprobs = has_logprobs
        self._head: Json = {
            "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
            "object": form.event_kind,
            "created": int(time.time()),
            "model": model,
        }

    def begin(self, index: int) -> str:
        first = self._form.first()
        return "" if first is None else self._event(_choice(index, first))

    def piece(self, index: int, piece: Piece) -> str:
        part = self._form.piece(piece) | self._logprobs(piece)
        return self._event(_choice(index, part))

    def last(self, index: int, outcome: Outcome) -> str:
        return self._event(_choice(index, self._form.last(), outcome.finish))

    def end(self, outcomes: Sequence[Outcome]) -> str:
        if not self._include_usage:
            return END_OF_EVENTS
        last = self._head | {"choices": [], "usage": _usage(outcomes)}
        return _server_event(last) + END_OF_EVENTS

    def failure(self, status: int, message: str) -> str:
        return _server_event(error_body(status, message))

    def whole(self, choices: Sequence[Piece], outcomes: Sequence[Outcome]) -> Json:
        entries = []
        for index, (piece, outcome) in enumerate(zip(choices, outcomes, strict=True)):
            part = self._form.whole(piece) | self._logprobs(piece)
            entries.append(_choice(index, part, outcome.finish))
        head = self._head | {"object": self._form.kind}
        return head | {"choices": entries, "usage": _usage(outcomes)}

    def _logprobs(self, piece: Piece) -> Json:
        return {"logprobs": self._form.logprobs(piece.scores)} if self._has_logprobs else {}

    def _event(self, choice: Json) -> str:
        event = self._head | {"choices": [choice]}
        if self._include_usage:
            # Only the event behind the last choice has it.
            event["usage"] = None
        return _server_event(event)


def _calls(calls: Sequence[Call]) -> list[Json]:
    found = []
    for call in calls:
        function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
        # Mistral's templates want ids of nine letters and digits; others take any.
        found.append({"id": uuid.uuid4().hex[:9], "type": "function", "function": function})
    return found


def _server_event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def token_logprob(text: str, logprob: float) -> Json:
    """A token with its probability. It has bytes where it is made of whole characters."""
    is_whole = "\ufffd" not in text
    return {"token": text, "logprob": logprob, "bytes": [*text.encode()] if is_whole else None}


def _usage(outcomes: Sequence[Outcome]) -> Json:
    """How many tokens were read, once for all choices, and written."""
    prompt = outcomes[0].prompt_tokens
    written = sum(outcome.tokens for outcome in outcomes)
    return {
        "prompt_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": outcomes[0].reused},
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def _choice(index: int, part: Json, finish: str | None = None) -> Json:
    return {"index": index, "finish_reason": finish, "logprobs": None} | part
