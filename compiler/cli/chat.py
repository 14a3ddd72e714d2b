"""The command `chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from compiler.cli import options as shared
from compiler.cli.session import Session, sampling_of, text_errors


def chat(
    path: shared.BundlePath,
    system: Annotated[
        str | None, typer.Option(help="What the model is told before the conversation.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, help="How many tokens an answer has at most.")
    ] = 512,
    temperature: shared.Temperature = 0.7,
    top_k: shared.TopK = 0,
    top_p: shared.TopP = 0.95,
    min_p: shared.MinP = 0.0,
    repetition_penalty: shared.RepetitionPenalty = 1.0,
    seed: shared.Seed = None,
    stop: shared.Stop = None,
    devices: shared.Devices = "auto",
    threads: shared.Threads = 2,
    stats: shared.Stats = False,
) -> None:
    """Talk with a language model; an empty line or the end of input ends it."""
    sampling = sampling_of(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    session = Session.open(path, devices, threads, sampling)
    messages = [{"role": "system", "content": system}] if system else []
    for line in _lines():
        messages.append({"role": "user", "content": line})
        with text_errors():
            conversation = session.text.conversation(messages)
            answer = session.answer(conversation, tokens, stop or (), stats)
        messages.append({"role": "assistant", "content": answer})


def _lines() -> Iterator[str]:
    """What the user types, up to an empty line."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        if not line.strip():
            return
        yield line
