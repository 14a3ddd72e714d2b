"""What the commands share: the consoles, progress, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment

from compiler import files
from compiler.errors import BundleError, DeviceError, OptionError, one_line, visible
from compiler.runtime import Bundle, RuntimeBundleError, SegmentError
from compiler.runtime.devices import DeviceChoiceError


class Terminal(Console):
    """A console that shows the control characters of what it prints, and does not obey them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


out = Terminal()
err = Terminal(stderr=True)

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


def write(path: Path, text: str, sources: Sequence[Path] = ()) -> None:
    """Write a file that the user asked for; `sources` are what the command reads. Raises
    OutputError."""
    files.write_text(path, text, sources)
    wrote(path)


def wrote(path: Path, more: str = "") -> None:
    console = err if files.is_stdout(path) else out
    console.print(f"Wrote {escape(one_line(str(path)) + more)}.", highlight=False, soft_wrap=True)


def needed(bundle: Bundle) -> list[Path]:
    """The files of a bundle that no output may take the place of."""
    return [bundle.path / name for name in ("manifest.json", *(e["path"] for e in bundle.files()))]


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
