"""What a user may choose of a build. Options check themselves when they are made.

This module imports nothing heavy, so that the command line can show its help at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compiler.errors import OptionError
from compiler.validation import require_choice, require_count, require_number

if TYPE_CHECKING:
    from compiler.partition.options import PartitionOptions
    from compiler.quantize.calibrate import Observers
    from compiler.vendor.edgetpu_compiler import Tool

ModelKind = Literal["onnx", "language"]
InputType = Literal["float32", "uint8", "int8"]
LayoutName = Literal["nchw", "nhwc"]
Fit = Literal["stretch", "letterbox", "crop"]
Colours = Literal["RGB", "BGR"]
DecodeWeights = Literal["file", "int8", "4bit"]
Group = Literal["model", "calibration", "accuracy", "plan", "language", "toolchain"]

# Passes that only serve accuracy, which `without` leaves out; the records in passes/ say so too.
ACCURACY = (
    "keep_gates",
    "keep_spectra",
    "keep_states",
    "cache_constants",
    "split_gates",
    "split_joins",
    "rotate_rows",
    "normalise_linears",
    "keep_tails",
    "balance",
    "equalise",
    "correct_biases",
)
# Steps that trade time against accuracy, which `also` adds.
OPTIONAL = ("fuse_blocks", "rotate_outputs", "second_row", "rotate_stream")
# The optional step that is for language models alone. The others change layers on an Edge TPU.
ROTATE_STREAM = "rotate_stream"
# The one that language models have of blocks alone, and only in prefill.
FUSE_BLOCKS = "fuse_blocks"

# Figures that a quality goal may name; compiler/checks/goals.py says what they are.
QUALITY = ("sqnr", "cosine", "top1", "kl", "ap50", "map50", "recall", "iou", "decisions", "cer")
# The one that language models have.
LANGUAGE_QUALITY = "kl"
# What their values may be: a share that is to be reached, which is not 0; a rate of errors; any.
_SHARES = ("cosine", "top1", "ap50", "map50", "recall", "iou", "decisions")
ACCURACY_VIEWS = ("report",)
LOWERINGS = (("direct",), ("onnx-tf",), ("onnx-tf", "direct"))
MOST_SLOTS = 64
DECODE_WEIGHTS: tuple[DecodeWeights, ...] = ("file", "int8", "4bit")
INPUTS: tuple[InputType, ...] = ("float32", "uint8", "int8")
LAYOUTS: tuple[LayoutName, ...] = ("nchw", "nhwc")
FITS: tuple[Fit, ...] = ("stretch", "letterbox", "crop")
COLOURS: tuple[Colours, ...] = ("RGB", "BGR")


@dataclass(frozen=True)
class Scope:
    """Where an option belongs: its heading in --help, and the kinds of models that it is for."""

    group: Group
    kinds: tuple[ModelKind, ...] = ("onnx", "language")


_ONNX: tuple[ModelKind, ...] = ("onnx",)
_LANGUAGE: tuple[ModelKind, ...] = ("language",)

# Every option by the name of its field, those of ImageOptions, PartitionOptions and LanguageOptions
# too. The command line takes its headings from here, and `suited_to` what it refuses.
SCOPES: Mapping[str, Scope] = {
    "outputs": Scope("model", _ONNX),
    "input": Scope("model", _ONNX),
    "layout": Scope("model", _ONNX),
    "dims": Scope("model", _ONNX),
    "shapes": Scope("model", _ONNX),
    "values": Scope("model", _ONNX),
    "state": Scope("model", _ONNX),
    "force": Scope("model"),
    "calibration": Scope("calibration"),
    "mean": Scope("calibration", _ONNX),
    "std": Scope("calibration", _ONNX),
    "size": Scope("calibration", _ONNX),
    "fit": Scope("calibration", _ONNX),
    "colours": Scope("calibration", _ONNX),
    "labels": Scope("calibration", _ONNX),
    "observers": Scope("calibration", _ONNX),
    "seed": Scope("calibration", _ONNX),
    "tokenizer": Scope("calibration", _ONNX),
    "labelled": Scope("accuracy", _ONNX),
    "min_sqnr": Scope("accuracy", _ONNX),
    "quality": Scope("accuracy"),
    "frontier": Scope("accuracy"),
    "pick": Scope("accuracy"),
    "accuracy": Scope("accuracy", _ONNX),
    "keep_float": Scope("accuracy", _ONNX),
    "without": Scope("accuracy", _ONNX),
    "also": Scope("accuracy"),
    "check_passes": Scope("accuracy", _ONNX),
    "target": Scope("plan"),
    "host": Scope("plan"),
    "tpus": Scope("plan"),
    "objective": Scope("plan"),
    "rate": Scope("plan", _ONNX),
    "place": Scope("plan"),
    "pins": Scope("plan"),
    "cuts": Scope("plan", _ONNX),
    "seconds": Scope("plan"),
    "host_int8": Scope("plan"),
    "kept": Scope("plan"),
    "only": Scope("plan"),
    "host_bytes": Scope("plan"),
    "lora": Scope("language", _LANGUAGE),
    "needs_tpu": Scope("plan"),
    "context": Scope("language", _LANGUAGE),
    "chunk": Scope("language", _LANGUAGE),
    "slots": Scope("language", _LANGUAGE),
    "max_ram": Scope("language", _LANGUAGE),
    "decode_weights": Scope("language", _LANGUAGE),
    "tool": Scope("toolchain"),
    "lowering": Scope("toolchain", _ONNX),
    "dump_passes": Scope("toolchain", _ONNX),
}
# Fields that hold options classes of their own.
_NESTED = ("image", "partitioning", "language")


def _default_partitioning() -> PartitionOptions:
    from compiler.partition.options import PartitionOptions

    return PartitionOptions()


def _default_observers() -> Observers:
    from compiler.quantize.calibrate import Observers

    return Observers()


@dataclass(frozen=True)
class ImageOptions:
    """How a picture becomes what the model's file takes; None takes what the file's metadata say,
    else the default.

    mean:    subtracted from pixels, which are in [0, 1]; by default 0
    std:     what they are divided by then; by default 1
    size:    (height, width) that pictures are resized to before their middle is cut out to the
             input's size; by default that size
    fit:     "stretch" (default), "letterbox" or "crop": how a picture of another shape is fitted
    colours: "RGB" (default) or "BGR"

    Raises OptionError for numbers that are not finite, and for a std of 0.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    fit: Fit | None = None
    colours: Colours | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if numbers is None:
                continue
            if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
                given = ",".join(map(str, numbers))
                raise OptionError(f"{given}: give 1 or 3 finite numbers", name)
        if self.std is not None and 0 in self.std:
            raise OptionError("0: images cannot be divided by 0", "std")
        if self.fit is not None:
            require_choice("fit", self.fit, FITS)
        if self.colours is not None:
            require_choice("colours", self.colours, COLOURS)


@dataclass(frozen=True)
class LanguageOptions:
    """Sizes of a language model's programs.

    context: tokens that fit the cache, 2 or more; no more than the model was made for
    chunk:   tokens that prefill takes at once, 2 or more
    slots:   sequences that decode takes at once, 1 to 64
    max_ram: about how many MB of memory the bundle may use for weights, or None for all of them.
             Half is for prefill and half for decode, whose host segments are an eighth of that
             each, so that one is loaded after the other
    decode_weights: what decode on the host multiplies by: "file" are the blocks of 4 or 8 bits
             that a GGUF file has, of other files weights rounded to 8 bits in blocks of 32; "int8"
             the rows that prefill has, which takes less memory; "4bit" blocks of 4 bits whatever
             the file has, with int8 activations: the fastest, and a loss of accuracy. None is
             "file" where decode is on the host, and "int8" where it is on Edge TPUs

    Raises OptionError for values out of these ranges.
    """

    context: int = 2048
    chunk: int = 128
    slots: int = 4
    max_ram: int | None = None
    decode_weights: DecodeWeights | None = None

    def __post_init__(self) -> None:
        require_count("context", self.context, 2)
        require_count("chunk", self.chunk, 2)
        require_count("slots", self.slots, 1, MOST_SLOTS)
        if self.max_ram is not None:
            require_count("max_ram", self.max_ram, 1)
        if self.decode_weights is not None:
            require_choice("decode_weights", self.decode_weights, DECODE_WEIGHTS)


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose of a build.

    outputs:      tensors that the model ends at, by their names in the file; by default its own
    input:        "uint8" or "int8" (pixel - 128) lets the model take pixels, which the Edge TPU
                  normalises by the mean and std of `image`; "float32" takes what the file takes
    layout:       "nchw" or "nhwc" of the picture that goes in; by default that of the file, and of
                  pixels "nhwc"
    dims:         fixes dynamic dimensions, by name: {"batch": 1}
    shapes:       fixes the shapes of inputs, by name: {"x": (1, 3, 224, 224)}
    values:       fixes what inputs hold, by name, as text: {"rate": "16000"}; branches that depend
                  on it are dropped, and the bundle has no such input
    state:        outputs that go back into inputs at the next step of a sequence, as {output:
                  input}; None recognises them by their names and shapes, {} is none
    target:       the Edge TPU and its link: "usb3", "usb2", "pcie", "devboard", or a .toml file
    partitioning: which node runs where
    calibration:  an .npz file with an array per input, an .npy file, a folder of these, or a folder
                  of images; UTF-8 text for a language model. Arrays hold samples of the input's
                  shape, stacked along the first axis; of models with state the steps of a sequence,
                  or [sequence, step, ...]. None takes random data for ONNX files, so
                  that accuracy means nothing, and Python's manual for language models
    image:        how images become arrays
    labels:       a file with the name of a class in each line
    labelled:     a folder of pictures with labels, to measure the float model and the bundle by: of
                  classifiers a sub-folder for each class, of detectors .txt files as YOLO has them
    observers:    how ranges of activations are chosen from the samples
    min_sqnr:     the build fails where an output has a lower signal-to-noise ratio, in dB; outputs
                  of indices, booleans or text need 90% equal values, beside one of numbers
    quality:      what results have to reach, by figure of QUALITY: {"sqnr": 25}, {"top1": 0.99}.
                  The fastest plan that is found to reach all of them on an Edge TPU is built, else
                  the nearest one. By default a figure for the kind of model; None reaches for
                  nothing. Language models have kl, of all tokens of
                  a prefill, and reach for nothing by default
    frontier:     looks for plans from the fastest to the most accurate one, and lists them; what is
                  built stays the same
    pick:         the number of the plan of that list to build, from 1; implies `frontier`. Goals
                  and lists need `calibration`, but for language models
    accuracy:     "report" measures how much each segment contributes to the error at the end
    tokenizer:    tokenizer.json of an encoder, so that `serve` gives embeddings
    keep_float:   percent (0 to 100) of the multiply-accumulates that may stay in float on the host;
                  taken are the segments that contribute most to the error for their arithmetic
    without:      names of accuracy steps to leave out, of ACCURACY
    also:         names of optional steps to add, of OPTIONAL
    check_passes: runs the model after each pass and compares it with the imported model
    seed:         seed of the random data, 0 or more
    force:        replaces an existing bundle
    tool:         edgetpu_compiler, as `find_edgetpu_compiler` gives it; None does not run it
    lowering:     who writes TPU segments: ("direct",), ("onnx-tf",) or ("onnx-tf", "direct")
    lora:         LoRA adapters to merge into a language model: PEFT folders or GGUF files
    language:     sizes of a language model's programs
    dump_passes:  a new or empty folder for the ONNX model after each pass

    Paths may be given as text. Raises OptionError for values out of range, unknown names and files
    of targets and hosts that cannot be read; its `option` is the field's name.
    """

    outputs: tuple[str, ...] = ()
    input: InputType = "float32"
    layout: LayoutName | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] | None = None
    target: str = "usb3"
    partitioning: PartitionOptions = field(default_factory=_default_partitioning)
    calibration: Path | str | None = None
    image: ImageOptions = field(default_factory=ImageOptions)
    labels: Path | str | None = None
    labelled: Path | str | None = None
    observers: Observers = field(default_factory=_default_observers)
    min_sqnr: float | None = None
    quality: Mapping[str, float] | None = field(default_factory=dict)
    frontier: bool = False
    pick: int | None = None
    accuracy: Literal["report"] | None = None
    tokenizer: Path | str | None = None
    keep_float: float = 0.0
    without: frozenset[str] = frozenset()
    also: frozenset[str] = frozenset()
    check_passes: bool = False
    seed: int = 0
    force: bool = False
    tool: Tool | None = None
    lowering: tuple[str, ...] = ("direct",)
    lora: tuple[Path | str, ...] = ()
    language: LanguageOptions = field(default_factory=LanguageOptions)
    dump_passes: Path | str | None = None

    def __post_init__(self) -> None:
        # Any collection of names will do.
        object.__setattr__(self, "without", frozenset(self.without))
        object.__setattr__(self, "also", frozenset(self.also))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        self._check_model()
        self._check_calibration()
        self._check_steps()
        if tuple(self.lowering) not in LOWERINGS:
            known = "; ".join(",".join(names) for names in LOWERINGS)
            given = ",".join(self.lowering)
            raise OptionError(f"{given}: choose from {known}", "lowering")
        if self.input != "float32" and self.lowering[0] != "direct":
            raise OptionError(
                f"{self.input}: onnx-tf takes floats: set lowering to direct", "input"
            )

    @property
    def calibration_path(self) -> Path | None:
        return None if self.calibration is None else Path(self.calibration)

    @property
    def tokenizer_path(self) -> Path | None:
        return None if self.tokenizer is None else Path(self.tokenizer)

    @property
    def labels_path(self) -> Path | None:
        return None if self.labels is None else Path(self.labels)

    @property
    def labelled_path(self) -> Path | None:
        return None if self.labelled is None else Path(self.labelled)

    @property
    def lora_paths(self) -> list[Path]:
        return [Path(path) for path in self.lora]

    @property
    def dump_folder(self) -> Path | None:
        return None if self.dump_passes is None else Path(self.dump_passes)

    def sources(self, model: Path) -> list[Path]:
        """Files and folders that a build of `model` may read, which its output must not replace."""
        data = (self.calibration_path, self.labels_path, self.labelled_path)
        given = (*data, self.tokenizer_path)
        named = [path for path in given if path is not None]
        return [model, *named, *self.lora_paths, Path(self.target), Path(self.partitioning.host)]

    def suited_to(self, kind: ModelKind, model: Path) -> BuildOptions:
        """These options with the defaults for that kind of model. Raises OptionError for options
        that are for the other kind."""
        for name in options_given(self):
            if kind not in SCOPES[name].kinds:
                raise OptionError(f"does not apply to {model}: it is for {_OTHERS[kind]}", name)
        if kind == "onnx" and ROTATE_STREAM in self.also:
            text = f"{ROTATE_STREAM} does not apply to {model}: it is for {_OTHERS[kind]}"
            raise OptionError(text, "also")
        if kind == "onnx":
            self._check_search()
        if kind == "language":
            for name in sorted(set(self.quality or ()) - {LANGUAGE_QUALITY}):
                text = f"{name}: language models have {LANGUAGE_QUALITY}, e.g. kl=0.02"
                raise OptionError(text, "quality")
        if self.partitioning.place is not None:
            return self
        return replace(self, partitioning=replace(self.partitioning, place="auto"))

    def _check_search(self) -> None:
        """Goals and lists of plans need samples, and something to choose."""
        lists = "frontier" if self.frontier else "pick"
        lists_plans = self.frontier or self.pick is not None
        given = self.frontier if self.frontier else self.pick
        name = lists if lists_plans else "quality"
        if (lists_plans or self.quality) and self.calibration is None:
            text = "needs samples to measure errors on: give calibration"
            raise OptionError(f"{_typed(name, self.quality, given)}{text}", name)
        fixed = (
            ("place", self.partitioning.place == "host", "host"),
            ("cuts", bool(self.partitioning.cuts), ",".join(self.partitioning.cuts)),
            ("lowering", self.lowering[0] != "direct", ",".join(self.lowering)),
        )
        for option, is_fixed, value in fixed:
            if lists_plans and is_fixed:
                text = f"{value}: leaves nothing to choose from: give either this or {lists}"
                raise OptionError(text, option)

    def _check_model(self) -> None:
        from compiler.targets import Target

        for name in self.outputs:
            _require_name("outputs", name)
            if self.outputs.count(name) > 1:
                raise OptionError(f"{name}: is named twice", "outputs")
        require_choice("input", self.input, INPUTS)
        if self.layout is not None:
            require_choice("layout", self.layout, LAYOUTS)
        for name, size in self.dims.items():
            require_count("dims", size, 1)
            _require_name("dims", name)
        for name, shape in self.shapes.items():
            _require_name("shapes", name)
            for size in shape:
                require_count("shapes", size, 1)
        Target.load(self.target)

    def _check_calibration(self) -> None:
        for kind in (self.observers.default, *dict(self.observers.patterns).values()):
            require_choice("observers", kind, _observers())
        require_count("seed", self.seed, 0)

    def _check_steps(self) -> None:
        if self.min_sqnr is not None:
            require_number("min_sqnr", self.min_sqnr)
        for name, value in (self.quality or {}).items():
            require_choice("quality", name, QUALITY)
            _require_figure(name, value)
        if self.pick is not None:
            require_count("pick", self.pick, 1)
        wants_plans = self.frontier or self.pick is not None
        if wants_plans and self.quality is None:
            raise OptionError("none: plans are compared by a figure", "quality")
        if self.keep_float and (self.quality or wants_plans):
            text = "the search for a quality goal decides what stays in float: give one of the two"
            raise OptionError(text, "keep_float")
        if self.accuracy is not None:
            require_choice("accuracy", self.accuracy, ACCURACY_VIEWS)
        require_number("keep_float", self.keep_float, 0, 100)
        for name in sorted(self.without):
            require_choice("without", name, ACCURACY)
        for name in sorted(self.also):
            require_choice("also", name, OPTIONAL)
        on_tpu = sorted(self.also - {ROTATE_STREAM})
        if on_tpu and self.partitioning.place == "host":
            text = f"{on_tpu[0]}: is for layers on the Edge TPU; set place to auto or tpu"
            raise OptionError(text, "also")


# What an option is for that does not apply to models of a kind.
_OTHERS: Mapping[ModelKind, str] = {
    "onnx": "language models",
    "language": ".onnx files that are not language models",
}


def options_given(options: BuildOptions) -> list[str]:
    """Names of the options that differ from their defaults."""
    return list(_differing(options, BuildOptions()))


def _differing(options: Any, defaults: Any) -> Iterator[str]:
    for declared in fields(options):
        name = declared.name
        value = getattr(options, name)
        default = getattr(defaults, name)
        if value == default:
            continue
        if name in _NESTED and is_dataclass(value):
            yield from _differing(value, default)
        else:
            yield name


def _observers() -> tuple[str, ...]:
    from compiler.quantize.calibrate import OBSERVERS

    return OBSERVERS


def _typed(name: str, quality: Mapping[str, float] | None, given: object) -> str:
    """The value of an option as a user wrote it, in front of what is wrong with it."""
    if name == "quality":
        goals = ",".join(f"{figure}={value:g}" for figure, value in (quality or {}).items())
        return f"{goals}: "
    return "" if given is True else f"{given}: "


def _require_figure(name: str, value: object) -> None:
    """`value` is one that a figure of quality can have, and that says something."""
    given = f"{name}={value:g}" if isinstance(value, float | int) else f"{name}={value}"
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise OptionError(f"{given}: give a finite number", "quality")
    if name in _SHARES and not 0 < value <= 1:
        raise OptionError(f"{given}: give a share above 0, up to 1", "quality")
    if name == "cer" and not 0 <= value < 1:
        raise OptionError(f"{given}: give a rate from 0 to less than 1", "quality")
    if name == "kl" and value <= 0:
        raise OptionError(f"{given}: give a number above 0", "quality")


def _require_name(option: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise OptionError(f"{name!r}: give a name", option)
