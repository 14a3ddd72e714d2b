"""What the commands share: the consoles, progress, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from compiler.errors import BundleError, DeviceError, OptionError, OutputError
from compiler.runtime import Bundle, RuntimeBundleError, SegmentError
from compiler.runtime.devices import DeviceChoiceError

out = Console()
err = Console(stderr=True)

Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Devices = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|usb:0,...", help="Edge TPUs: all that are found, none, these; sim:2, ray."
    ),
]
OnLoss = Annotated[
    str,
    typer.Option(
        metavar="move|cpu|stop",
        help="A lost Edge TPU's segments go to the others, the CPU, nowhere.",
    ),
]


@contextmanager
def device_errors() -> Iterator[None]:
    """What the runtime says of a bundle or a device, as an error of the command line."""
    try:
        yield
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error
    except SegmentError as error:
        raise DeviceError(str(error)) from error
    except DeviceChoiceError as error:
        raise OptionError(f"--devices {error}") from error


def notices(texts: Sequence[str]) -> None:
    for text in texts:
        err.print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=True)


def open_bundle(path: Path) -> Bundle:
    """Raises BundleError."""
    with device_errors():
        return Bundle.open(path)


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    out.print(f"Wrote {escape(str(path))}.")


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """A progress bar per stage on standard error."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:

        def step(stage: str, steps: int) -> Callable[[], None]:
            task = progress.add_task(stage, total=steps)
            return lambda: progress.advance(task)

        yield step
