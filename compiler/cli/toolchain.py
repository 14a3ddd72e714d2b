"""The command `toolchain`."""

from __future__ import annotations

from typing import Annotated

import typer

import compiler
from compiler.cli.common import progress_bars, wrote
from compiler.errors import OptionError


def toolchain(
    action: Annotated[str, typer.Argument(metavar="install")],
    name: Annotated[str, typer.Argument(metavar="onnx-tf")],
    python: Annotated[
        str, typer.Option(help="A Python 3.11 to make the environment with.")
    ] = "python3.11",
) -> None:
    """Install onnx-tf and TensorFlow, for `build --lowering onnx-tf`.

    They go into an environment of their own, as they are no longer maintained and go with nothing
    newer.
    """
    if (action, name) != ("install", "onnx-tf"):
        raise OptionError(f"toolchain {action} {name}: write: toolchain install onnx-tf")
    with progress_bars() as progress:
        progress("installing onnx-tf", 1)
        folder = compiler.install_onnx_tf(python)
    wrote(folder)
