"""What the endpoints take: the fields of each request, with their defaults and limits.

Everything here raises ValueError with one line, which names the field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compiler.runtime.sampling import MAX_SEED, Sampling
from compiler.runtime.server import tools
from compiler.runtime.server.fields import (
    Body,
    ChoiceField,
    FieldError,
    FlagField,
    IntegerField,
    NumberField,
    TextsField,
    is_given,
    refuse_others,
)

Message = dict[str, Any]

# How tokens are drawn. The ranges lie within those of `Sampling`; that of the temperature is
# OpenAI's, and its default too.
TEMPERATURE = NumberField("temperature", default=1.0, least=0, most=2)
TOP_K = IntegerField("top_k", default=0, least=0, most=1 << 20)
TOP_P = NumberField("top_p", default=1.0, least=0, most=1)
MIN_P = NumberField("min_p", default=0.0, least=0, most=1)
REPETITION_PENALTY = NumberField("repetition_penalty", default=1.0, least=0.1, most=10)
SEED = IntegerField("seed", default=0, least=0, most=MAX_SEED)

# Tokens of an answer that asks for no number.
DEFAULT_TOKENS = 256
STOP = TextsField("stop", most=16)
STREAM = FlagField("stream")
INCLUDE_USAGE = FlagField("include_usage")  # in stream_options

LOGPROBS = FlagField("logprobs")
TOP_LOGPROBS = IntegerField("top_logprobs", default=0, least=0, most=20)
# The one of completions, where it is a number.
COMPLETION_LOGPROBS = IntegerField("logprobs", default=0, least=0, most=5)
# Answers to one prompt.
MOST_CHOICES = 16

# Fields of OpenAI's API for which only one value is served.
FIXED = (
    IntegerField("best_of", default=1, least=1, most=1),
    NumberField("presence_penalty", default=0, least=0, most=0),
    NumberField("frequency_penalty", default=0, least=0, most=0),
)
# Values of fields that are not served which ask for nothing beyond a plain answer.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    # The older form of tools, without any:
    "function_call": ("none", "auto"),
}
# Fields that only tell who asks, or help servers of several machines.
_HARMLESS = {
    *("user", "metadata", "safety_identifier", "service_tier"),
    *("prompt_cache_key", "prompt_cache_retention"),
}
_COMMON = _HARMLESS | {
    *("model", "max_tokens", "max_completion_tokens", "stream", "stream_options", "stop"),
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"),
    *("n", "best_of", "presence_penalty", "frequency_penalty", "logprobs"),
}
RESPONSE_FORMAT = "response_format"
ANY_OBJECT = {"type": "object"}
_TOOLS = {tools.TOOLS, tools.TOOL_CHOICE, tools.PARALLEL.name}
_CHAT = _COMMON | _TOOLS | {"messages", "top_logprobs", RESPONSE_FORMAT}
_COMPLETION = _COMMON | {"prompt"}
_EMBEDDINGS = _HARMLESS | {"model", "input", "encoding_format"}
# The same of a message, in OpenAI's API and in Ollama's.
MESSAGE_UNSUPPORTED = ("function_call", "audio", "images")
# What a message tells of the call that it answers, in OpenAI's API and in Ollama's.
_OF_CALL = {"tool_call_id": "tool_call_id", "name": "name", "tool_name": "name"}

MOST_PREDICTIONS = 1000
ENCODING_FORMAT = ChoiceField("encoding_format", default="float", choices=("float", "base64"))


@dataclass(frozen=True)
class Schema:
    """A JSON schema, and the field that it came in."""

    field: str
    value: dict[str, Any]


@dataclass(frozen=True)
class CompletionOptions:
    """How a chat or a completion is to be answered.

    limit:         tokens of the answer at most
    sampling:      how tokens are drawn
    stops:         texts in front of which the answer ends
    stream:        whether the answer comes in events
    include_usage: whether the last event counts tokens
    choices:       how many answers are drawn
    schema:        JSON that the answer has to be
    tools:         what the answer may call
    likeliest:     where given, tokens come with their probabilities, and with those of so many of
                   the likeliest ones
    """

    limit: int
    sampling: Sampling
    stops: list[str]
    stream: bool
    include_usage: bool = False
    choices: int = 1
    likeliest: int | None = None
    schema: Schema | None = None
    tools: tools.Tools | None = None


@dataclass(frozen=True)
class AnswerLimits:
    """What answers of a server may have.

    tokens:  of an answer
    context: of prompt and answer together, as the model has it
    choices: answers to one prompt
    """

    tokens: int
    context: int
    choices: int


def chat_options(body: Body, limits: AnswerLimits) -> CompletionOptions:
    """How a chat is to be answered."""
    _refuse_others(body, _CHAT)
    options = _options(body, limits, likeliest(body))
    found = tools.tools(body)
    schema = _schema(body)
    if found is not None and schema is not None:
        raise FieldError(RESPONSE_FORMAT, "does not go together with tools")
    return replace(options, schema=schema, tools=found)


def _schema(body: Body) -> Schema | None:
    """The JSON that a chat has to be answered with; None for text."""
    if not is_given(body, RESPONSE_FORMAT):
        return None
    found = body[RESPONSE_FORMAT]
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Schema(RESPONSE_FORMAT, ANY_OBJECT)
    wanted = found.get("json_schema") if kind == "json_schema" else None
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    if not isinstance(schema, dict):
        raise FieldError(
            RESPONSE_FORMAT, "text, json_object, or json_schema with {json_schema: {schema: {...}}}"
        )
    return Schema(RESPONSE_FORMAT, schema)


def likeliest(body: Body) -> int | None:
    """How many of the likeliest tokens come with each of a chat; None: no probabilities at all."""
    wants_them = LOGPROBS.read(body)
    count = TOP_LOGPROBS.read(body)
    if count and not wants_them:
        raise FieldError("top_logprobs", "needs logprobs to be true")
    return count if wants_them else None


def completion_options(body: Body, limits: AnswerLimits) -> CompletionOptions:
    """How a text is to be continued."""
    _refuse_others(body, _COMPLETION)
    # Older clients say false for none.
    wants_them = is_given(body, "logprobs") and body["logprobs"] is not False
    count = COMPLETION_LOGPROBS.read(body) if wants_them else None
    return _options(body, limits, count)


def _options(body: Body, limits: AnswerLimits, likeliest: int | None) -> CompletionOptions:
    for fixed in FIXED:
        fixed.read(body)
    choices = IntegerField("n", default=1, least=1, most=min(MOST_CHOICES, limits.choices))
    return CompletionOptions(
        limit=_limit(body, limits.tokens, limits.context),
        sampling=_sampling(body),
        stops=[stop for stop in STOP.read(body) if stop],
        stream=STREAM.read(body),
        include_usage=INCLUDE_USAGE.read(_stream_options(body)),
        choices=choices.read(body),
        likeliest=likeliest,
    )


def _refuse_others(body: Body, known: set[str]) -> None:
    asked = {name: value for name, value in body.items() if not _is_neutral(name, value)}
    refuse_others(asked, known)


def _is_neutral(name: str, value: object) -> bool:
    return value in NEUTRAL.get(name, ())


def _limit(body: Body, most_tokens: int, context: int) -> int:
    # OpenAI's newer name goes first where a client sends both.
    newer = "max_completion_tokens"
    name = newer if is_given(body, newer) else "max_tokens"
    default = min(DEFAULT_TOKENS, most_tokens)
    try:
        return IntegerField(name, default, least=1, most=most_tokens).read(body)
    except ValueError as error:
        if context >= most_tokens:
            raise
        complaint = str(error).removeprefix(f"{name}: ")
        raise FieldError(
            name,
            f"{complaint}; prompt and answer together end at the model's context of {context}",
        ) from error


def _sampling(body: Body) -> Sampling:
    return Sampling(
        temperature=TEMPERATURE.read(body),
        top_k=TOP_K.read(body),
        top_p=TOP_P.read(body),
        min_p=MIN_P.read(body),
        repetition_penalty=REPETITION_PENALTY.read(body),
        # Without a seed each answer is drawn anew.
        seed=SEED.read(body) if is_given(body, SEED.name) else None,
    )


def _stream_options(body: Body) -> Body:
    if not is_given(body, "stream_options"):
        return {}
    options = body["stream_options"]
    if not isinstance(options, dict):
        raise FieldError("stream_options", "an object")
    refuse_others(options, {INCLUDE_USAGE.name})
    return options


def chat_messages(body: Body) -> list[Message]:
    """The conversation of a chat: for each message its role and its text, and calls of tools."""
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise _bad_messages()
    return [_message(entry) for entry in found]


def _message(entry: object) -> Message:
    if not isinstance(entry, dict):
        raise _bad_messages()
    for name in MESSAGE_UNSUPPORTED:
        if entry.get(name):
            raise FieldError("messages", f"{name} is not supported")
    role = entry.get("role")
    content = entry.get("content")
    calls = tools.earlier_calls(entry["tool_calls"]) if entry.get("tool_calls") else []
    if calls and content is None:
        content = ""
    # A content may come in parts, each with a text.
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise _bad_messages()
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        told = {name: entry.get(given) for given, name in _OF_CALL.items()}
        message |= {name: text for name, text in told.items() if isinstance(text, str)}
    return message


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _bad_messages() -> ValueError:
    return FieldError("messages", "a list of {role, content} with text as content")


def completion_prompt(body: Body, longest: int) -> str | list[int]:
    """The prompt of a completion: a text, or up to `longest` tokens."""
    found = body.get("prompt")
    if isinstance(found, str):
        return found
    if not isinstance(found, list):
        raise _bad_prompt()
    # OpenAI's API takes a list of prompts; one in it is served.
    if len(found) == 1 and isinstance(found[0], str):
        return found[0]
    # In front of the look at each entry, which would hold up the event loop for a long list.
    if len(found) > longest:
        raise FieldError("prompt", f"has {len(found)} tokens; the model takes up to {longest}")
    # true is an int to Python.
    if not all(type(token) is int for token in found):
        raise _bad_prompt()
    return found


def _bad_prompt() -> ValueError:
    return FieldError("prompt", "a text, or a list of token numbers")


def embedding_inputs(body: Body, most_texts: int) -> list[str]:
    """The texts to embed."""
    refuse_others(body, _EMBEDDINGS)
    field = TextsField("input", most_texts)
    texts = field.read(body)
    if not texts:
        raise FieldError("input", f"a text, or a list of up to {most_texts} texts")
    return texts


def min_confidence(given: str | None) -> float | None:
    """The least score that a client of pictures asks for; None where it does not say."""
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError as error:
        raise ValueError("Invalid value for min_confidence") from error
    # NaN lies in no range. The words are DeepStack's.
    if not 0 <= value <= 1:
        reason = "cannot be greater than 1" if value > 1 else "must be from 0 to 1"
        raise ValueError(f"min_confidence {reason}")
    return value


def most_predictions(given: str | None) -> int | None:
    """How many classes or objects a client asks for; None where it does not say."""
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:6]) <= MOST_PREDICTIONS:
        raise ValueError(f"top: a whole number from 1 to {MOST_PREDICTIONS}")
    return int(given[:6])
