"""Answers to chats and completions as OpenAI's clients read them: one JSON object, or events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

Json = dict[str, Any]

END_OF_EVENTS = "data: [DONE]\n\n"


class Format(Protocol):
    """What differs between the two endpoints."""

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


def whole_answer(form: Format, model: str, text: str, finish: str, usage: Json) -> Json:
    """The JSON of an answer that is not streamed."""
    choices = [_choice(form.whole(text), finish)]
    return _head(form, form.kind, model) | {"choices": choices, "usage": usage}


class EventWriter:
    """Writes the events of one streamed answer, which share their id."""

    def __init__(self, form: Format, model: str) -> None:
        self._head = _head(form, form.event_kind, model)

    def event(self, part: Json, finish: str | None = None) -> str:
        return server_event(self._head | {"choices": [_choice(part, finish)]})

    def usage(self, usage: Json) -> str:
        return server_event(self._head | {"choices": [], "usage": usage})


def server_event(data: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """How many tokens were read and written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _head(form: Format, kind: str, model: str) -> Json:
    return {
        "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _choice(part: Json, finish: str | None) -> Json:
    return {"index": 0, "finish_reason": finish, "logprobs": None} | part
