"""Reads the fields of a request's JSON object. Each raises ValueError in one line; null is as good
as nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.runtime.sampling import MAX_SEED, Sampling

Body = Mapping[str, Any]
Message = dict[str, str]

STOPS = 16
# What clients may ask for that would change the answer and is not here.
_UNSUPPORTED = (
    "tools",
    "functions",
    "response_format",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "suffix",
    "echo",
)


@dataclass(frozen=True)
class Wanted:
    """How a request wants its answer; `limit` are tokens."""

    limit: int
    sampling: Sampling
    stops: list[str]
    stream: bool
    usage: bool


def body(data: bytes) -> dict[str, Any]:
    """The JSON object of a request, in which every text is Unicode."""
    try:
        text = data.decode("utf-8")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the request is not JSON in UTF-8") from error
    if not isinstance(found, dict):
        raise ValueError("the request is not a JSON object")
    # Half of a surrogate pair is JSON, but no text; only an escape can bring one.
    if "\\ud" in text.lower():
        try:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                "the request has half of a surrogate pair, which is no text"
            ) from error
    return found


def wanted(fields: Body, most: int) -> Wanted:
    """What a completion or a chat asks for, with up to `most` tokens."""
    for name in _UNSUPPORTED:
        if fields.get(name):
            raise ValueError(f"{name}: is not supported")
    for name in ("n", "best_of"):
        _whole(fields, name, 1, 1, 1)
    for name in ("presence_penalty", "frequency_penalty"):
        _number(fields, name, 0, 0, 0)
    limit = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    seed = None if fields.get("seed") is None else _whole(fields, "seed", 0, 0, MAX_SEED)
    sampling = Sampling(
        temperature=_number(fields, "temperature", 1.0, 0, 2),
        top_k=_whole(fields, "top_k", 0, 0, 1 << 20),
        top_p=_number(fields, "top_p", 1.0, 0, 1),
        min_p=_number(fields, "min_p", 0.0, 0, 1),
        repetition_penalty=_number(fields, "repetition_penalty", 1.0, 0.1, 10),
        seed=seed,
    )
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise ValueError("stream_options: an object")
    return Wanted(
        limit=_whole(fields, limit, min(256, most), 1, most),
        sampling=sampling,
        stops=_stops(fields.get("stop")),
        stream=_flag(fields, "stream"),
        usage=_flag(options or {}, "include_usage"),
    )


def messages(fields: Body) -> list[Message]:
    """The conversation of a chat; contents may come in parts."""
    found = fields.get("messages")
    if not isinstance(found, list) or not found:
        raise ValueError("messages: a list of {role, content} with text as content")
    return [_message(entry) for entry in found]


def prompt(fields: Body, longest: int) -> str | list[int]:
    """A text, or up to `longest` numbers of tokens."""
    found = fields.get("prompt")
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
        return found[0]
    if isinstance(found, list) and len(found) > longest:
        raise ValueError(f"prompt: has {len(found)} tokens; the model takes up to {longest}")
    if isinstance(found, str) or (
        isinstance(found, list) and all(type(token) is int for token in found)
    ):
        return found
    raise ValueError("prompt: a text, or a list of token numbers")


def inputs(fields: Body, most: int) -> list[str]:
    """The texts to embed, up to `most`."""
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("input: a text, or a list of texts")
    if len(texts) > most:
        raise ValueError(f"input: has {len(texts)} texts; a request may have up to {most}")
    return texts


def encoding(fields: Body) -> str:
    """How embeddings are to be written: float or base64."""
    kind = fields.get("encoding_format")
    kind = "float" if kind is None else kind
    if kind not in ("float", "base64") or fields.get("dimensions") is not None:
        raise ValueError("encoding_format: float or base64; dimensions: is not supported")
    return str(kind)


def _number(fields: Body, name: str, default: float, low: float, high: float) -> float:
    value = fields.get(name)
    value = default if value is None else value
    # NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}: a number from {low} to {high}")
    return float(value)


def _whole(fields: Body, name: str, default: int, low: int, high: int) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name}: a whole number from {low} to {high}")
    return value


def _flag(fields: Body, name: str) -> bool:
    value = fields.get(name)
    if not (value is None or isinstance(value, bool)):
        raise ValueError(f"{name}: true or false")
    return bool(value)


def _stops(value: object) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > STOPS
        or not all(isinstance(stop, str) for stop in stops)
    ):
        raise ValueError(f"stop: a text, or a list of up to {STOPS}")
    return [stop for stop in stops if stop]


def _message(entry: object) -> Message:
    if isinstance(entry, dict) and isinstance(entry.get("role"), str):
        content = entry.get("content")
        if isinstance(content, list) and all(_is_part(part) for part in content):
            content = "".join(part["text"] for part in content)
        if isinstance(content, str):
            return {"role": entry["role"], "content": content}
    raise ValueError("messages: a list of {role, content} with text as content")


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)
