"""Writes docs/cli.md from the commands: `python -m compiler.cli.document > docs/cli.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer.main

from compiler.cli import PROGRAM, app
from compiler.driver.options import SCOPES

_HEAD = f"""# Command line

Generated from the commands in compiler/cli by `python -m compiler.cli.document`; a test keeps it
current.

`{PROGRAM}` and `python -m compiler` are the same. Results go to standard output, progress and
errors to standard error. The exit code is 0 for success, 2 for what the user can mend (one line
says what, where, and what to do), and 70 for a bug of the compiler. `{PROGRAM} --version` prints
the version; `{PROGRAM} --install-completion` makes the shell complete commands and options.
"""
_FIRST_PANEL = "Options"
# What stands for the value of an option that has no name of its own for it.
_VALUES = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def page() -> str:
    """The whole page as Markdown."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [_HEAD]
    for registered in app.registered_commands:
        name = str(registered.name)
        types = get_type_hints(registered.callback)
        parts.append(_command(name, commands[name], types))
    return "\n".join(parts)


def _command(name: str, command: Any, types: Mapping[str, Any]) -> str:
    parameters = [p for p in command.params if p.name in types]
    arguments = [p for p in parameters if not p.opts[0].startswith("-")]
    options = [p for p in parameters if p.opts[0].startswith("-")]
    usage = " ".join([PROGRAM, name, *(_argument_name(argument) for argument in arguments)])
    lines = [f"## `{usage}`", "", inspect.cleandoc(command.help or ""), ""]
    for argument in arguments:
        if argument.help:
            lines += [f"`{_argument_name(argument)}`: {argument.help}", ""]
    for panel, members in _panels(options).items():
        if panel != _FIRST_PANEL:
            lines += [f"**{panel}**", ""]
        lines += ["| option | default | meaning |", "|---|---|---|"]
        lines += [_row(name, option, types[option.name]) for option in members]
        lines.append("")
    return "\n".join(lines)


def _panels(options: Iterable[Any]) -> dict[str, list[Any]]:
    """Options by their headings, those without one first."""
    found: dict[str, list[Any]] = {_FIRST_PANEL: []}
    for option in options:
        panel = getattr(option, "rich_help_panel", None) or _FIRST_PANEL
        found.setdefault(panel, []).append(option)
    return {panel: members for panel, members in found.items() if members}


def _row(command: str, option: Any, kind: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in option.opts)
    is_flag = kind is bool
    if not is_flag:
        name = option.metavar or _VALUES[_scalar(kind)]
        flags = f"{flags} `{_escaped(name)}`"
    default = "" if is_flag else _default(option)
    help_text = _escaped(option.help or "") + _restriction(command, str(option.name))
    return f"| {flags} | {default} | {help_text} |"


def _restriction(command: str, field: str) -> str:
    # Other commands have options of the same name, such as the seed of `generate`.
    scope = SCOPES.get(field) if command in ("build", "inspect", "plan") else None
    return " For ONNX files." if scope is not None and scope.kinds == ("onnx",) else ""


def _scalar(kind: Any) -> Any:
    """The type of a value: T of T, T | None, list[T] and list[T] | None."""
    inner = [part for part in get_args(kind) if part is not type(None)]
    return _scalar(inner[0]) if inner else kind


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.default in (None, [], ()):
        return ""
    return f"`{option.default}`"


def _argument_name(argument: Any) -> str:
    return argument.metavar or str(argument.name).upper()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
