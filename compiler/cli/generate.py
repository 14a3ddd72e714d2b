"""The command `generate`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from compiler.cli import options as shared
from compiler.cli.common import notices
from compiler.cli.session import Session, sampling_of, text_errors


def generate(
    path: shared.BundlePath,
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; - reads it from standard input.")
    ],
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, help="How many tokens at most.")
    ] = 128,
    temperature: shared.Temperature = 0.0,
    top_k: shared.TopK = 0,
    top_p: shared.TopP = 1.0,
    min_p: shared.MinP = 0.0,
    repetition_penalty: shared.RepetitionPenalty = 1.0,
    seed: shared.Seed = None,
    stop: shared.Stop = None,
    devices: shared.Devices = "auto",
    threads: shared.Threads = 2,
    stats: shared.Stats = False,
) -> None:
    """Continue a text with a language model, token by token."""
    sampling = sampling_of(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    session = Session.open(path, devices, threads, sampling)
    if tokens > session.model.context:
        notices(
            [
                f"--tokens {tokens}: prompt and answer together end at the model's context of "
                f"{session.model.context}"
            ]
        )
    text = sys.stdin.read() if prompt == "-" else prompt
    with text_errors():
        session.answer(session.text.encode(text), tokens, stop or (), stats)
