"""Errors that a user can cause or must hear about.

CompilerError                     one line for the user, exit code 2
├── OptionError          E-OPTION       an option that does not fit the model or the machine
├── ModelError           E-MODEL        an ONNX file that is broken, unsafe or of open shapes
├── CalibrationError     E-CALIBRATION  samples that do not fit the model
├── InputError           E-INPUT        arrays to run a bundle on that do not fit it, or hold NaN
├── BundleError          E-BUNDLE       a bundle that is damaged, edited or of another version
├── DeviceError          E-DEVICE       a segment failed and no other device may run it
├── ToolchainError       E-TOOLCHAIN    edgetpu_compiler is not there, or cannot be run
├── OutputError          E-OUTPUT       a place that cannot be written
└── QualityError         E-QUALITY      the bundle is below the quality that the user asked for
InternalError            E-INTERNAL     our own bug: names the stage, exit code 70
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

# Unicode categories that a terminal obeys or does not show: control characters, formatting (which
# can reverse the direction of text), surrogates, line and paragraph separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class CompilerError(Exception):
    """Base of every error that ends a command with one line on the terminal.

    `option` names the field of the options classes that the error is about, where there is one. The
    text of the error then begins with it; the command line writes its flag there instead. Behind it
    stands the value, where one is to blame: OptionError("0: give at least 1", "tpus").
    """

    code = "E-COMPILER"
    exit_code = 2

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message if option is None else f"{option} {message}")
        self.message = message
        self.option = option


class OptionError(CompilerError):
    """An option that does not fit the model or the machine."""

    code = "E-OPTION"


class ModelError(CompilerError):
    code = "E-MODEL"


class CalibrationError(CompilerError):
    code = "E-CALIBRATION"


class InputError(CompilerError):
    code = "E-INPUT"


class BundleError(CompilerError):
    code = "E-BUNDLE"


class DeviceError(CompilerError):
    code = "E-DEVICE"


class ToolchainError(CompilerError):
    code = "E-TOOLCHAIN"


class OutputError(CompilerError):
    code = "E-OUTPUT"


class QualityError(CompilerError):
    code = "E-QUALITY"


class InternalError(CompilerError):
    """A stage of the compiler broke its own promise; `stage` says which."""

    code = "E-INTERNAL"
    exit_code = 70

    def __init__(self, stage: str, detail: str) -> None:
        super().__init__(f"stage '{stage}' failed: {detail}")
        self.stage = stage


def visible(text: str) -> str:
    """`text` with its control characters escaped, so that names from files cannot command the
    terminal. Line breaks stay."""
    return "".join(_escaped(character) for character in text)


def one_line(text: str) -> str:
    """`text` with its control characters and its line breaks escaped."""
    return visible(text).replace("\n", "\\n")


def first_line(error: BaseException) -> str:
    """The first line of the innermost cause that is not empty, else the name of its type."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)


def no_file(path: Path) -> str:
    """What to say of a path to read from that is no regular file: pipes and devices may not end."""
    if path.exists():
        return "a folder, not a regular file" if path.is_dir() else "not a regular file"
    return "a link that leads to no file" if path.is_symlink() else "no such file"


def _escaped(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in _UNSEEN:
        return character
    return ascii(character)[1:-1]
