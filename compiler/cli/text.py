"""Commands of language models: they need the runtime, and libraries for text and HTTP."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from compiler.cli.common import Devices, Threads, device_errors, err, notices, open_bundle, out
from compiler.errors import OptionError
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
from compiler.runtime.text import Text

KEY_VARIABLE = "CORAL_BUNDLE_API_KEY"

Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token, more draws more freely.")
]
TopK = Annotated[int, typer.Option(help="Draw from so many of the likeliest tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option(help="Draw from the likeliest that together reach this probability.")
]
MinP = Annotated[
    float,
    typer.Option(help="Draw from those with at least this share of the likeliest's probability."),
]
Penalty = Annotated[float, typer.Option(help="Above 1: tokens of the text become less likely.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Draws the same tokens again.")]
Stop = Annotated[list[str] | None, typer.Option(help="End in front of this text. May be repeated.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print tokens per second to standard error.")]


def generate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A language model's bundle.")],
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; - reads it from standard input.")
    ],
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, help="How many tokens at most.")
    ] = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    devices: Devices = "auto",
    threads: Threads = 2,
    stats: Stats = False,
) -> None:
    """Continue a text with a language model, token by token."""
    session = _session(
        path, devices, threads, temperature, top_k, top_p, min_p, repetition_penalty, seed
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    with _text_errors():
        _answer(session, session.text.encode(text), tokens, stop, stats)


def chat(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A language model's bundle.")],
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, help="How many tokens an answer has at most.")
    ] = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    devices: Devices = "auto",
    threads: Threads = 2,
    stats: Stats = False,
) -> None:
    """Talk with a language model; an empty line or the end of input ends it."""
    session = _session(
        path, devices, threads, temperature, top_k, top_p, min_p, repetition_penalty, seed
    )
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        with _text_errors():
            answer = _answer(session, session.text.conversation(messages), tokens, stop, stats)
        messages.append({"role": "assistant", "content": answer})


def serve(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle of a language model or an encoder.")
    ],
    address: Annotated[
        str, typer.Option(help="Where to listen; only this machine can reach the default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Texts at once; default: what the bundle was built for."),
    ] = None,
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for a slot; more are refused.")
    ] = 32,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY_VARIABLE, help="Clients must send it as a bearer token."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients may call this server by. May be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Pages of this origin may ask, as https://example.org. May be repeated."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request at most.")] = 1 << 20,
    max_texts: Annotated[
        int, typer.Option(min=1, help="Texts of a request for embeddings at most.")
    ] = 2048,
    devices: Devices = "auto",
    threads: Threads = 2,
) -> None:
    """Serve a language model, or an encoder built with --tokenizer, over HTTP as OpenAI's API does."""
    import uvicorn

    from compiler.runtime import server as serving
    from compiler.runtime.batching import Batcher
    from compiler.runtime.embedding import Embedder
    from compiler.runtime.server.protocol import uvicorn_config

    # The command line takes an empty variable for none.
    key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    limits = serving.Limits(max_body, max_tokens, texts=max_texts, waiting=waiting)
    try:
        access = serving.Access.of(address, allow_host or (), allow_origin or ())
        web = serving.Web(path.name.removesuffix(".bundle"), key, limits, access)
    except ValueError as error:
        raise OptionError(f"serve: {error}") from error
    loaded = open_bundle(path)
    server: serving.CompletionServer | serving.EmbeddingServer
    with device_errors():
        if "language" in loaded.manifest:
            number = slots or loaded.manifest["language"]["slots"]
            model = LanguageModel(loaded, threads, number, devices=devices)
            notices(model.fleet.notices)
            server = serving.CompletionServer(web, Text(loaded), Batcher(model, waiting))
            what = f"with {len(model.slots)} slots"
        else:
            embedder = Embedder(loaded, threads, devices)
            notices(embedder.fleet.notices)
            server, what = serving.EmbeddingServer(web, embedder), "for embeddings"
    config = uvicorn_config(serving.application(server), address, port)
    try:
        listening = config.bind_socket()
        listening.listen(config.backlog)  # before we say so
    except (OSError, SystemExit) as error:
        raise OptionError(f"--address {address} --port {port}: cannot be listened on") from error
    place = f"http://{f'[{address}]' if ':' in address else address}:{listening.getsockname()[1]}"
    out.print(f"Serving {escape(web.name)} on {place} {what}; Ctrl-C ends it.", soft_wrap=True)
    uvicorn.Server(config).run([listening])


@contextmanager
def _text_errors() -> Iterator[None]:
    """A text that the model cannot take is the user's to change."""
    with device_errors():
        try:
            yield
        except ValueError as error:
            raise OptionError(str(error)) from error


@dataclass(frozen=True)
class _Session:
    model: LanguageModel
    text: Text
    sampling: Sampling


def _session(path: Path, devices: str, threads: int, *how: Any) -> _Session:
    try:
        sampling = Sampling(*how)
    except ValueError as error:
        raise OptionError(f"--{str(error).replace('_', '-')}") from error
    loaded = open_bundle(path)
    with device_errors():
        model = LanguageModel(loaded, threads, devices=devices)
        notices(model.fleet.notices)
        return _Session(model, Text(loaded), sampling)


def _answer(
    session: _Session, prompt: list[int], limit: int, stops: list[str] | None, stats: bool
) -> str:
    """Print the text that follows a prompt as it comes; returns it."""
    began, times, parts = time.perf_counter(), [], []
    kept = session.model.kept(session.model.slots[0], prompt)

    def timed() -> Iterator[int]:
        for token in session.model.generate(prompt, limit, session.sampling):
            times.append(time.perf_counter())
            yield token

    for part in session.text.stream(timed(), stops or ()):
        parts.append(part)
        print(part, end="", flush=True)
    print()
    if stats and times:
        first, more = times[0] - began, times[-1] - times[0]
        rate = (
            f", decode {len(times) - 1} tokens, {(len(times) - 1) / more:.1f} tokens/s"
            if more
            else ""
        )
        read = len(prompt) - kept
        err.print(
            f"prefill {read} tokens, {read / first:.1f} tokens/s, {first * 1e3:.0f} ms to the first{rate}"
        )
    return "".join(parts)
