"""Tries tokenizers and renders chat templates of strangers: the program of the process with limits
(confined.py).

As a script it answers requests on standard input, a line of JSON each. It imports nothing of this
package, so that it starts fast.
"""

from __future__ import annotations

import json
import resource
import string
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Each kind of character that tokenizers treat in a way of its own, alone and in long runs.
TRIAL = "\n".join(
    [
        string.printable,
        "The quick brown fox's 12,345.67 jumps\u2014over <|im_start|> [INST] </s> the lazy dog?!",
        "Zw\u00f6lf Boxk\u00e4mpfer \u4f60\u597d",
        "\u0421\u044a\u0435\u0448\u044c \u0639\u0631\u0628\u064a \U0001f642",
        *(part * 256 for part in ("a", " ", "1", "-", "a ", "\t", "\u00e9", "Ab1 ")),
        "",
    ]
)
# A character of three bytes may become 18 characters when it is normalised; more tokens than that
# are no text's.
MOST_TOKENS_PER_BYTE = 64


def load_tokenizer(definition: str) -> Any:
    """The tokenizer of a tokenizer.json, without what changes a text's length or leaves its tokens
    to chance."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


def try_tokenizer(definition: str) -> None:
    """Raises what the tokenizers library raises, ValueError for a tokenizer that makes too much of
    a text."""
    tokenizer = load_tokenizer(definition)
    tokens = tokenizer.encode(TRIAL).ids
    size = len(TRIAL.encode())
    if len(tokens) > MOST_TOKENS_PER_BYTE * size:
        raise ValueError(f"it makes {len(tokens)} tokens of {size} bytes")
    tokenizer.decode(tokens)
    tokenizer.decode_batch([[token] for token in tokenizer.get_vocab().values()])


class RefusalError(Exception):
    """What a template says that does not take a conversation."""


def render(source: str, values: dict[str, Any]) -> str:
    """A chat template's text, in the environment that transformers gives to templates."""
    return str(_template(source).render(**values))


# Templates that were compiled: a conversation renders its own again at each turn.
_TEMPLATES: dict[str, Any] = {}
# Templates run code of theirs in the sandboxes of older ones: CVE-2025-27516, CVE-2024-56326.
OLDEST_JINJA = (3, 1, 6)
# Characters of an error or a refusal that are told.
_LONGEST_MESSAGE = 500


def _template(source: str) -> Any:
    if source not in _TEMPLATES:
        _TEMPLATES[source] = _environment().from_string(source)
    return _TEMPLATES[source]


def _environment() -> Any:
    import jinja2.sandbox

    if _version("jinja2") < OLDEST_JINJA:
        wanted = ".".join(map(str, OLDEST_JINJA))
        raise ImportError(f"the sandbox of this jinja2 leaks: pip install 'jinja2>={wanted}'")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    return environment


def _version(package: str) -> tuple[int, ...]:
    from importlib.metadata import version

    parts = version(package).split(".")[:3]
    return tuple(int(part) for part in parts if part.isdecimal())


def _refuse(message: Any) -> None:
    raise RefusalError(str(message))


def _strftime_now(format_: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(format_)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """JSON as text, where jinja2's own writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


_TASKS: dict[str, Callable[..., Any]] = {"try_tokenizer": try_tokenizer, "render": render}


def answers(requests: Iterable[str]) -> Iterator[str]:
    """A line of JSON for each request: a result, a refusal, an overrun or an error."""
    for request in requests:
        task, arguments = json.loads(request)
        try:
            answer = {"result": _TASKS[task](*arguments)}
        except RefusalError as error:
            answer = {"refusal": _message(error)}
        except MemoryError:
            answer = {"overrun": "memory"}
        except (KeyboardInterrupt, SystemExit):
            return
        except BaseException as error:  # a panic of the Rust library is no Exception
            answer = {"error": _message(error)}
        yield json.dumps(answer)


def _message(error: BaseException) -> str:
    """What an error says, in one line. Not by `compiler.errors`, which a script cannot import."""
    words = str(error).split()
    return " ".join(words)[:_LONGEST_MESSAGE] or type(error).__name__


def _limit_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    # An abort of the library shall not fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit_memory(int(sys.argv[1]))
    for answer in answers(sys.stdin):
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
