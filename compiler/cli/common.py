"""What the commands share: consoles, progress, files, errors of the runtime."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from compiler.errors import BundleError, DeviceError, OptionError, one_line, visible

if TYPE_CHECKING:
    from compiler.runtime import Bundle


class Terminal(Console):
    """A console that shows the control characters of what it prints, and does not obey them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


# What commands need besides the runtime, by the extra that installs it.
_PACKAGES = {
    "pictures": ("PIL",),
    "text": ("tokenizers", "starlette", "uvicorn"),
    "vision": ("PIL", "python_multipart", "starlette", "uvicorn"),
    "frigate": ("PIL", "zmq"),
}

out = Terminal()
err = Terminal(stderr=True)


@contextmanager
def device_errors() -> Iterator[None]:
    """What the runtime says of a bundle or a device, as an error of the command line."""
    from compiler.runtime import RuntimeBundleError, SegmentError
    from compiler.runtime.devices import DeviceChoiceError

    try:
        yield
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error
    except SegmentError as error:
        raise DeviceError(str(error)) from error
    except DeviceChoiceError as error:
        raise OptionError(str(error), "devices") from error


# The name of compiler.progress.notes.
NOTES = "compiler.notes"


class _ConsoleHandler(logging.Handler):
    """Prints log lines above the progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = escape(one_line(record.getMessage()))
        self._console.print(f"[dim]{text}[/]", highlight=False, soft_wrap=True)


def log_to(console: Console, name: str = "compiler.driver") -> None:
    """Print what the compiler logs: by default of its passes, under NOTES what users should
    know."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.handlers = [_ConsoleHandler(console)]


def notices(texts: Sequence[str]) -> None:
    """Print what the user should know of the devices to standard error."""
    for text in texts:
        err.print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def require_packages(command: str, extra: str) -> None:
    """Raises OptionError where a package that a command needs of an extra is not installed."""
    for package in _PACKAGES[extra]:
        if importlib.util.find_spec(package) is None:
            raise OptionError(
                f"{command}: {package} is not installed here: pip install 'coral-bundle[{extra}]'"
            )


def open_bundle(path: Path) -> Bundle:
    """The bundle, its files compared with their digests. Raises BundleError."""
    from compiler.runtime import Bundle

    with device_errors():
        return Bundle.open(path)


def write(path: Path, text: str, sources: Sequence[Path] = ()) -> None:
    """Write a file that the user asked for; `sources` are what the command reads. Raises
    OutputError."""
    from compiler import files

    files.write_text(path, text, sources)
    wrote(path)


def wrote(path: Path, more: str = "") -> None:
    """Say that a file was written, on standard error where it is standard output."""
    text = escape(one_line(str(path)) + more)
    console_beside(path).print(f"Wrote {text}.", highlight=False, soft_wrap=True)


def console_beside(path: Path) -> Console:
    """Standard output, or standard error where `path` is standard output."""
    from compiler import files

    return err if files.is_stdout(path) else out


def _announce_in_lines(stage: str, steps: int) -> Callable[[], None]:
    err.print(f"{escape(stage)} ...", highlight=False, soft_wrap=True)
    return lambda: None


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """A progress bar for each stage, on standard error; a line for each where that is no
    terminal."""
    if not err.is_interactive:
        yield _announce_in_lines
        return
    from rich import progress as bars

    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    # What is printed goes above the bars where both are on a terminal, else to where it should.
    shares_terminal = out.is_terminal
    with bars.Progress(
        *columns, console=err, transient=True, redirect_stdout=shares_terminal
    ) as progress:

        def announce(stage: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(stage, total=steps)
            return lambda: progress.advance(task)

        yield announce
