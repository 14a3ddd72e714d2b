"""The command `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import compiler
from compiler.cli import options as shared
from compiler.cli.common import device_errors, notices, open_bundle, out, wrote

if TYPE_CHECKING:
    from compiler.runtime.manifest import SegmentEntry, TensorEntry


def export(
    path: shared.BundlePath,
    form: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="tflite|frigate|pycoral|libcoral",
            help="tflite: one file with metadata and labels. frigate: that file with a labelmap "
            "and the configuration. pycoral, libcoral: a file for each Edge TPU.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the files.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of the same names in that folder.")
    ] = False,
) -> None:
    """Write the TPU segments of a bundle as files for other software.

    Every exported file is run and compared with the bundle, byte for byte. What the host computes
    in front of the first segment and behind the last is not in the files, and is listed.
    """
    bundle = open_bundle(path)
    with device_errors():
        made = compiler.export_bundle(bundle, form, output, force=force)
    for number, segment in enumerate(made.chain.segments):
        out.print(f"file {number}", highlight=False)
        _show("in", segment["inputs"])
        _show("out", segment["outputs"])
    _show_host("in front, not in the files", made.chain.before)
    _show_host("behind, not in the files", made.chain.after)
    what = "inputs"
    if made.trial.takes_pixels:
        less = " less 128" if made.chain.inputs[0]["dtype"] == "int8" else " as they are"
        what = f"pictures, whose pixels went in{less}"
    out.print(
        f"Ran the exported int8 files on {made.trial.samples} drawn {what}: every byte is the "
        "bundle's.",
        highlight=False,
        soft_wrap=True,
    )
    notices(made.notes)
    for name in made.written:
        wrote(output / name)


def _show(direction: str, tensors: Sequence[TensorEntry]) -> None:
    for tensor in tensors:
        text = f"  {direction:<4}{tensor['name']} {tensor['shape']} {tensor['dtype']}"
        if "scale" in tensor:
            text += f", real = {tensor['scale']:.6g} x (value - {tensor['zero_point']})"
        out.print(escape(text), highlight=False, soft_wrap=True)


def _show_host(where: str, segments: Sequence[SegmentEntry]) -> None:
    operators = [operator for segment in segments for operator in segment["operators"]]
    if not operators:
        return
    kinds = ", ".join(sorted({operator["operator"] for operator in operators}))
    text = f"on the host {where}: {len(operators)} operators ({kinds})"
    out.print(escape(text), highlight=False, soft_wrap=True)
