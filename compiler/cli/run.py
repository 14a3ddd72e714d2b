"""The command `run`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.markup import escape

from compiler.cli import options as shared
from compiler.cli import sequences
from compiler.cli.common import (
    console_beside,
    device_errors,
    notices,
    open_bundle,
    progress_bars,
    require_packages,
    wrote,
)
from compiler.cli.pictures import Shown, check_save, pictures_at
from compiler.cli.pictures import results as picture_results
from compiler.errors import InputError, OptionError, OutputError
from compiler.validation import require_choice

if TYPE_CHECKING:
    import numpy as np

    from compiler.runtime import Runner
    from compiler.runtime.inputs import Arrays


def run(
    path: shared.BundlePath,
    pictures: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PICTURE]", help="A picture, or a folder of pictures or of a video's frames."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", help=".npz file with an array per input, or .npy file for one input."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".npz file with an array per output.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Draw boxes or classes into a copy of the picture; a folder for a folder's."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each picture, in a line.")
    ] = False,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Leave out what scores less. Default: 0.25 for objects, 0 for classes.",
        ),
    ] = None,
    devices: shared.Devices = "auto",
    on_loss: shared.OnLoss = "move",
    threads: shared.Threads = 2,
    host_workers: shared.HostWorkers = None,
) -> None:
    """Run a bundle on pictures, or on arrays from a file.

    A classifier's five best classes are printed, or a detector's boxes in pixels of the picture.

    Arrays may hold several samples, stacked along the first axis. These go through as a pipeline,
    as the pictures of a folder do. For a model with state they are the steps of a sequence, and an
    axis in front of that counts sequences; the state of the first step may be given too.

    An output NAME whose shape differs between samples, as its size depends on their data, is
    written as an array for each sample: NAME/0, NAME/1, ...
    """
    from compiler.runtime import Runner
    from compiler.runtime.fleet import ON_LOSS, HostThreads

    require_choice("on_loss", on_loss, ON_LOSS)
    if output is not None and output.suffix == ".npy":
        raise OutputError(f"{output}: outputs are written as .npz: name an .npz file")
    shown = Shown(min_score, as_json, save)
    if source is None:
        if pictures is None:
            raise OptionError("run: give a picture, or arrays with --input and --output")
        require_packages("run", "pictures")
        files = pictures_at(pictures)
        if save is not None:
            check_save(save, pictures)
    elif pictures is not None or shown != Shown():
        raise OptionError("run: --input takes arrays, which go to --output: give no picture")
    elif output is None:
        raise OptionError("run: --input needs --output FILE.npz")
    bundle = open_bundle(path)
    workers = HostThreads(threads, host_workers)
    with device_errors(), Runner(bundle, devices, workers, on_loss) as runner:
        if source is not None and output is not None:
            _run_arrays(runner, source, output)
        elif pictures is not None:
            notices(runner.notices)
            _run_pictures(runner, files, pictures, shown, output)


def _run_arrays(runner: Runner, source: Path, output: Path) -> None:
    """Run the samples of a file and write what comes out."""
    if "state" in runner.bundle.manifest:
        _run_sequences(runner, source, output)
        return
    samples = read_samples(source, runner)
    if not samples:
        raise InputError(f"{source}: holds no samples")
    notices([*runner.notices, *_infinite(samples, runner)])
    with progress_bars() as progress:
        done = progress("running", len(samples))
        results = []
        for result in runner.stream(samples):
            results.append(result)
            done()
    _tell(_write(runner, results, output, [source]), output)


def _run_sequences(runner: Runner, source: Path, output: Path) -> None:
    """Run the sequences of a file, each with a state of its own, and write what comes out."""
    found = sequences.read(source, runner)
    steps = [given.step(index) for given in found for index in range(len(given))]
    notices([*runner.notices, *_infinite(steps, runner)])
    with progress_bars() as progress:
        outputs = sequences.run(runner, found, progress("running", len(steps)))
    from compiler import files

    with files.output(output, [source, *runner.bundle.paths()]) as file:
        _save(file, outputs)
    _tell(outputs, output)


def _tell(outputs: Arrays, output: Path) -> None:
    """Say what was written."""
    console = console_beside(output)
    for name, array in outputs.items():
        console.print(f"{escape(name)}: {list(array.shape)} {array.dtype}", highlight=False)
    wrote(output)


def _run_pictures(
    runner: Runner, files: Sequence[Path], source: Path, shown: Shown, output: Path | None
) -> None:
    """Run pictures and tell what is seen; keep and write outputs only where that is asked for."""
    kept = []
    broken: list[Path] = []
    with progress_bars() as progress:
        done = progress("running", len(files))
        for result in picture_results(runner, files, source, shown, broken):
            if output is not None:
                kept.append(result)
            done()
    if output is not None:
        _write(runner, kept, output, files)
    for path in (shown.save, output):
        # Standard output is for JSON alone.
        if path is not None and not shown.as_json:
            wrote(path)
    if broken:
        raise InputError(
            f"{source}: {len(broken)} of {len(files)} pictures cannot be read, '{broken[0].name}' "
            "first; the others were run"
        )


def _write(
    runner: Runner, results: Sequence[Arrays], output: Path, sources: Sequence[Path]
) -> dict[str, np.ndarray]:
    """Write an array for each output; returns them."""
    from compiler import files

    names = [entry["name"] for entry in runner.pipeline.outputs]
    outputs = _outputs(names, results)
    with files.output(output, [*sources, *runner.bundle.paths()]) as file:
        _save(file, outputs)
    return outputs


def read_samples(source: Path, runner: Runner) -> list[dict[str, np.ndarray]]:
    """The arrays of a file as samples of the bundle's inputs. Raises InputError."""
    import numpy as np

    from compiler.runtime import arrays

    if "language" in runner.bundle.manifest:
        raise OptionError(f"{runner.bundle.path}: is a language model: `generate` runs it")
    pipeline = runner.pipeline
    try:
        loaded = arrays.read(source)
        if isinstance(loaded, np.ndarray):
            loaded = {pipeline.inputs[0]["name"]: loaded}
        return pipeline.samples(loaded)
    except (arrays.ArrayError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


def _infinite(samples: Sequence[Arrays], runner: Runner) -> list[str]:
    """A note where samples hold infinity, which int8 cannot represent."""
    import numpy as np

    if all(segment["device"] == "host" for segment in runner.pipeline.segments):
        return []
    for sample in samples:
        for name, array in sample.items():
            if array.dtype.kind == "f" and np.isinf(array).any():
                return [
                    f"input '{name}' holds infinity: where values become int8, it is taken as the "
                    "largest or the smallest of them"
                ]
    return []


def _outputs(names: Sequence[str], results: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The arrays to write: one for each output, or one for each sample where shapes differ."""
    outputs = {}
    for name in names:
        arrays = [result[name] for result in results]
        if len({array.shape for array in arrays}) == 1:
            outputs[name] = sequences.stack(arrays)
            continue
        prefix = f"{name}/"
        while any(other.startswith(prefix) for other in names):
            prefix += "/"
        for index, array in enumerate(arrays):
            outputs[f"{prefix}{index}"] = array
        notices(
            [
                f"output '{name}': its shape differs between samples: written as {prefix}0 to "
                f"{prefix}{len(arrays) - 1}"
            ]
        )
    return outputs


def _save(file: BinaryIO, outputs: Arrays) -> None:
    """Write an .npz as np.savez does, which fails on an array with the name `file`."""
    import numpy as np

    with zipfile.ZipFile(file, "w") as archive:
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array))
