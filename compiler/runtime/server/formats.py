"""Answers to chats and completions as OpenAI's clients read them: one JSON object, or events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from compiler.runtime.server.errors import error_body

Json = dict[str, Any]

END_OF_EVENTS = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Outcome:
    """How an answer went.

    finish:        why it ended: "stop" for an end token or a stop text, "length" for the limit of
                   the request or of the model's context
    prompt_tokens: tokens of the prompt
    tokens:        tokens of the answer
    waited, prefill, decode: seconds until it got a slot, to its first token, and from there on
    """

    finish: Literal["length", "stop"]
    prompt_tokens: int
    tokens: int
    waited: float
    prefill: float
    decode: float


class Writer(Protocol):
    """Writes one answer as the clients of some endpoint read it."""

    media_type: str  # of an answer that is streamed

    def begin(self) -> str:
        """What comes before any text; may be empty."""

    def piece(self, text: str) -> str:
        """A piece of an answer."""

    def end(self, outcome: Outcome) -> str:
        """What comes behind the text."""

    def failure(self, status: int, message: str) -> str:
        """An error behind the text so far, where the status is long sent."""

    def whole(self, text: str, outcome: Outcome) -> Json:
        """An answer that is not streamed."""


class Format(Protocol):
    """What differs between OpenAI's two endpoints."""

    id_prefix: str
    kind: str  # `object` of a whole answer
    event_kind: str  # `object` of an event

    def whole(self, text: str) -> Json:
        """A whole answer, as a part of its choice."""

    def first(self) -> Json | None:
        """The event before any text, as a part of its choice; None where there is none."""

    def piece(self, text: str) -> Json:
        """A piece of an answer, as a part of an event's choice."""

    def last(self) -> Json:
        """The event that tells why the answer ended, as a part of its choice."""


class ChatFormat:
    """Answers of /v1/chat/completions: messages of the assistant."""

    id_prefix = "chatcmpl"
    kind = "chat.completion"
    event_kind = "chat.completion.chunk"

    def whole(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text}}

    def first(self) -> Json | None:
        return {"delta": {"role": "assistant", "content": ""}}

    def piece(self, text: str) -> Json:
        return {"delta": {"content": text}}

    def last(self) -> Json:
        return {"delta": {}}


class TextFormat:
    """Answers of /v1/completions: plain text."""

    id_prefix = "cmpl"
    kind = "text_completion"
    event_kind = "text_completion"

    def whole(self, text: str) -> Json:
        return {"text": text}

    def first(self) -> Json | None:
        return None

    def piece(self, text: str) -> Json:
        return {"text": text}

    def last(self) -> Json:
        return {"text": ""}


class OpenAiWriter:
    """Writes an answer of OpenAI's API: JSON, or server-sent events that share their id."""

    media_type = "text/event-stream"

    def __init__(self, form: Format, model: str, include_usage: bool) -> None:
        self._form = form
        self._include_usage = include_usage
        self._head: Json = {
            "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
            "object": form.event_kind,
            "created": int(time.time()),
            "model": model,
        }

    def begin(self) -> str:
        first = self._form.first()
        return "" if first is None else self._event(first)

    def piece(self, text: str) -> str:
        return self._event(self._form.piece(text))

    def end(self, outcome: Outcome) -> str:
        events = [self._event(self._form.last(), outcome.finish)]
        if self._include_usage:
            events.append(_server_event(self._head | {"choices": [], "usage": _usage(outcome)}))
        return "".join([*events, END_OF_EVENTS])

    def failure(self, status: int, message: str) -> str:
        return _server_event(error_body(status, message))

    def whole(self, text: str, outcome: Outcome) -> Json:
        choices = [_choice(self._form.whole(text), outcome.finish)]
        head = self._head | {"object": self._form.kind}
        return head | {"choices": choices, "usage": _usage(outcome)}

    def _event(self, part: Json, finish: str | None = None) -> str:
        return _server_event(self._head | {"choices": [_choice(part, finish)]})


def _server_event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _usage(outcome: Outcome) -> Json:
    """How many tokens were read and written."""
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.tokens,
        "total_tokens": outcome.prompt_tokens + outcome.tokens,
    }


def _choice(part: Json, finish: str | None) -> Json:
    return {"index": 0, "finish_reason": finish, "logprobs": None} | part
