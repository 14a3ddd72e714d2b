"""The command line. Results go to standard output, progress and errors to standard error.

Commands of the device side work with what `pip install '.[device]'` brings; the others say what
they need besides.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer
from rich.markup import escape

from compiler.cli.common import err
from compiler.errors import CompilerError, OptionError

app = typer.Typer(
    help="Compile ONNX models into verified bundles of int8 segments for Coral Edge TPUs and the host.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# For each module its commands, a package that it cannot do without, and the extra of this project
# that brings it.
_MODULES = (
    (
        "compile",
        ("build", "inspect", "check", "plan", "compile", "measure", "toolchain"),
        "onnx_ir",
        "compiler",
    ),
    ("device", ("run", "bench", "doctor"), "onnxruntime", "device"),
    ("text", ("generate", "chat", "serve"), "tokenizers", "text"),
)


def _missing(command: str, extra: str) -> Any:
    def refuse(rest: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        raise OptionError(f"{command}: not installed here: pip install 'coral-bundle[{extra}]'")

    refuse.__doc__ = f"Not installed here: pip install 'coral-bundle[{extra}]'."
    return refuse


for _module, _commands, _package, _extra in _MODULES:
    _installed = importlib.util.find_spec(_package) is not None
    _loaded = importlib.import_module(f"compiler.cli.{_module}") if _installed else None
    for _command in _commands:
        if _loaded is not None:
            _function = getattr(_loaded, f"{_command}_", None) or getattr(_loaded, _command)
            app.command(_command)(_function)
        else:
            _settings = {"ignore_unknown_options": True, "allow_extra_args": True}
            app.command(_command, context_settings=_settings)(_missing(_command, _extra))


def _terminated(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("onnx_ir").setLevel(
        logging.ERROR
    )  # it prints stacks of what we then say in a line
    try:
        app()
    except CompilerError as error:
        err.print(
            f"[bold red]error[/] {error.code}: {escape(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
        if error.exit_code == 70:
            err.print(
                "This is a bug of the compiler; please report it with the model and the lines below."
            )
            traceback.print_exc()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        sys.exit(130)
