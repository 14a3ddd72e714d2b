"""The command `check`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import compiler
from compiler.cli import options as shared
from compiler.cli.common import out, print_json
from compiler.driver.options import BuildOptions


def check(
    path: Annotated[Path, typer.Argument(metavar="TFLITE", help="A quantized .tflite file.")],
    json: Annotated[bool, typer.Option("--json", help="Print the operators as JSON.")] = False,
    subgraphs: Annotated[
        str,
        typer.Option(
            "--subgraphs",
            metavar="one|many",
            help="many: as edgetpu_compiler's option -a, which maps more than the first part.",
        ),
    ] = "one",
    target: shared.Target = BuildOptions.target,
) -> None:
    """Predict which operators of a TFLite file edgetpu_compiler would map, and why not others."""
    from compiler.view.compiled import show_check

    operators = compiler.check(path, target, subgraphs)
    if json:
        print_json([asdict(operator) for operator in operators])
    else:
        show_check(out, path.name, operators)
