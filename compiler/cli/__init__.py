"""The command line. Results go to standard output, progress and errors to standard error.

Modules here parse and show; what they do is in compiler/driver/api.py and compiler/runtime/. They
import these inside their functions, so that --help costs little. Commands of the device side work
with what `pip install 'coral-bundle[device]'` brings; the others say what they need besides.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape

import compiler
from compiler.cli.bench import bench
from compiler.cli.build import build
from compiler.cli.chat import chat
from compiler.cli.check import check
from compiler.cli.common import err, out
from compiler.cli.compile import compile_
from compiler.cli.doctor import doctor
from compiler.cli.export import export
from compiler.cli.generate import generate
from compiler.cli.inspect import inspect
from compiler.cli.measure import measure
from compiler.cli.plan import plan
from compiler.cli.run import run
from compiler.cli.serve import serve
from compiler.cli.toolchain import toolchain
from compiler.errors import CompilerError, OptionError, OutputError, one_line

PROGRAM = "coral-bundle"

app = typer.Typer(
    help="Compile ONNX models into verified bundles of int8 segments for Coral Edge TPUs and the "
    "host.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# For each extra of this project: a package that its commands cannot do without, and the commands.
_COMMANDS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "compiler": (
        "onnx_ir",
        {
            "build": build,
            "inspect": inspect,
            "check": check,
            "plan": plan,
            "compile": compile_,
            "export": export,
            "measure": measure,
            "toolchain": toolchain,
        },
    ),
    "device": ("onnxruntime", {"run": run, "bench": bench, "doctor": doctor}),
    "text": ("tokenizers", {"generate": generate, "chat": chat, "serve": serve}),
}


def _missing(command: str, extra: str) -> Callable[..., None]:
    """A command that says what to install."""

    def refuse(rest: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        raise OptionError(f"{command}: not installed here: pip install '{PROGRAM}[{extra}]'")

    refuse.__doc__ = f"Not installed here: pip install '{PROGRAM}[{extra}]'."
    return refuse


def _register() -> None:
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    for extra, (package, commands) in _COMMANDS.items():
        installed = importlib.util.find_spec(package) is not None
        for name, function in commands.items():
            if installed:
                app.command(name)(function)
            else:
                app.command(name, context_settings=anything)(_missing(name, extra))


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"{PROGRAM} {compiler.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


_register()


def flag_of(field: str) -> str:
    """The flag of a field of the options classes: parameters of commands have the fields' names."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in commands.values():
        for parameter in command.params:
            if parameter.name == field:
                return str(parameter.opts[0])
    return "--" + field.replace("_", "-")


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # It prints stacks of errors that we then say in a line.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        with _standard_output():
            # Commands return nothing; what ends them early, such as --version, is an exit code.
            code = app(standalone_mode=False)
        sys.exit(code or 0)
    except CompilerError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except typer.Abort:
        err.print("interrupted")
        sys.exit(130)
    except Exception as error:
        # A command line that cannot be parsed. The class is click's or, in newer versions of typer,
        # typer's own; both have this method and nothing else does.
        if not hasattr(error, "format_message"):
            raise
        _print_usage_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


def _print_error(error: CompilerError) -> None:
    text = str(error) if error.option is None else f"{flag_of(error.option)} {error.message}"
    err.print(
        f"[bold red]error[/] {error.code}: {escape(one_line(text))}",
        highlight=False,
        soft_wrap=True,
    )
    if error.exit_code == 70:
        err.print(
            "This is a bug of the compiler; please report it with the model and the lines below."
        )
        err.print(traceback.format_exc(), highlight=False, markup=False, soft_wrap=True)


def _print_usage_error(error: Any) -> None:
    """One line, as for other errors; the whole help where nothing at all was asked for."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    command = PROGRAM if context is None else str(context.command_path)
    if "\n" in message.strip() or not message.strip():
        error.show()
        return
    text = f"{message.strip().rstrip('.')}: `{command} --help` shows what it takes"
    err.print(
        f"[bold red]error[/] {OptionError.code}: {escape(one_line(text))}",
        highlight=False,
        soft_wrap=True,
    )


def _terminated(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


@contextmanager
def _standard_output() -> Iterator[None]:
    """Raises OutputError where what was printed does not fit its disk."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as where it was closed
                sys.stdout.flush()
    except OSError as error:
        from compiler import files

        if error.filename is not None or not files.ran_full(error):
            raise
        # Python would try again at its end, and fail with other words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output: cannot be written: {error.strerror}") from error
