"""Answers to chats and prompts as Ollama's clients read them: one JSON object, or lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from compiler.runtime.server.formats import ChatFormat, Json, Outcome, Piece
from compiler.runtime.server.tools import call_json

_NANOSECONDS = 1e9


class OllamaFormat(Protocol):
    """What differs between the two endpoints."""

    def part(self, piece: Piece) -> Json:
        """A text and calls, whole or a piece, as a part of an answer."""


class OllamaChat:
    """Answers of /api/chat: messages of the assistant."""

    def part(self, piece: Piece) -> Json:
        message: Json = {"role": "assistant", "content": piece.text}
        if piece.calls:
            message["tool_calls"] = [call_json(call) for call in piece.calls]
        return {"message": message}


class OllamaText:
    """Answers of /api/generate: plain text."""

    def part(self, piece: Piece) -> Json:
        return {"response": piece.text}


class OllamaWriter:
    """Writes an answer of Ollama's API: JSON, or a line of JSON for each piece."""

    media_type = "application/x-ndjson"

    def __init__(self, form: OllamaFormat, model: str) -> None:
        self._form = form
        self._model = model

    def begin(self, index: int) -> str:
        return ""

    def piece(self, index: int, piece: Piece) -> str:
        return _line(self._head() | self._part(piece) | {"done": False})

    def last(self, index: int, outcome: Outcome) -> str:
        return ""

    def end(self, outcomes: Sequence[Outcome]) -> str:
        return _line(self.whole([Piece("", [])], outcomes))

    def failure(self, status: int, message: str) -> str:
        return _line({"error": message})

    def whole(self, choices: Sequence[Piece], outcomes: Sequence[Outcome]) -> Json:
        # Ollama's API has one answer to a prompt.
        (piece,), (outcome,) = choices, outcomes
        reason = "stop" if outcome.finish == "tool_calls" else outcome.finish
        done = {"done": True, "done_reason": reason}
        return self._head() | self._part(piece) | done | _timings(outcome)

    def loaded(self) -> Json:
        """The answer to a request that asks for nothing but the model to be loaded."""
        done = {"done": True, "done_reason": "load"}
        return self._head() | self._form.part(Piece("", [])) | done

    def _part(self, piece: Piece) -> Json:
        part = self._form.part(piece)
        if piece.scores:
            # They have the form of OpenAI's.
            part["logprobs"] = ChatFormat().logprobs(piece.scores)["content"]
        return part

    def _head(self) -> Json:
        return {"model": self._model, "created_at": datetime.now(UTC).isoformat()}


def _timings(outcome: Outcome) -> Json:
    """Counts of tokens, and times in nanoseconds. The model is loaded with the server, so its
    loading takes none."""
    total = outcome.waited + outcome.prefill + outcome.decode
    return {
        "total_duration": _nanoseconds(total),
        "load_duration": 0,
        "prompt_eval_count": outcome.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(outcome.prefill),
        "eval_count": outcome.tokens,
        "eval_duration": _nanoseconds(outcome.decode),
    }


def _nanoseconds(seconds: float) -> int:
    # Clients divide by it.
    return max(1, round(seconds * _NANOSECONDS))


def _line(data: Json) -> str:
    return json.dumps(data) + "\n"
