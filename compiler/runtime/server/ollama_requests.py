"""What the endpoints of Ollama's API take: fields, options, defaults and limits.

Everything here raises ValueError with one line, which names the field.
"""

from __future__ import annotations

from typing import Any

from compiler.runtime.sampling import MAX_SEED, Sampling
from compiler.runtime.server.fields import (
    Body,
    FieldError,
    FlagField,
    IntegerField,
    NumberField,
    TextsField,
    is_given,
    refuse_others,
)
from compiler.runtime.server.requests import (
    ANY_OBJECT,
    MIN_P,
    STOP,
    CompletionOptions,
    Schema,
    likeliest,
)
from compiler.runtime.server.tools import TOOLS, tools

# The defaults are Ollama's.
TEMPERATURE = NumberField("temperature", default=0.8, least=0, most=2)
TOP_K = IntegerField("top_k", default=40, least=0, most=1 << 20)
TOP_P = NumberField("top_p", default=0.9, least=0, most=1)
REPEAT_PENALTY = NumberField("repeat_penalty", default=1.1, least=0.1, most=10)
# How many tokens at the end of the text count as repeated; -1: all of the text.
REPEAT_LAST_N = IntegerField("repeat_last_n", default=64, least=-1, most=1 << 30)
# -1 draws another seed each time.
SEED = IntegerField("seed", default=-1, least=-1, most=MAX_SEED)
NUM_CTX = IntegerField("num_ctx", default=1 << 30, least=2, most=1 << 30)
RAW = FlagField("raw")

# Options for which only the value that changes nothing is served.
NEUTRAL = (
    NumberField("typical_p", default=1, least=1, most=1),
    NumberField("tfs_z", default=1, least=1, most=1),
    NumberField("presence_penalty", default=0, least=0, most=0),
    NumberField("frequency_penalty", default=0, least=0, most=0),
    IntegerField("mirostat", default=0, least=0, most=0),
)
# Options on how Ollama loads a model and what it drops from long prompts. None of them changes an
# answer of ours: the model is loaded, and prompts are never cut.
OF_LOADING = {
    *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "vocab_only"),
    *("use_mmap", "use_mlock", "num_thread", "num_keep"),
    # They count only where mirostat does.
    *("mirostat_tau", "mirostat_eta"),
    "penalize_newline",
}
DRAWING = {
    *("num_predict", "num_ctx", "stop", "seed", "temperature", "top_k", "top_p", "min_p"),
    *("repeat_penalty", "repeat_last_n"),
}
OPTIONS = OF_LOADING | DRAWING | {field.name for field in NEUTRAL}

# `keep_alive` may have any value: the model stays loaded for as long as the server runs.
COMMON = {"model", "name", "options", "keep_alive"}
_ANSWER = COMMON | {"stream", "logprobs", "top_logprobs", "format"}
CHAT = _ANSWER | {"messages", TOOLS}
GENERATE = _ANSWER | {"prompt", "system", "raw"}
EMBED = COMMON | {"input", "truncate"}
EMBEDDINGS = COMMON | {"prompt"}


def model_name(body: Body) -> str:
    """The model that a request names."""
    # The second name is an older one.
    found = body.get("model") or body.get("name")
    if not isinstance(found, str):
        raise FieldError("model", "the name of a model")
    return found


def answer_options(body: Body, known: set[str], most_tokens: int) -> CompletionOptions:
    """How a chat or a prompt is to be answered by up to `most_tokens`; other fields than those
    that are known are refused."""
    refuse_others(body, known)
    options = _options(body)
    return CompletionOptions(
        limit=_limit(options, most_tokens),
        sampling=_sampling(options),
        stops=[stop for stop in STOP.read(options) if stop],
        stream=_streams(body),
        likeliest=likeliest(body),
        schema=_schema(body),
        tools=tools(body),
    )


def _schema(body: Body) -> Schema | None:
    """The JSON that the answer has to be; None for text."""
    value = body.get("format")
    if not value:
        return None
    if value == "json":
        return Schema("format", ANY_OBJECT)
    if not isinstance(value, dict):
        raise FieldError("format", "json, or a JSON schema")
    return Schema("format", value)


def _options(body: Body) -> dict[str, Any]:
    if not is_given(body, "options"):
        return {}
    options = body["options"]
    if not isinstance(options, dict):
        raise FieldError("options", "an object")
    refuse_others(options, OPTIONS)
    # Home Assistant sends whole numbers as 8192.0.
    found = {name: _whole(value) for name, value in options.items()}
    for field in NEUTRAL:
        field.read(found)
    if found.get("penalize_newline") is False:
        raise FieldError("penalize_newline", "false is not supported")
    return found


def _whole(value: Any) -> Any:
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _limit(options: Body, most_tokens: int) -> int:
    # Below 1, up to the end of the model's context.
    field = IntegerField("num_predict", default=-1, least=-2, most=most_tokens)
    asked = field.read(options)
    return asked if asked > 0 else most_tokens


def _sampling(options: Body) -> Sampling:
    seed = SEED.read(options)
    window = REPEAT_LAST_N.read(options)
    return Sampling(
        temperature=TEMPERATURE.read(options),
        top_k=TOP_K.read(options),
        top_p=TOP_P.read(options),
        min_p=MIN_P.read(options),
        repetition_penalty=REPEAT_PENALTY.read(options),
        repetition_window=window if window >= 0 else None,
        seed=seed if seed >= 0 else None,
    )


def _streams(body: Body) -> bool:
    """Whether the answer comes in pieces, which is the default here."""
    return FlagField("stream").read(body) if is_given(body, "stream") else True


def places(body: Body, context: int) -> int:
    """Tokens that prompt and answer may have together: those of the model, or fewer where the
    client asks for fewer."""
    return min(NUM_CTX.read(_options(body)), context)


def text_field(body: Body, name: str) -> str:
    """A text; empty where none is given."""
    if not is_given(body, name):
        return ""
    value = body[name]
    if not isinstance(value, str):
        raise FieldError(name, "a text")
    return value


def asks_to_unload(body: Body) -> bool:
    """Whether a request without a prompt asks for the model to leave the memory."""
    value = body.get("keep_alive")
    return value in (0, "0", "0s", "0m", "0h")


def texts_to_embed(body: Body, most_texts: int) -> tuple[list[str], bool]:
    """(the texts of /api/embed, whether long ones are cut)"""
    refuse_others(body, EMBED)
    _options(body)
    texts = TextsField("input", most_texts).read(body)
    cuts = FlagField("truncate").read(body) if is_given(body, "truncate") else True
    return texts, cuts


def text_to_embed(body: Body) -> str:
    """The text of /api/embeddings."""
    refuse_others(body, EMBEDDINGS)
    _options(body)
    return text_field(body, "prompt")
