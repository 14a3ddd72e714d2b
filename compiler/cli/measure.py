"""The command `measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compiler
from compiler.cli import options as shared
from compiler.cli.common import out, write


def measure(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .toml file to write, for --host.")
    ],
    threads: shared.Threads = 2,
) -> None:
    """Measure this machine's CPU with onnxruntime, and write what `--host` takes."""
    from compiler import files

    text = compiler.measure_host(threads)
    if not files.is_stdout(output):
        out.print(text, highlight=False, markup=False, end="")
    write(output, text)
