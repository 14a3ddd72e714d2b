"""Commands of the compiler."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from compiler import files, frontends
from compiler.cli.common import err, needed, out, progress_bars, write, wrote
from compiler.device import legality
from compiler.device import measure as measuring
from compiler.driver import build as building
from compiler.driver import language
from compiler.emit import bundle, compilation
from compiler.emit import manifest as manifests
from compiler.errors import OptionError, ToolchainError, one_line
from compiler.partition import PartitionOptions, Program
from compiler.quantize.calibrate import Observers
from compiler.quantize.samples import ImageOptions
from compiler.targets import Target
from compiler.vendor import darwinn, onnx_tf
from compiler.vendor import edgetpu_compiler as toolchain
from compiler.view import page as pages
from compiler.view import tables

Dims = Annotated[
    list[str] | None, typer.Option("--dim", metavar="NAME=VALUE", help="Fix a dynamic dimension.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="INPUT=1,3,224,224", help="Fix the shape of an input."),
]
Values = Annotated[
    list[str] | None,
    typer.Option("--value", metavar="INPUT=VALUE", help="Fix what an input holds: sr=16000."),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target", help="Edge TPU and its link: usb3, usb2, pcie, devboard or a .toml file."
    ),
]
HostName = Annotated[
    str,
    typer.Option("--host", help="The CPU beside: pi5, pi4 or a .toml file that `measure` wrote."),
]
Tpus = Annotated[int, typer.Option(min=1, max=64, help="How many Edge TPUs there are.")]
Aim = Annotated[
    str, typer.Option(metavar="latency|throughput", help="One fast inference, or a fast pipeline.")
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="tpu|host|auto",
        help="What the Edge TPU takes: to the Edge TPU (default), to the host, or what is faster (language models).",
    ),
]
Context = Annotated[int, typer.Option(min=2, help="Language models: tokens that fit the cache.")]
Chunk = Annotated[
    int, typer.Option(min=2, help="Language models: tokens that prefill takes at once.")
]
Slots = Annotated[
    int, typer.Option(min=1, max=64, help="Language models: sequences that decode takes at once.")
]
MaxRam = Annotated[
    int | None,
    typer.Option(
        min=1, help="Language models: MB of memory for weights; more are loaded as they are used."
    ),
]
Pins = Annotated[
    list[str] | None, typer.Option("--pin", metavar="NODE=host", help="Place nodes; * and ? match.")
]
Cuts = Annotated[
    list[str] | None, typer.Option("--cut", metavar="NODE", help="End a segment behind this node.")
]
Tool = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="edgetpu_compiler; default: $EDGETPU_COMPILER, else on PATH; none: do not run it.",
    ),
]
Docker = Annotated[
    str | None, typer.Option(metavar="IMAGE", help="Run edgetpu_compiler in this image.")
]
Timeout = Annotated[
    int, typer.Option(min=1, help="Seconds that edgetpu_compiler may take for a segment.")
]


def build(
    model: Annotated[
        Path, typer.Argument(help="ONNX file; or a language model: GGUF file, Hugging Face folder.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: MODEL.bundle.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help=".npz or .npy file, a folder of them, a folder of images; text for language models."
        ),
    ] = None,
    mean: Annotated[
        str, typer.Option(help="Subtracted from images in [0, 1], e.g. 0.485,0.456,0.406.")
    ] = "0",
    std: Annotated[
        str, typer.Option(help="Images are divided by it, e.g. 0.229,0.224,0.225.")
    ] = "1",
    size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHT,WIDTH that images are resized to before their centre is cut out."
        ),
    ] = None,
    observer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]KIND", help="minmax, percentile or mse; for all or matching tensors."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json of an encoder, for the embeddings of `serve`."),
    ] = None,
    min_sqnr: Annotated[
        float | None, typer.Option(help="Fail below this SQNR in dB at any output.")
    ] = None,
    accuracy: Annotated[
        str | None,
        typer.Option(
            metavar="report", help="Show how much each segment contributes to the end error."
        ),
    ] = None,
    keep_float: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            help="Percent of the multiply-accumulates that may stay in float on the host.",
        ),
    ] = 0.0,
    dim: Dims = None,
    shape: Shapes = None,
    value: Values = None,
    target: TargetName = "usb3",
    host: HostName = "pi5",
    tpus: Tpus = 1,
    objective: Aim = "latency",
    place: Where = None,
    pin: Pins = None,
    cut: Cuts = None,
    context: Context = language.Options.context,
    chunk: Chunk = language.Options.chunk,
    slots: Slots = language.Options.slots,
    max_ram: MaxRam = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help=f"Leave out a step: {', '.join(building.ACCURACY)}."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="STEP", help=f"Add a step: {', '.join(building.OPTIONAL)}."),
    ] = None,
    check_passes: Annotated[
        bool, typer.Option("--check-passes", help="Run the model after each pass.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random calibration data.")] = 0,
    lowering: Annotated[
        str,
        typer.Option(
            metavar="direct|onnx-tf[,direct]",
            help="Who writes TPU segments; with ,direct where it fails.",
        ),
    ] = "direct",
    edgetpu_compiler: Tool = None,
    docker: Docker = None,
    timeout: Timeout = toolchain.TIMEOUT,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Build a bundle from MODEL, run it against the float model and report the difference."""
    options = building.Options(
        dims=_dims(dim),
        shapes=_shapes(shape),
        values=_values(value),
        target=target,
        partitioning=_partition_options(
            tpus, objective, place or _default_place(model), pin, cut, host
        ),
        calibration=calibration,
        image=ImageOptions(_floats("--mean", mean), _floats("--std", std), _size(size)),
        observers=Observers.parse(observer or ()),
        min_sqnr=None if min_sqnr is None else _finite("--min-sqnr", min_sqnr),
        accuracy=accuracy,
        tokenizer=tokenizer,
        keep_float=keep_float / 100,
        without=_steps("--without", without, building.ACCURACY),
        also=_steps("--with", also, building.OPTIONAL),
        check_passes=check_passes,
        seed=seed,
        force=force,
        lowering=_lowering(lowering),
        tool=None
        if edgetpu_compiler == "none"
        else toolchain.find(edgetpu_compiler, docker, timeout),
    )
    if accuracy not in (None, "report"):
        raise OptionError(f"--accuracy {accuracy}: the only kind is 'report'")
    finer = options.also - {"rotate_stream"}
    if finer and options.partitioning.place != "tpu":
        raise OptionError(f"--with {min(finer)}: is for layers on the Edge TPU; add --place tpu")
    output = output or model.with_suffix(".bundle")
    settings = language.Options(context, chunk, slots, max_ram)
    if frontends.recognises(model):
        _refuse_for_language(options)
        with progress_bars() as step:
            manifest = language.build(model, output, options, settings, step)
        tables.show_language(out, manifest)
        tables.show_compilation(out, manifest)
        wrote(output, f"; `generate {one_line(str(output))} PROMPT` continues a text")
        tables.show_warnings(out, manifest["quality"])
        return
    if "rotate_stream" in options.also:
        raise OptionError(f"{model}: --with rotate_stream is for language models")
    if settings != language.Options():
        raise OptionError(
            f"{model}: --context, --chunk, --slots and --max-ram are for language models"
        )
    if calibration is None:
        err.print(
            "[bold yellow]No --calibration: using random data; accuracy will be meaningless.[/]"
        )
    with progress_bars() as step:
        manifest = building.build(model, output, options, step)
    tables.show_plan(out, manifest)
    tables.show_quality(out, manifest["quality"])
    tables.show_baseline(out, manifest["quality"])
    tables.show_compilation(out, manifest)
    wrote(output)
    tables.show_warnings(out, manifest["quality"])


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle, an ONNX file (a dry run), or a compiled .tflite file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the plan as one page, and print nothing.")
    ] = None,
    dot: Annotated[
        Path | None, typer.Option("--dot", help="Write the lowered graph for Graphviz (ONNX only).")
    ] = None,
    netron: Annotated[
        Path | None,
        typer.Option("--netron", help="Write the lowered graph as ONNX for Netron (ONNX only)."),
    ] = None,
    dim: Dims = None,
    shape: Shapes = None,
    value: Values = None,
    target: TargetName = "usb3",
    host: HostName = "pi5",
    tpus: Tpus = 1,
    objective: Aim = "latency",
    place: Where = None,
    pin: Pins = None,
    cut: Cuts = None,
) -> None:
    """Show the segments of a bundle, or those that an ONNX file would get, and why nodes are on the
    host.

    Of a compiled *_edgetpu.tflite file, show its executables and what is cached and streamed.
    """
    bundle.restore(path)
    if frontends.recognises(path):
        raise OptionError(
            f"{path}: `plan` shows what is predicted of a language model; `inspect` takes its bundle"
        )
    partitioning = _partition_options(tpus, objective, place or "tpu", pin, cut, host)
    options = building.Options(
        dims=_dims(dim),
        shapes=_shapes(shape),
        values=_values(value),
        target=target,
        partitioning=partitioning,
    )
    planned = path.is_dir() or path.suffix == ".tflite"
    if planned and options != building.Options():
        raise OptionError(f"{path}: is planned already; options of the plan are for .onnx files")
    if (planned and (dot or netron)) or (path.suffix == ".tflite" and html):
        raise OptionError(f"{path}: --dot and --netron take .onnx files, --html those and bundles")
    if path.suffix == ".tflite":
        _show_compiled(path, as_json)
        return
    if path.is_dir():
        found = bundle.load(path)
        plan: Mapping[str, Any] = found.manifest
        sources = needed(found)
    else:
        with progress_bars() as step:
            program = building.lower(building.read(path, options, step), options, step)
        plan = manifests.summary(program, path)
        sources = [path]
        _write_graphs(program, dot, netron, [path])
        if any(graph is not None and files.is_stdout(graph) for graph in (dot, netron)):
            return
    if html is not None:
        write(html, pages.page(plan), sources)
        return
    if as_json:
        print(json.dumps(plan, indent=1))
        return
    if "language" in plan:
        tables.show_language(out, plan)
        tables.show_warnings(out, plan["quality"])
        return
    tables.show_plan(out, plan)
    if "quality" in plan:
        tables.show_quality(out, plan["quality"])
        tables.show_baseline(out, plan["quality"])
        tables.show_warnings(out, plan["quality"])


def check(
    path: Annotated[Path, typer.Argument(metavar="TFLITE", help="A quantized .tflite file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the operators as JSON.")] = False,
    target: TargetName = "usb3",
) -> None:
    """Predict which operators of a TFLite file edgetpu_compiler would map, and why not the others."""
    rows = legality.check(path, Target.load(target))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    tables.show_check(out, path.name, rows)


def plan(
    model: Annotated[Path, typer.Argument(help="ONNX file, or a language model.")],
    tpus: Annotated[
        str, typer.Option(metavar="1..8", help="How many Edge TPUs: 4, 1,2,4 or 1..8.")
    ] = "1..8",
    objective: Aim = "throughput",
    target: TargetName = "usb3",
    host: HostName = "pi5",
    place: Where = None,
    pin: Pins = None,
    dim: Dims = None,
    shape: Shapes = None,
    value: Values = None,
    context: Context = language.Options.context,
    chunk: Chunk = language.Options.chunk,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Predict latency, throughput and memory of MODEL on several numbers of Edge TPUs, without
    quantizing it.

    Of a language model: tokens per second of prefill and decode on one Edge TPU, by where its
    layers run.
    """
    if frontends.recognises(model):
        number = 1 if tpus == "1..8" else _counts(tpus)[0]
        partitioning = _partition_options(number, "latency", place or "auto", pin, None, host)
        options = building.Options(
            dims=_dims(dim),
            shapes=_shapes(shape),
            values=_values(value),
            target=target,
            partitioning=partitioning,
        )
        _refuse_for_language(options)
        with progress_bars() as step:
            done = step("predicting", 6)
            found = []
            for row in language.forecasts(model, options, language.Options(context, chunk)):
                found.append(row)
                done()
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            tables.show_language_forecasts(out, model.name, Target.load(target), found)
        return
    place = place or "tpu"
    counts = _counts(tpus)
    options = building.Options(
        dims=_dims(dim), shapes=_shapes(shape), values=_values(value), target=target
    )
    with progress_bars() as step:
        lowered = building.rewrite(building.read(model, options, step), options, step)
        done = step("cutting into segments", len(counts))
        rows = []
        for number in counts:
            partitioning = _partition_options(number, objective, place, pin, None, host)
            rows.append(building.forecast(building.divide(lowered, options.target, partitioning)))
            done()
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        tables.show_forecasts(out, model.name, Target.load(target), rows)


def compile_(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle, which gets the compiled files.")
    ],
    edgetpu_compiler: Tool = None,
    docker: Docker = None,
    timeout: Timeout = toolchain.TIMEOUT,
) -> None:
    """Run edgetpu_compiler on the segments of a bundle that was built without it, e.g. on a
    Raspberry Pi."""
    tool = toolchain.find(edgetpu_compiler, docker, timeout)
    if tool is None:
        raise ToolchainError(
            "edgetpu_compiler is not on PATH: set $EDGETPU_COMPILER, or give --edgetpu-compiler or --docker IMAGE; "
            "it runs on x86-64 Linux"
        )
    with progress_bars() as step:
        manifest = compilation.compile_bundle(path, tool, step)
    tables.show_compilation(out, manifest)
    wrote(path)


def toolchain_(
    action: Annotated[str, typer.Argument(metavar="install")],
    name: Annotated[str, typer.Argument(metavar="onnx-tf")],
    python: Annotated[
        str, typer.Option(help="A Python 3.11 to make the environment with.")
    ] = "python3.11",
) -> None:
    """Install onnx-tf with TensorFlow in an environment of its own, for `build --lowering onnx-tf`."""
    if (action, name) != ("install", "onnx-tf"):
        raise OptionError(f"toolchain {action} {name}: write: toolchain install onnx-tf")
    with progress_bars() as step:
        step("installing onnx-tf", 1)
        place = onnx_tf.install(python)
    wrote(place)


def measure(
    output: Annotated[Path, typer.Option("--output", "-o", help=".toml file for --host.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Measure this machine's CPU with onnxruntime and write what `--host` takes."""
    text = measuring.measure(threads)
    if not files.is_stdout(output):
        out.print(text, highlight=False, markup=False, end="")
    write(output, text)


def _default_place(model: Path) -> str:
    return "auto" if frontends.recognises(model) else "tpu"


def _refuse_for_language(options: building.Options) -> None:
    """Raises OptionError for options that mean nothing to a language model."""
    plain = building.Options()
    for name in (
        "dims",
        "shapes",
        "values",
        "image",
        "min_sqnr",
        "accuracy",
        "keep_float",
        "without",
        "check_passes",
        "observers",
        "seed",
        "lowering",
    ):
        if getattr(options, name) != getattr(plain, name):
            option = {
                "dims": "--dim",
                "shapes": "--shape",
                "values": "--value",
                "image": "--mean, --std and --size",
                "observers": "--observer",
            }
            raise OptionError(
                f"{option.get(name, '--' + name.replace('_', '-'))}: is for .onnx files"
            )
    if options.partitioning.cuts:
        raise OptionError("--cut: is for .onnx files")


def _show_compiled(path: Path, as_json: bool) -> None:
    packages, on_cpu = darwinn.read(path)
    if as_json:
        print(json.dumps({"packages": [asdict(p) for p in packages], "on_cpu": on_cpu}, indent=1))
    else:
        tables.show_compiled(out, path.name, packages, on_cpu)


def _write_graphs(
    program: Program, dot: Path | None, netron: Path | None, sources: Sequence[Path]
) -> None:
    if dot is not None:
        write(dot, pages.dot(program), sources)
    if netron is not None:
        building.save_graph(program, netron, sources)
        wrote(netron, f"; `netron {one_line(str(netron))}` shows it")


def _dims(options: list[str] | None) -> dict[str, int]:
    found = {}
    for option in options or ():
        name, _, value = option.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise OptionError(
                f"--dim {option}: write NAME=VALUE with a positive number, e.g. --dim batch=1"
            )
        found[name] = int(value)
    return found


def _shapes(options: list[str] | None) -> dict[str, tuple[int, ...]]:
    found = {}
    for option in options or ():
        name, _, value = option.rpartition("=")
        parts = value.split(",") if value else []
        if not name or not all(p.isdecimal() and int(p) > 0 for p in parts):
            raise OptionError(f"--shape {option}: write INPUT=1,3,224,224")
        found[name] = tuple(int(p) for p in parts)
    return found


def _values(options: list[str] | None) -> dict[str, str]:
    found = {}
    for option in options or ():
        name, _, value = option.rpartition("=")
        if not name or not value:
            raise OptionError(f"--value {option}: write INPUT=VALUE, e.g. --value sr=16000")
        found[name] = value
    return found


def _partition_options(
    tpus: int, objective: str, place: str, pins: list[str] | None, cuts: list[str] | None, host: str
) -> PartitionOptions:
    for option, value, allowed in (
        ("--objective", objective, ("latency", "throughput")),
        ("--place", place, ("tpu", "host", "auto")),
    ):
        if value not in allowed:
            raise OptionError(f"{option} {value}: choose from {', '.join(allowed)}")
    pinned: dict[str, Any] = {}
    for pin in pins or ():
        name, _, device = pin.rpartition("=")
        if not name or device not in ("tpu", "host"):
            raise OptionError(f"--pin {pin}: write NODE=host or NODE=tpu")
        pinned[name] = device
    return PartitionOptions(tpus, objective, place, pinned, tuple(cuts or ()), host)  # type: ignore[arg-type]


def _counts(text: str) -> list[int]:
    first, dots, last = text.partition("..")
    parts = [first, last] if dots else text.split(",")
    if not all(p.isdecimal() and 1 <= int(p) <= 64 for p in parts):
        raise OptionError(
            f"--tpus {text}: write a number up to 64, several with commas, or a range such as 1..8"
        )
    numbers = [int(p) for p in parts]
    return [*range(numbers[0], numbers[1] + 1)] if dots else numbers


def _steps(option: str, names: list[str] | None, known: Sequence[str]) -> frozenset[str]:
    for name in names or ():
        if name not in known:
            raise OptionError(f"{option} {name}: choose from {', '.join(known)}")
    return frozenset(names or ())


def _lowering(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if names not in (("direct",), ("onnx-tf",), ("onnx-tf", "direct")):
        raise OptionError(f"--lowering {text}: write direct, onnx-tf, or onnx-tf,direct")
    if names[0] == "onnx-tf":
        onnx_tf.find()
    return names


def _floats(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} {text}: write numbers separated by commas") from error


def _finite(option: str, number: float) -> float:
    if not math.isfinite(number):
        raise OptionError(f"{option} {number}: give a finite number")
    return number


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise OptionError(f"--size {text}: write HEIGHT,WIDTH")
    return int(parts[0]), int(parts[1])
