"""Options that several commands have, under the headings that compiler/driver/options.py declares.

A parameter has the name of its field in the options classes, so that an error about a field can
name the flag.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.driver.options import ACCURACY, MOST_SLOTS, OPTIONAL, QUALITY, SCOPES, Group

PANELS: dict[Group, str] = {
    "model": "Model",
    "calibration": "Calibration",
    "accuracy": "Accuracy",
    "plan": "Plan",
    "language": "Language models",
    "toolchain": "Toolchain",
}
_TOOLCHAIN = PANELS["toolchain"]


def option(field: str, *flags: str, **settings: Any) -> Any:
    """The typer option of a field, under the heading of its group."""
    return typer.Option(*flags, rich_help_panel=PANELS[SCOPES[field].group], **settings)


Outputs = Annotated[
    str | None,
    option(
        "outputs",
        metavar="A,B",
        help="End the model at these tensors, by their names in the file. Default: at its outputs.",
    ),
]
Input = Annotated[
    str,
    option(
        "input",
        metavar="float32|uint8|int8",
        help="What the bundle takes: what the file takes, or pixels as uint8 or int8 (pixel - 128),"
        " which the Edge TPU normalises by --mean and --std.",
    ),
]
Layout = Annotated[
    str | None,
    option(
        "layout",
        metavar="nchw|nhwc",
        help="The order of axes of the image that goes in. Default: the file's; of pixels nhwc.",
    ),
]
Mean = Annotated[
    str | None,
    option(
        "mean",
        help="Subtracted from images, whose values are in [0, 1]: 0.485,0.456,0.406. Default: what "
        "the model's metadata say, else 0.",
    ),
]
Std = Annotated[
    str | None,
    option(
        "std",
        help="Images are then divided by it: 0.229,0.224,0.225. Default: likewise, else 1.",
    ),
]
Dims = Annotated[
    list[str] | None,
    option(
        "dims",
        "--dim",
        metavar="NAME=VALUE",
        help="Fix a dynamic dimension: batch=1. May be repeated.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    option(
        "shapes",
        "--shape",
        metavar="INPUT=1,3,224,224",
        help="Fix the shape of an input. May be repeated.",
    ),
]
Values = Annotated[
    list[str] | None,
    option(
        "values",
        "--value",
        metavar="INPUT=VALUE",
        help="Fix what an input holds: sr=16000. Branches that depend on it are dropped, and the "
        "bundle has no such input. May be repeated.",
    ),
]
State = Annotated[
    list[str] | None,
    option(
        "state",
        metavar="OUTPUT=INPUT",
        help="An output that goes back into an input at the next step: stateN=state. May be "
        "repeated; none: there is none. Default: told by names and shapes.",
    ),
]
Quality = Annotated[
    list[str] | None,
    option(
        "quality",
        metavar="FIGURE=VALUE",
        help="What results have to reach on the samples, e.g. sqnr=25 or top1=0.99; the fastest "
        "plan that is found to is built; where none is, the last lines say what comes nearer. "
        "Default: a figure for the kind of model; none looks for nothing. "
        "May be repeated: "
        f"{', '.join(QUALITY)}.",
    ),
]
Without = Annotated[
    list[str] | None,
    option(
        "without",
        metavar="STEP",
        help=f"Leave out a step that only serves accuracy. May be repeated: {', '.join(ACCURACY)}.",
    ),
]
Also = Annotated[
    list[str] | None,
    option(
        "also",
        "--with",
        metavar="STEP",
        help="Add a step that trades speed against accuracy. May be repeated: "
        f"{', '.join(OPTIONAL)}.",
    ),
]
Target = Annotated[
    str,
    option("target", help="The Edge TPU and its link: usb3, usb2, pcie, devboard or a .toml file."),
]
Host = Annotated[
    str,
    option(
        "host",
        help="The host, for predictions: pi5, pi4, pi3, desktop, devboard or a file of `measure`.",
    ),
]
Tpus = Annotated[int, option("tpus", help="How many Edge TPUs there are, 1 to 64.")]
Objective = Annotated[
    str,
    option(
        "objective",
        metavar="latency|throughput|p95",
        help="Make one inference fast, or a pipeline over all Edge TPUs, which may hold a segment "
        "several times, or the slowest of twenty requests that come at `--rate`.",
    ),
]
Rate = Annotated[
    str | None,
    option("rate", metavar="30/s", help="Requests per second, for `--objective p95`."),
]
Place = Annotated[
    str | None,
    option(
        "place",
        metavar="tpu|host|auto",
        help="Where layers that an Edge TPU takes run: there, on the host, or where it is "
        "predicted to be faster (auto, default). Auto gives an Edge TPU something even where the "
        "host alone is faster, but for language models.",
    ),
]
Pins = Annotated[
    list[str] | None,
    option(
        "pins",
        "--pin",
        metavar="NODE=tpu|host",
        help="Place nodes by name; * and ? match. May be repeated.",
    ),
]
Cuts = Annotated[
    list[str] | None,
    option(
        "cuts",
        "--cut",
        metavar="NODE",
        help="End a segment behind this node; the planner then makes no cuts of its own. May be "
        "repeated.",
    ),
]
Context = Annotated[int, option("context", help="Tokens that fit the cache, 2 or more.")]
Chunk = Annotated[int, option("chunk", help="Tokens that prefill takes at once, 2 or more.")]
Slots = Annotated[
    int, option("slots", help=f"Sequences that decode takes at once, 1 to {MOST_SLOTS}.")
]
MaxRam = Annotated[
    int | None,
    option(
        "max_ram",
        metavar="MB",
        help="Memory for weights, in MB. What does not fit is loaded segment by segment as it is "
        "used, which is slow. Default: no limit.",
    ),
]
DecodeWeights = Annotated[
    str | None,
    option(
        "decode_weights",
        metavar="file|int8|4bit",
        help="What decode on the host multiplies by: file (the 4- or 8-bit blocks of a GGUF file), "
        "int8 (the rows that prefill has: less memory) or 4bit (fastest, less accurate). Default: "
        "file, and int8 where decode is on Edge TPUs.",
    ),
]
Tool = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        rich_help_panel=_TOOLCHAIN,
        help="Google's edgetpu_compiler; none does not run it. Default: $EDGETPU_COMPILER, else "
        "the one on PATH, if any.",
    ),
]
Docker = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE",
        rich_help_panel=_TOOLCHAIN,
        help="Run edgetpu_compiler in this docker image.",
    ),
]
Timeout = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="SECONDS",
        rich_help_panel=_TOOLCHAIN,
        help="How long edgetpu_compiler may take for a segment.",
    ),
]
TrustCompiler = Annotated[
    bool,
    typer.Option(
        "--trust-compiler",
        rich_help_panel=_TOOLCHAIN,
        help="Keep what edgetpu_compiler gives even where its weights and scales are not found to "
        "be those of the segment; the manifest says so.",
    ),
]
# As vendor/edgetpu_compiler.py has it, which is too heavy to import for a default.
TIMEOUT = 180

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
HostWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many segments the CPU runs at once, each with its share of the threads. Default: "
        "as planned, else 1.",
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|usb:0,...",
        help="Edge TPUs to use: all that are found, none, or these; sim:2 simulates two, ray takes "
        "those of a cluster.",
    ),
]
OnLoss = Annotated[
    str,
    typer.Option(
        metavar="move|cpu|stop",
        help="Where the segments of a lost Edge TPU go: to the others, to the CPU, or nowhere.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token; higher values draw more freely.")
]
TopK = Annotated[int, typer.Option(help="Draw from so many of the likeliest tokens; 0: all.")]
TopP = Annotated[
    float,
    typer.Option(help="Draw from the likeliest tokens that together reach this probability."),
]
MinP = Annotated[
    float,
    typer.Option(help="Draw from tokens with at least this share of the likeliest's probability."),
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1, tokens of the text so far become less likely.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed draws the same tokens.")]
Stop = Annotated[list[str] | None, typer.Option(help="End in front of this text. May be repeated.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print tokens per second to standard error.")]
