"""The command line. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from compiler import build as building
from compiler import bundle, darwinn, frontends, language, legality, report
from compiler import html as pages
from compiler import measure as measuring
from compiler.errors import BundleError, CalibrationError, CompilerError, OptionError, OutputError
from compiler.partition import Wishes
from compiler.program import Program
from compiler.quantize.calibrate import Observers
from compiler.quantize.samples import ImageOptions
from compiler.runtime import Pipeline, RuntimeBundleError
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
from compiler.runtime.text import Text
from compiler.targets import Target

app = typer.Typer(
    help="Compile ONNX models into verified bundles of int8 segments for Coral Edge TPUs and the host.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

Dims = Annotated[list[str] | None, typer.Option("--dim", metavar="NAME=VALUE", help="Fix a dynamic dimension.")]
Shapes = Annotated[
    list[str] | None, typer.Option("--shape", metavar="INPUT=1,3,224,224", help="Fix the shape of an input.")
]
TargetName = Annotated[
    str, typer.Option("--target", help="Edge TPU and its link: usb3, usb2, pcie, devboard or a .toml file.")
]
HostName = Annotated[str, typer.Option("--host", help="The CPU beside: pi5, pi4 or a .toml file that `measure` wrote.")]
Tpus = Annotated[int, typer.Option(min=1, max=64, help="How many Edge TPUs there are.")]
Aim = Annotated[str, typer.Option(metavar="latency|throughput", help="One fast inference, or a fast pipeline.")]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="tpu|host|auto",
        help="What the Edge TPU takes: to the Edge TPU (default), to the host, or what is faster (language models).",
    ),
]
Context = Annotated[int, typer.Option(min=2, help="Language models: tokens that fit the cache.")]
Chunk = Annotated[int, typer.Option(min=2, help="Language models: tokens that prefill takes at once.")]
Slots = Annotated[int, typer.Option(min=1, max=64, help="Language models: sequences that decode takes at once.")]
MaxRam = Annotated[
    int | None, typer.Option(min=1, help="Language models: MB of memory for weights; more are loaded as they are used.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads per segment.")]
Pins = Annotated[list[str] | None, typer.Option("--pin", metavar="NODE=host", help="Place nodes; * and ? match.")]
Cuts = Annotated[list[str] | None, typer.Option("--cut", metavar="NODE", help="End a segment behind this node.")]


Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token, more draws more freely.")]
TopK = Annotated[int, typer.Option(help="Draw from so many of the likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest that together reach this probability.")]
MinP = Annotated[float, typer.Option(help="Draw from those with at least this share of the likeliest's probability.")]
Penalty = Annotated[float, typer.Option(help="Above 1: tokens of the text become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Draws the same tokens again.")]
Stop = Annotated[list[str] | None, typer.Option(help="End in front of this text. May be repeated.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print tokens per second to standard error.")]


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file; or a language model: GGUF file, Hugging Face folder.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: MODEL.bundle.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=".npz or .npy file, a folder of them, a folder of images; text for language models."),
    ] = None,
    mean: Annotated[str, typer.Option(help="Subtracted from images in [0, 1], e.g. 0.485,0.456,0.406.")] = "0",
    std: Annotated[str, typer.Option(help="Images are divided by it, e.g. 0.229,0.224,0.225.")] = "1",
    size: Annotated[
        str | None, typer.Option(help="HEIGHT,WIDTH that images are resized to before their centre is cut out.")
    ] = None,
    observer: Annotated[
        list[str] | None,
        typer.Option(metavar="[PATTERN=]KIND", help="minmax, percentile or mse; for all or matching tensors."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json of an encoder, for the embeddings of `serve`.")
    ] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="Fail below this SQNR in dB at any output.")] = None,
    accuracy: Annotated[
        str | None, typer.Option(metavar="report", help="Show how much each segment contributes to the end error.")
    ] = None,
    keep_float: Annotated[
        float,
        typer.Option(min=0, max=100, help="Percent of the multiply-accumulates that may stay in float on the host."),
    ] = 0.0,
    dim: Dims = None,
    shape: Shapes = None,
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
        list[str] | None, typer.Option(metavar="STEP", help=f"Leave out a step: {', '.join(building.ACCURACY)}.")
    ] = None,
    check_passes: Annotated[bool, typer.Option("--check-passes", help="Run the model after each pass.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of random calibration data.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Build a bundle from MODEL, run it against the float model and report the difference."""
    options = building.Options(
        dims=_dims(dim),
        shapes=_shapes(shape),
        target=target,
        wishes=_wishes(tpus, objective, place or _default_place(model), pin, cut, host),
        calibration=calibration,
        image=ImageOptions(_floats("--mean", mean), _floats("--std", std), _size(size)),
        observers=Observers.parse(observer or ()),
        min_sqnr=min_sqnr,
        accuracy=accuracy,
        tokenizer=tokenizer,
        keep_float=keep_float / 100,
        without=_steps(without),
        check_passes=check_passes,
        seed=seed,
        force=force,
    )
    if accuracy not in (None, "report"):
        raise OptionError(f"--accuracy {accuracy}: the only kind is 'report'")
    output = output or model.with_suffix(".bundle")
    settings = language.Options(context, chunk, slots, max_ram)
    if frontends.recognises(model):
        _refuse_for_language(options)
        with _progress() as step:
            manifest = language.build(model, output, options, settings, step)
        report.show_language(out, manifest)
        out.print(f"Wrote {escape(str(output))}. `generate {escape(str(output))} PROMPT` continues a text.")
        return
    if settings != language.Options():
        raise OptionError(f"{model}: --context, --chunk, --slots and --max-ram are for language models")
    if calibration is None:
        err.print("[bold yellow]No --calibration: using random data; accuracy will be meaningless.[/]")
    with _progress() as step:
        manifest = building.build(model, output, options, step)
    report.show_plan(out, manifest)
    report.show_quality(out, manifest["quality"])
    out.print(f"Wrote {escape(str(output))}. TPU segments are int8 TFLite, not yet compiled by edgetpu_compiler.")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, an ONNX file (a dry run), or a compiled .tflite file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the plan as one page, and print nothing.")] = None,
    dot: Annotated[Path | None, typer.Option("--dot", help="Write the lowered graph for Graphviz (ONNX only).")] = None,
    netron: Annotated[
        Path | None, typer.Option("--netron", help="Write the lowered graph as ONNX for Netron (ONNX only).")
    ] = None,
    dim: Dims = None,
    shape: Shapes = None,
    target: TargetName = "usb3",
    host: HostName = "pi5",
    tpus: Tpus = 1,
    objective: Aim = "latency",
    place: Where = None,
    pin: Pins = None,
    cut: Cuts = None,
) -> None:
    """Show the segments of a bundle, or those that an ONNX file would get, and why nodes are on the host.

    Of a compiled *_edgetpu.tflite file, show its executables and what is cached and streamed.
    """
    if frontends.recognises(path):
        raise OptionError(f"{path}: `plan` shows what is predicted of a language model; `inspect` takes its bundle")
    wishes = _wishes(tpus, objective, place or "tpu", pin, cut, host)
    options = building.Options(dims=_dims(dim), shapes=_shapes(shape), target=target, wishes=wishes)
    planned = path.is_dir() or path.suffix == ".tflite"
    if planned and options != building.Options():
        raise OptionError(f"{path}: is planned already; options of the plan are for .onnx files")
    if (planned and (dot or netron)) or (path.suffix == ".tflite" and html):
        raise OptionError(f"{path}: --dot and --netron take .onnx files, --html those and bundles")
    if path.suffix == ".tflite":
        packages, on_cpu = darwinn.read(path)
        if as_json:
            print(json.dumps({"packages": [asdict(p) for p in packages], "on_cpu": on_cpu}, indent=1))
        else:
            report.show_compiled(out, path.name, packages, on_cpu)
        return
    if path.is_dir():
        plan = bundle.load(path).manifest
    else:
        with _progress() as step:
            program = building.lower(building.read(path, options, step), options, step)
        plan = building.summary(program, path)
        _write_graphs(program, dot, netron)
    if html is not None:
        _write(html, pages.page(plan))
        return
    if as_json:
        print(json.dumps(plan, indent=1))
        return
    if "language" in plan:
        report.show_language(out, plan)
        return
    report.show_plan(out, plan)
    if "quality" in plan:
        report.show_quality(out, plan["quality"])


@app.command()
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
    report.show_check(out, path.name, rows)


@app.command()
def plan(
    model: Annotated[Path, typer.Argument(help="ONNX file, or a language model.")],
    tpus: Annotated[str, typer.Option(metavar="1..8", help="How many Edge TPUs: 4, 1,2,4 or 1..8.")] = "1..8",
    objective: Aim = "throughput",
    target: TargetName = "usb3",
    host: HostName = "pi5",
    place: Where = None,
    pin: Pins = None,
    dim: Dims = None,
    shape: Shapes = None,
    context: Context = language.Options.context,
    chunk: Chunk = language.Options.chunk,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Predict latency, throughput and memory of MODEL on several numbers of Edge TPUs, without quantizing it.

    Of a language model: tokens per second of prefill and decode on one Edge TPU, by where its layers run.
    """
    if frontends.recognises(model):
        number = 1 if tpus == "1..8" else _counts(tpus)[0]
        wishes = _wishes(number, "latency", place or "auto", pin, None, host)
        options = building.Options(dims=_dims(dim), shapes=_shapes(shape), target=target, wishes=wishes)
        _refuse_for_language(options)
        with _progress() as step:
            done = step("predicting", 6)
            found = []
            for row in language.forecasts(model, options, language.Options(context, chunk)):
                found.append(row)
                done()
        if as_json:
            print(json.dumps(found, indent=1))
        else:
            report.show_language_forecasts(out, model.name, Target.load(target), found)
        return
    place = place or "tpu"
    counts = _counts(tpus)
    options = building.Options(dims=_dims(dim), shapes=_shapes(shape), target=target)
    with _progress() as step:
        lowered = building.rewrite(building.read(model, options, step), options, step)
        done = step("cutting into segments", len(counts))
        rows = []
        for number in counts:
            wishes = _wishes(number, objective, place, pin, None, host)
            rows.append(building.forecast(building.divide(lowered, options.target, wishes)))
            done()
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        report.show_forecasts(out, model.name, Target.load(target), rows)


@app.command()
def measure(
    output: Annotated[Path, typer.Option("--output", "-o", help=".toml file for --host.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Measure this machine's CPU with onnxruntime and write what `--host` takes."""
    text = measuring.measure(threads)
    out.print(text, highlight=False, markup=False, end="")
    _write(output, text)


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    source: Annotated[
        Path, typer.Option("--input", "-i", help=".npz with one array per input, or .npy for one input.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".npz for the outputs.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads per segment.")] = 2,
) -> None:
    """Run a bundle on this machine. Arrays may hold several samples stacked along the first axis."""
    loaded = bundle.load(path)
    try:
        pipeline = Pipeline(loaded, threads)
        samples = _samples(source, pipeline)
        with _progress() as step:
            done = step("running", len(samples))
            results = []
            for sample in samples:
                results.append(pipeline.run(sample))
                done()
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error
    stacked = {o["name"]: _stack([r[o["name"]] for r in results]) for o in pipeline.outputs}
    _save(output, stacked)
    for name, array in stacked.items():
        out.print(f"{escape(name)}: {list(array.shape)} {array.dtype}", highlight=False)
    out.print(f"Wrote {escape(str(output))}.")


@app.command()
def generate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A language model's bundle.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="How many tokens at most.")] = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = 2,
    stats: Stats = False,
) -> None:
    """Continue a text with a language model, token by token."""
    session = _session(path, threads, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    with _text_errors():
        _answer(session, session.text.encode(text), tokens, stop, stats)


@app.command()
def chat(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A language model's bundle.")],
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="How many tokens an answer has at most.")] = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = 2,
    stats: Stats = False,
) -> None:
    """Talk with a language model; an empty line or the end of input ends it."""
    session = _session(path, threads, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    messages = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        with _text_errors():
            answer = _answer(session, session.text.conversation(messages), tokens, stop, stats)
        messages.append({"role": "assistant", "content": answer})


@app.command()
def serve(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle of a language model or an encoder.")],
    address: Annotated[
        str, typer.Option(help="Where to listen; only this machine can reach the default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Texts at once; default: what the bundle was built for.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait for a slot; more are refused.")] = 32,
    api_key: Annotated[
        str | None, typer.Option(envvar="CORAL_BUNDLE_API_KEY", help="Clients must send it as a bearer token.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request at most.")] = 1 << 20,
    threads: Threads = 2,
) -> None:
    """Serve a language model, or an encoder built with --tokenizer, over HTTP as OpenAI's API does."""
    import uvicorn

    from compiler.runtime.batching import Batcher
    from compiler.runtime.embedding import Embedder
    from compiler.runtime.server import EmbeddingServer, Limits, Server, Web

    loaded = bundle.load(path)
    web = Web(path.name.removesuffix(".bundle"), api_key, Limits(max_body, max_tokens))
    server: Server | EmbeddingServer
    try:
        if "language" in loaded.manifest:
            model = LanguageModel(loaded, threads, slots or loaded.manifest["language"]["slots"])
            server = Server(web, Text(loaded), Batcher(model, waiting))
            what = f"with {len(model.slots)} slots"
        else:
            server, what = EmbeddingServer(web, Embedder(loaded, threads)), "for embeddings"
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error
    config = uvicorn.Config(
        server.app(),
        host=address,
        port=port,
        log_level="warning",
        timeout_keep_alive=10,
        h11_max_incomplete_event_size=16384,
    )
    try:
        listening = config.bind_socket()
        listening.listen(config.backlog)  # before we say so
    except (OSError, SystemExit) as error:
        raise OptionError(f"--address {address} --port {port}: cannot be listened on") from error
    place = f"http://{address}:{listening.getsockname()[1]}"
    out.print(f"Serving {escape(web.name)} on {place} {what}; Ctrl-C ends it.", soft_wrap=True)
    uvicorn.Server(config).run([listening])


@contextmanager
def _text_errors() -> Iterator[None]:
    """A text that the model cannot take is the user's to change."""
    try:
        yield
    except ValueError as error:
        raise OptionError(str(error)) from error


@dataclass(frozen=True)
class _Session:
    model: LanguageModel
    text: Text
    sampling: Sampling


def _session(path: Path, threads: int, *how: Any) -> _Session:
    try:
        sampling = Sampling(*how)
    except ValueError as error:
        raise OptionError(f"--{str(error).replace('_', '-')}") from error
    loaded = bundle.load(path)
    try:
        return _Session(LanguageModel(loaded, threads), Text(loaded), sampling)
    except RuntimeBundleError as error:
        raise BundleError(str(error)) from error


def _answer(session: _Session, prompt: list[int], limit: int, stops: list[str] | None, stats: bool) -> str:
    """Print the text that follows a prompt as it comes; returns it."""
    began, times, parts = time.perf_counter(), [], []
    kept = session.model.kept(session.model.slots[0], prompt)

    def timed() -> Iterator[int]:
        for token in session.model.generate(prompt, limit, session.sampling):
            times.append(time.perf_counter())
            yield token

    for part in session.text.stream(timed(), stops or ()):
        parts.append(part)
        print(part, end="", flush=True)
    print()
    if stats and times:
        first, more = times[0] - began, times[-1] - times[0]
        rate = f", decode {len(times) - 1} tokens, {(len(times) - 1) / more:.1f} tokens/s" if more else ""
        read = len(prompt) - kept
        err.print(f"prefill {read} tokens, {read / first:.1f} tokens/s, {first * 1e3:.0f} ms to the first{rate}")
    return "".join(parts)


def _default_place(model: Path) -> str:
    return "auto" if frontends.recognises(model) else "tpu"


def _refuse_for_language(options: building.Options) -> None:
    """Raises OptionError for options that mean nothing to a language model."""
    plain = building.Options()
    for name in (
        "dims",
        "shapes",
        "image",
        "min_sqnr",
        "accuracy",
        "keep_float",
        "without",
        "check_passes",
        "observers",
        "seed",
    ):
        if getattr(options, name) != getattr(plain, name):
            option = {
                "dims": "--dim",
                "shapes": "--shape",
                "image": "--mean, --std and --size",
                "observers": "--observer",
            }
            raise OptionError(f"{option.get(name, '--' + name.replace('_', '-'))}: is for .onnx files")
    if options.wishes.cuts:
        raise OptionError("--cut: is for .onnx files")


def _samples(source: Path, pipeline: Pipeline) -> list[dict[str, np.ndarray]]:
    """The arrays of a file as samples of the bundle's inputs."""
    try:
        loaded = np.load(source, allow_pickle=False)
        arrays = {pipeline.inputs[0]["name"]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"{source}: cannot be read as numpy arrays: {error}") from error
    try:
        return pipeline.samples(arrays)
    except ValueError as error:
        raise CalibrationError(f"{source}: {error}") from error


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays[0].ndim and len(arrays[0]) == 1 else np.stack(arrays)


def _write_graphs(program: Program, dot: Path | None, netron: Path | None) -> None:
    if dot is not None:
        _write(dot, pages.dot(program))
    if netron is not None:
        building.save_graph(program, netron)
        out.print(f"Wrote {escape(str(netron))}; `netron {escape(str(netron))}` shows it.")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    out.print(f"Wrote {escape(str(path))}.")


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write beside the place and rename, so that nothing half-written is left."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        made.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        made.unlink(missing_ok=True)


def _dims(options: list[str] | None) -> dict[str, int]:
    found = {}
    for option in options or ():
        name, _, value = option.rpartition("=")
        if not name or not value.isdecimal() or int(value) < 1:
            raise OptionError(f"--dim {option}: write NAME=VALUE with a positive number, e.g. --dim batch=1")
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


def _wishes(tpus: int, objective: str, place: str, pins: list[str] | None, cuts: list[str] | None, host: str) -> Wishes:
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
    return Wishes(tpus, objective, place, pinned, tuple(cuts or ()), host)  # type: ignore[arg-type]


def _counts(text: str) -> list[int]:
    first, dots, last = text.partition("..")
    parts = [first, last] if dots else text.split(",")
    if not all(p.isdecimal() and 1 <= int(p) <= 64 for p in parts):
        raise OptionError(f"--tpus {text}: write a number up to 64, several with commas, or a range such as 1..8")
    numbers = [int(p) for p in parts]
    return [*range(numbers[0], numbers[1] + 1)] if dots else numbers


def _steps(names: list[str] | None) -> frozenset[str]:
    for name in names or ():
        if name not in building.ACCURACY:
            raise OptionError(f"--without {name}: choose from {', '.join(building.ACCURACY)}")
    return frozenset(names or ())


def _floats(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} {text}: write numbers separated by commas") from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise OptionError(f"--size {text}: write HEIGHT,WIDTH")
    return int(parts[0]), int(parts[1])


@contextmanager
def _progress() -> Iterator[building.Report]:
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


def _terminated(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; errors become one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except CompilerError as error:
        err.print(f"[bold red]error[/] {error.code}: {escape(str(error))}", highlight=False, soft_wrap=True)
        if error.exit_code == 70:
            err.print("This is a bug of the compiler; please report it with the model and the lines below.")
            traceback.print_exc()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        sys.exit(130)
