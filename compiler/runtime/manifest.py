"""What manifest.json holds, as types: the JSON schema and the tables of docs/manifest.md are made
from this file.

The text in an `Annotated` is the field's documentation, `Limits` is what its value must keep to. A
field is required unless it is `NotRequired`, and nothing else may stand beside the fields.

Only the standard library is imported, so that a device can read a manifest with nothing installed.
There is no `from __future__ import annotations`: TypedDict would not see `NotRequired` in strings.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict, final

MANIFEST_VERSION = 8
# The entry of `tools` that names the version of the program that wrote a manifest.
WRITER = "coral-bundle"
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Limits:
    """Limits of a value beside its type, as JSON Schema has them.

    `pattern`, `minimum`, `above` (exclusive) and `maximum` are of strings and numbers, `least` and
    `most` of the entries of a list; `keys` must be in an object whose other keys are free; `beside`
    is the field that must be there wherever this one is.
    """

    pattern: str | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    least: int | None = None
    most: int | None = None
    keys: tuple[str, ...] = ()
    beside: str | None = None
    const: int | None = None


# The largest integer that JSON numbers hold exactly in every reader.
_EXACT = 2**53 - 1
_INT32 = 2**31 - 1
# Bounds that keep a hostile manifest from overflowing float32, int32 or a machine's memory.
_LARGEST_SCALE = 1e37
_MOST_TPUS = 65536
_MOST_SLOTS = 1024

# Hostile names must not reach a terminal or a file system as control characters or lone surrogates.
Path = Annotated[str, Limits(pattern=r"^[^\u0000-\u001f\u007f\ud800-\udfff]{1,1024}$")]
Name = Annotated[str, Limits(pattern=r"^[^\u0000\ud800-\udfff]*$")]
Sha256 = Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Limits(minimum=0, maximum=_EXACT)]
Index = Annotated[int, Limits(minimum=0)]
Positive = Annotated[int, Limits(minimum=1)]
Milliseconds = Annotated[float, Limits(minimum=0, maximum=1_000_000)]
NotNegative = Annotated[float, Limits(minimum=0)]
Share = Annotated[float, Limits(minimum=0, maximum=1)]
Dimension = Annotated[int | None, Limits(minimum=0, maximum=_INT32)]
Shape = Annotated[list[Dimension] | None, Limits(most=64)]
TpuNumber = Annotated[int, Limits(minimum=0, maximum=_MOST_TPUS - 1)]
Tokens = Annotated[int, Limits(minimum=1, maximum=_INT32)]

DeviceKind = Literal["tpu", "host"]
Lowering = Literal["direct", "onnx-tf"]
Calibration = Literal["user", "random", "manual"]
BaselineKind = Literal["file", "fixed shapes", "imported"]
FigureName = Literal[
    "sqnr", "cosine", "top1", "kl", "ap50", "map50", "recall", "iou", "decisions", "cer"
]
ObserverName = Literal["minmax", "percentile", "mse"]


class FileEntry(TypedDict):
    """A file of the bundle."""

    path: Annotated[Path, "below the bundle's folder"]
    sha256: Annotated[Sha256, "of its content, in hexadecimal"]
    bytes: Annotated[Count, "its size"]


class TensorEntry(TypedDict):
    """A tensor as its reader takes it."""

    name: Annotated[Name, "as in the files of the segments"]
    dtype: Annotated[str, "numpy's name of the type"]
    shape: Annotated[Shape, "null, or null in it, where it depends on data"]
    layout: Annotated[
        Literal["NHWC"] | None,
        '"NHWC" for four-dimensional tensors of the TPU; null: as in the model',
    ]
    nan: NotRequired[
        Annotated[
            Literal[True],
            "true for an input in which the model looks for NaN, with IsNaN or in trees; into "
            "other inputs a runtime lets no NaN",
        ]
    ]
    scale: NotRequired[
        Annotated[
            float,
            Limits(minimum=1 / _LARGEST_SCALE, maximum=_LARGEST_SCALE, beside="zero_point"),
            "of int8: real = `scale` x (int8 - `zero_point`)",
        ]
    ]
    zero_point: NotRequired[
        Annotated[
            int, Limits(minimum=-128, maximum=127, beside="scale"), "the int8 that stands for 0"
        ]
    ]


class OperatorEntry(TypedDict):
    """An operator of a segment."""

    node: Annotated[str, "the node of the source model that it comes from"]
    operator: Annotated[str, "its kind"]
    reason: Annotated[str, "why it runs where it does"]
    parameter_bytes: Annotated[Count, "its parameters on the TPU; 0 on the host"]
    macs: Annotated[Count, "multiply-accumulates of one run"]
    ms: Annotated[Milliseconds, "predicted time of one run, without transfers and streaming"]


class CpuOperatorEntry(TypedDict):
    """Operators that edgetpu_compiler left on the CPU."""

    operator: Annotated[str, "their kind, as TFLite calls it"]
    count: Annotated[Positive, "how many"]
    status: Annotated[str, "why, in the compiler's words"]


class NotJudgedEntry(TypedDict):
    """Operators whose constants in a compiled file cannot be compared with the segment's own."""

    operator: Annotated[str, "their kind, as TFLite calls it"]
    count: Annotated[Positive, "how many"]
    reason: Annotated[str, "why not"]


class CompiledEntry(TypedDict):
    """What edgetpu_compiler made of a segment."""

    path: Annotated[Path, "the compiled file, which is also in the segment's `files`"]
    compiler: Annotated[str, "the compiler's version"]
    cached_bytes: Annotated[Count, "parameters that stay in SRAM, as the file itself says"]
    streamed_bytes: Annotated[Count, "parameters that are sent at each run, as the file says"]
    mapped: Annotated[Count, "how many operators run on the Edge TPU"]
    on_cpu: Annotated[list[CpuOperatorEntry], "the operators that do not"]
    audited: Annotated[
        bool,
        "whether weights, biases, effective scales and zero points of every layer were found in "
        "the compiled file as they are in the segment's own",
    ]
    not_judged: Annotated[
        list[NotJudgedEntry],
        "the operators whose constants cannot be compared, or differ where the compiler was "
        "trusted all the same, and why; empty where it is audited",
    ]


class PlannedSegmentEntry(TypedDict):
    """A segment of a plan that is not written."""

    index: Annotated[Index, "its place in the order to run, from 0"]
    device: Annotated[DeviceKind, "what it is for"]
    inputs: Annotated[list[TensorEntry], "in the order of the file's own"]
    outputs: Annotated[
        list[TensorEntry],
        "in the order of the file's own; a host segment's file may have more outputs behind, as "
        "many as its metadata `coral_bundle.nan_sums` says: numbers that are NaN where what left "
        "as int8 held NaN",
    ]
    tpu: Annotated[
        int | None,
        Limits(minimum=0, maximum=_MOST_TPUS - 1),
        "the Edge TPU that it is planned for, from 0; null on the host",
    ]
    replicas: NotRequired[
        Annotated[
            list[TpuNumber],
            Limits(least=1, most=_MOST_TPUS),
            "further Edge TPUs that hold it: of k in all, `tpu` first, the entry n modulo k serves "
            "request n",
        ]
    ]
    parameter_bytes: Annotated[
        Count, "on the TPU as the device stores them, on the host of float weights"
    ]
    cached_bytes: Annotated[Count, "parameters that are predicted to stay in SRAM"]
    streamed_bytes: Annotated[Count, "parameters that are predicted to be sent at each run"]
    macs: Annotated[Count, "multiply-accumulates of one run"]
    predicted_ms: Annotated[
        dict[str, Milliseconds],
        "of one run, by what the time goes to: invoke, compute, in, out, stream",
    ]
    start_ms: NotRequired[
        Annotated[
            Milliseconds,
            "when it is predicted to start in a request that is alone; it ends after the sum of "
            "`predicted_ms`",
        ]
    ]
    operators: Annotated[list[OperatorEntry], "in the order to run"]
    in_place: NotRequired[
        Annotated[
            dict[str, str],
            "of host segments of language models: by output, the input whose memory it may take",
        ]
    ]


class SegmentEntry(PlannedSegmentEntry):
    """A segment: a file that one device runs."""

    lowering: Annotated[Lowering, "what wrote its file: our own writer, or onnx-tf"]
    compiled: Annotated[
        CompiledEntry | None,
        "what edgetpu_compiler made of it; null where there is only int8 TFLite or ONNX",
    ]
    files: Annotated[
        list[FileEntry],
        Limits(least=1),
        "the first is the model; a compiled one, or others that it keeps constants in, follow",
    ]


class PredictionEntry(TypedDict):
    """What the cost model says of a whole plan, and what was asked of the planner."""

    tpus: Annotated[int, Limits(minimum=1, maximum=_MOST_TPUS), "Edge TPUs that were allowed"]
    host: Annotated[str, "the host that was planned for"]
    objective: Annotated[Literal["latency", "throughput", "p95"], "what the plan is best in"]
    place: Annotated[Literal["tpu", "host", "auto"], "where operators go that both devices can run"]
    latency_ms: Annotated[Milliseconds, "of one inference: the end of its schedule"]
    interval_ms: Annotated[Milliseconds, "between two results of the full pipeline"]
    bound_by: Annotated[
        int | None,
        Limits(minimum=0, maximum=_MOST_TPUS - 1),
        "what sets `interval_ms`: an Edge TPU, with those that take turns with it; null for the "
        "host",
    ]
    gap_percent: Annotated[
        float | None,
        Limits(minimum=0),
        "how far at most the cut is from the best under this cost model; null where no solver "
        "looked for it",
    ]
    rate: NotRequired[
        Annotated[float, Limits(minimum=0), "of `p95`: requests per second that were planned for"]
    ]
    p95_ms: NotRequired[
        Annotated[
            Milliseconds,
            "of `p95`: the time in which 95% of the requests are answered, of simulated ones that "
            "come by chance at `rate`",
        ]
    ]
    load: NotRequired[
        Annotated[
            float,
            Limits(minimum=0),
            "of `p95`: the share of the time that the busiest device works; from 1 on, requests "
            "come faster than they are answered",
        ]
    ]
    host_slots: NotRequired[
        Annotated[
            int,
            Limits(minimum=1, maximum=_MOST_SLOTS),
            "segments that the host was planned to run at once; 1 where it is not said",
        ]
    ]
    host_gain: NotRequired[
        Annotated[
            float,
            Limits(above=0, maximum=_MOST_SLOTS, beside="host_slots"),
            "how many times as much the host gets done with so many at once as with one at a time",
        ]
    ]
    error_percent: Annotated[
        float | None,
        Limits(minimum=0),
        "how far predictions for this target on this host were off on average, for networks that "
        "the cost model was not fitted to; null where nobody has measured it",
    ]
    host_float_ms: NotRequired[
        Annotated[
            Milliseconds,
            "of one inference on the host alone, in float and not rewritten for an Edge TPU",
        ]
    ]
    host_int8_ms: NotRequired[
        Annotated[
            Milliseconds,
            "likewise with layers in int8; `--place host` makes that of language models, other "
            "models it leaves in float",
        ]
    ]


class ProgramEntry(TypedDict):
    """Segments, and what goes in and out of the whole; each runs once what it reads is made."""

    inputs: Annotated[list[TensorEntry], "tensors as their user sees them"]
    outputs: Annotated[list[TensorEntry], Limits(least=1), "likewise"]
    prediction: Annotated[PredictionEntry, "what the cost model says of the plan"]
    segments: Annotated[list[SegmentEntry], "in the order to run"]


class StateEntry(TypedDict):
    """An output that goes back into an input at the next step of a sequence."""

    output: Annotated[Name, "the output that gives it"]
    input: Annotated[Name, "the input that takes it, of the same shape and type"]
    initial: Annotated[Literal["zeros"], "what the first step of a sequence takes"]


class PictureEntry(TypedDict):
    """How a picture becomes an input of the program: it is turned upright, fitted to the size, and
    each value is (pixel - `mean`) / `std`, of pixels from 0 to 255."""

    input: Annotated[Name, "the input that takes it"]
    layout: Annotated[Literal["NCHW", "NHWC"], "the order of that input's axes"]
    size: Annotated[list[Positive], Limits(least=2, most=2), "height and width of the input"]
    colours: Annotated[Literal["RGB", "BGR", "L"], 'the order of channels; "L" is grey']
    fit: Annotated[
        Literal["stretch", "letterbox", "crop"],
        "how a picture of another shape is fitted: without regard to its shape, whole with grey "
        "around it, or its middle alone",
    ]
    resize: NotRequired[
        Annotated[
            list[Positive],
            Limits(least=2, most=2),
            "height and width that it is resized to before the middle of `size` is cut out",
        ]
    ]
    mean: Annotated[list[float], Limits(least=1, most=3), "of all channels, or of each"]
    std: Annotated[list[float], Limits(least=1, most=3), "likewise; none is 0"]
    normalised: NotRequired[
        Annotated[
            Literal["scale", "convolution", "layer"],
            "of an input of 8 bits: what takes up the mean and deviation that the source model "
            "wants: the scale of the input, the weights of what reads it, or a layer in front",
        ]
    ]


@final
class YoloHeadEntry(TypedDict):
    """All boxes in one output: centre, width and height, then scores."""

    kind: Annotated[Literal["yolo"], "which head it is"]
    output: Annotated[Name, "[1, 4 + C, N], or [1, N, 4 + C] where boxes are rows"]
    rows: Annotated[bool, "whether each box is a row"]
    objectness: Annotated[bool, "whether a score of the box itself stands before those of classes"]
    strides: Annotated[
        list[Positive], "of the grids that boxes are relative to; empty: boxes are in pixels"
    ]


@final
class DistancesHeadEntry(TypedDict):
    """Raw heads of YOLOv8, v9 and v11: distributions of the distances from the middle of a cell to
    the four sides of its box, and logits of classes."""

    kind: Annotated[Literal["distances"], "which head it is"]
    boxes: Annotated[Name, "[1, N, 4 * bins], logits of each distance in strides"]
    scores: Annotated[Name, "[1, N, C], logits"]
    strides: Annotated[list[Positive], Limits(least=1), "of the grids, in the order of the boxes"]


@final
class PicoDetHeadEntry(TypedDict):
    """For each stride probabilities, and distributions of distances as in `distances`."""

    kind: Annotated[Literal["picodet"], "which head it is"]
    scores: Annotated[list[Name], Limits(least=1), "[1, n, C] for each stride"]
    distances: Annotated[list[Name], Limits(least=1), "[1, n, 4 * bins] for each stride"]
    strides: Annotated[list[Positive], Limits(least=1), "of the grids"]


@final
class CornersHeadEntry(TypedDict):
    """Corners of boxes in one output, and scores in another."""

    kind: Annotated[Literal["corners"], "which head it is"]
    boxes: Annotated[Name, "[N, 4] or [1, N, 4]"]
    scores: Annotated[Name, "[N], [1, N] or [1, N, C]"]
    labels: Annotated[Name | None, "[N] or [1, N] where a box has one score"]
    background: Annotated[bool, "whether class 0 says that nothing is there"]


HeadEntry = YoloHeadEntry | DistancesHeadEntry | PicoDetHeadEntry | CornersHeadEntry


class TaskEntry(TypedDict):
    """What outputs of a model of pictures tell."""

    task: Annotated[
        Literal["classify", "detect"] | None, "what its outputs say; null: not recognised"
    ]
    scores: NotRequired[Annotated[Name, "of classifiers: the output [1, C]"]]
    softmax: NotRequired[Annotated[bool, "of classifiers: whether scores are logits"]]
    head: NotRequired[Annotated[HeadEntry, "of detectors: how boxes are read off the outputs"]]


class VisionEntry(TaskEntry):
    """What a model of pictures takes and tells."""

    picture: Annotated[PictureEntry, "how a picture becomes its input"]
    labels: NotRequired[Annotated[list[Name], "names of classes, by index"]]


class ModelEntry(TypedDict):
    """The source of a bundle."""

    file: Annotated[str, "its name, without folders"]
    sha256: Annotated[Sha256, "of the file; of config.json where the model is a folder"]
    opset: Annotated[int, "the ONNX opset that it was raised to"]


class TargetEntry(TypedDict):
    """The device that a bundle was planned for."""

    name: Annotated[str, "as `--target` takes it"]
    description: Annotated[str, "in words"]
    sram_bytes: Annotated[Positive, "memory for parameters of one Edge TPU"]


class TokenizerEntry(FileEntry):
    """The tokenizer of a language model, a file for Hugging Face's tokenizers library."""

    begin: Annotated[int | None, Limits(minimum=0), "id of the token that begins a text"]
    ends: Annotated[list[Index], "ids of the tokens that end one"]
    add_begin: Annotated[bool, "whether a text starts with `begin`"]
    chat_template: Annotated[str | None, "in Jinja"]


class DecodeWeightsEntry(TypedDict):
    """What decode on the host multiplies by, where that is not the int8 rows of prefill."""

    kind: Annotated[
        Literal["file", "4bit"], "blocks of the model's file, or blocks of 4 bits, as asked for"
    ]
    activations: Annotated[Literal["float", "int8"], "how precise the inputs of layers are"]
    exact: Annotated[Index, "weights of layers whose blocks stand in the file"]
    rounded: Annotated[Index, "those that were rounded to blocks of 4 or 8 bits"]
    bytes: Annotated[Positive, "that they take, with scales and zero points"]
    worst_sqnr_db: Annotated[
        float | None,
        "of the layer that lost most by it, in up to 256 of its rows, beside the file; null: "
        "nothing was lost",
    ]


class LanguageEntry(TypedDict):
    """Settings and further programs of a language model."""

    name: Annotated[str, "as the model calls itself"]
    context: Annotated[Tokens, "tokens that fit the cache"]
    chunk: Annotated[Tokens, "tokens that prefill takes at once"]
    parts: NotRequired[
        Annotated[
            Positive,
            "in how many runs of the program, which overlap: the host works on one of them while "
            "an Edge TPU works on another; 1 by default",
        ]
    ]
    chunk_ms: NotRequired[Annotated[Milliseconds, "predicted, of a whole chunk"]]
    slots: Annotated[int, Limits(minimum=1, maximum=65536), "sequences that decode takes at once"]
    max_ram_bytes: Annotated[
        int | None,
        Limits(minimum=1),
        "what weights may take in memory, prefill and decode half each; null: no limit",
    ]
    tokenizer: Annotated[TokenizerEntry, "its file and its special tokens"]
    programs: Annotated[
        dict[str, ProgramEntry],
        Limits(keys=("decode",)),
        "`decode` and, for several slots, `batch`",
    ]
    decode_weights: NotRequired[
        Annotated[
            DecodeWeightsEntry | None,
            "what decode multiplies by; null: what prefill does",
        ]
    ]


class WorstEntry(TypedDict):
    """The part of an output that is furthest off."""

    slice: Annotated[str, "which part; of an output that is one part, its worst channel"]
    sqnr_db: Annotated[float, "of that part"]


class DistinctEntry(TypedDict):
    """How many different values a part of an output takes."""

    slice: Annotated[str, "which part"]
    bundle: Annotated[Positive, "values that the bundle gives, at most 32"]
    float: Annotated[Positive, "values that the float model gives, at least eight times as many"]


class TextEntry(TypedDict):
    """Agreement of a reader of text, read greedily."""

    lines: Annotated[Positive, "how many lines were read"]
    equal: Annotated[Index, "how many of them are the float model's"]
    character_error: Annotated[NotNegative, "edits for each character of the float model's text"]


class DecisionsEntry(TypedDict):
    """Agreement of a probability on which side of one half it is: yes or no."""

    steps: Annotated[Positive, "how many were decided"]
    yes: Annotated[Index, "how many of them the float model answers with yes"]
    differing: Annotated[Index, "how many the bundle decides differently"]


@final
class OutputQualityEntry(TypedDict):
    """How far an output of the bundle is from the float model's, over all held-out samples: one of
    floats, or of integers that floats were rounded to."""

    sqnr_db: Annotated[
        float | None,
        "10 log10(sum (want - mean of its channel)^2 / sum (got - want)^2) of the worst part, at "
        "most 200; null where the samples do not vary enough to tell",
    ]
    variation: Annotated[
        NotNegative,
        "how much that part varies beside its size: the root of sum (want - mean)^2 / sum want^2",
    ]
    plain_sqnr_db: Annotated[
        float,
        "10 log10(sum want^2 / sum (got - want)^2): what others call SQNR; an output's mean "
        "counts as signal",
    ]
    cosine: Annotated[float, "over all values, means included"]
    max_error: Annotated[float, "the largest difference of a value"]
    worst: NotRequired[Annotated[WorstEntry, "the worst part"]]
    distinct: NotRequired[
        Annotated[DistinctEntry, "where the bundle takes few different values, and float many"]
    ]
    top1_agreement: NotRequired[
        Annotated[Share, "of classes: the share of rows with the same largest score"]
    ]
    top5_agreement: NotRequired[
        Annotated[
            Share,
            "of more than ten classes: the share of rows where the float model's class is among "
            "the five with the largest scores",
        ]
    ]
    decisions: NotRequired[Annotated[DecisionsEntry, "of a probability, as of speech"]]
    rows: NotRequired[Annotated[Count, "of classes: how many rows were compared"]]
    divergence: NotRequired[
        Annotated[
            NotNegative,
            "of classes: how far a row's distribution is from the float model's on average "
            "(Kullback-Leibler, nats)",
        ]
    ]
    mask_iou: NotRequired[
        Annotated[
            Share,
            "of a probability for each pixel: intersection over union of the pixels above one half",
        ]
    ]
    text: NotRequired[Annotated[TextEntry, "of readers of text"]]
    equal: NotRequired[
        Annotated[Share, "of floats rounded to integers: the share of elements that are equal"]
    ]


@final
class ExactQualityEntry(TypedDict):
    """How much of an output that holds no numbers to measure, such as indices, booleans and text,
    is the float model's, over all held-out samples."""

    equal: Annotated[
        Share,
        "the share of elements that are equal; those of samples whose shape differs count as "
        "unequal",
    ]


class EmbeddingQualityEntry(TypedDict):
    """Agreement of an encoder's output [1, S, K], averaged over a sample's own tokens."""

    cosine: Annotated[float, "mean cosine with the float model's"]
    least_cosine: Annotated[float, "the least of all samples"]
    spearman: NotRequired[
        Annotated[float, "Spearman's rank correlation of the similarities of all pairs of samples"]
    ]


class DetectionQualityEntry(TypedDict):
    """Agreement of a recognised object detector, at scores from 0.25 and overlaps up to 0.45."""

    outputs: Annotated[list[str], Limits(least=1), "the outputs that are read"]
    float: Annotated[Index, "how many boxes the float model finds"]
    bundle: Annotated[Index, "how many the bundle finds"]
    recall: Annotated[
        float | None,
        Limits(minimum=0, maximum=1),
        "of the float model's boxes, at an overlap of 0.5; null where it finds fewer than five",
    ]
    ap50: Annotated[
        float | None,
        Limits(minimum=0, maximum=1),
        "average precision with the float model's boxes as the truth, of all classes in one list; "
        "null likewise",
    ]
    map50: Annotated[
        float | None,
        Limits(minimum=0, maximum=1),
        "the mean of the average precisions of each class that the float model finds; null "
        "likewise",
    ]


class AccuracyEntry(TypedDict, total=False):
    """How right a model is about labelled pictures."""

    top1: Annotated[Share, "of classifiers: the share of pictures whose best class is right"]
    top5: Annotated[Share, "of more than ten classes: the share whose class is among the five best"]
    map50: Annotated[
        Share,
        "of detectors: the mean of the average precisions of each labelled class, at an overlap "
        "of 0.5, of boxes that score at least 0.05",
    ]


class LabelledEntry(TypedDict):
    """Accuracy against labels, of the float model and of the bundle, on the same pictures."""

    pictures: Annotated[Positive, "how many pictures"]
    labels: Annotated[Positive, "how many objects or classes are labelled in them"]
    float: Annotated[AccuracyEntry, "of the float model"]
    bundle: Annotated[AccuracyEntry, "of the bundle"]


class PerplexityEntry(TypedDict):
    """A language model's perplexity on text, of which some was prefilled and most decoded."""

    tokens: Annotated[Positive, "how many were predicted"]
    bundle: Annotated[float, Limits(minimum=1), "of the bundle"]
    float: Annotated[float, Limits(minimum=1), "of the float model"]
    ratio: Annotated[float, Limits(above=0), "of the two"]
    ratio_error: Annotated[NotNegative, "standard error of the ratio"]
    divergence: Annotated[
        NotNegative,
        "how far the distribution of a token is from the float model's on average "
        "(Kullback-Leibler, nats), which tells small differences sooner",
    ]
    top1_agreement: Annotated[Share, "how often the likeliest next token is the same"]


class FindingEntry(TypedDict):
    """What is bad about an output, or cannot be told."""

    kind: Annotated[Literal["bad", "unsure"], "whether it is bad or cannot be told"]
    output: Annotated[str, "the output that it is about"]
    finding: Annotated[str, "what is bad about it"]


class WarningEntry(FindingEntry):
    """A finding with where to look and what to try."""

    segment: Annotated[int | None, Limits(minimum=0), "the segment to look at"]
    node: Annotated[
        str | None,
        "the node to look at: of the worst segment, the one whose result suffers most when its "
        "float values are rounded to its scale and nothing else",
    ]
    advice: Annotated[str, "what to try"]


class GoalEntry(TypedDict):
    """A figure that results had to reach."""

    figure: Annotated[FigureName, "which: `--quality` names them"]
    wanted: Annotated[float, "what it has to be, at least or at most"]
    measured: Annotated[
        float | None, "what it is over the held-out samples; null where they do not tell"
    ]
    met: Annotated[bool, "whether that is reached"]
    note: NotRequired[
        Annotated[str, "what would reach it, or what it is on the samples of the search"]
    ]


class FrontierEntry(TypedDict):
    """A plan that the search offers, with figures of calibration samples."""

    ms: Annotated[Milliseconds, "predicted, of the plan's objective"]
    sqnr_db: NotRequired[
        Annotated[float, "of what varies in all outputs, in simulation; not of language models"]
    ]
    figures: Annotated[
        dict[str, float | None], "the figures of the goal; null where they cannot be told"
    ]
    in_float: NotRequired[
        Annotated[
            Count, "nodes of the source that are kept in float for accuracy; not of language models"
        ]
    ]
    fused: NotRequired[
        Annotated[Count, "blocks that are fused, of a language model in prefill; where it has any"]
    ]
    parts: NotRequired[Annotated[Positive, "of a language model: parts of a chunk that overlap"]]
    place: Annotated[Literal["tpu", "host"], '"host" where nothing runs on an Edge TPU']


class SegmentQualityEntry(TypedDict):
    """Figures of a segment for the TPU, of its worst output."""

    sqnr_db: Annotated[float | None, "when fed with float inputs: its own loss"]
    cumulative_sqnr_db: Annotated[float | None, "in the pipeline, with what was lost before it"]
    cumulative_plain_sqnr_db: Annotated[float, "likewise, with means as signal"]
    share: NotRequired[
        Annotated[Share, "in the noise at the end; measured with `--accuracy report`"]
    ]


class MeasuredEntry(TypedDict, total=False):
    """What verification adds to a bundle that is written."""

    samples: Annotated[Positive, "how many held-out samples were measured"]
    sequences: Annotated[
        Positive,
        "of models with state: how many sequences the samples are steps of; the bundle ran each "
        "with its own state",
    ]
    outputs: Annotated[
        dict[str, OutputQualityEntry | ExactQualityEntry],
        "for each output, how far it is off; of indices, booleans or text, how much of it is equal",
    ]
    embeddings: Annotated[
        dict[str, EmbeddingQualityEntry], "of encoders, inputs with an `attention_mask`, by output"
    ]
    detections: Annotated[DetectionQualityEntry, "of recognised object detectors"]
    labelled: Annotated[LabelledEntry, "of the pictures of `--labelled`"]
    segments: Annotated[dict[str, SegmentQualityEntry], "for each TPU segment, by its `index`"]
    perplexity: Annotated[PerplexityEntry, "of language models"]
    warnings: Annotated[list[WarningEntry], "what is bad about the bundle, or cannot be told"]
    goals: Annotated[list[GoalEntry], "what the build was to reach, of samples that are not random"]
    expected_sqnr_db: Annotated[
        float | None,
        "the SQNR of the worst output that a simulation of the plan gave on calibration samples, "
        "by which it was chosen; null where these do not vary enough",
    ]


class QualityEntry(MeasuredEntry):
    """How a bundle was calibrated, and what verification measured."""

    calibration: Annotated[
        Calibration,
        '"user"; "random": the figures mean nothing; "manual": Python\'s reference manual, for '
        "language models",
    ]
    calibration_samples: Annotated[Positive, "how many samples set the ranges"]
    observer: Annotated[ObserverName, "how ranges were chosen"]
    baseline: NotRequired[
        Annotated[
            BaselineKind,
            'what the bundle was compared with, not of language models: "file", the source file '
            'untouched on onnxruntime; "fixed shapes", the file with only the shapes of its inputs '
            'fixed; "imported", what the import made of it',
        ]
    ]
    baseline_note: NotRequired[
        Annotated[
            str,
            'where it is not "file": why, and for "imported" whether ONNX\'s own evaluator of the '
            "file agrees; of a file in float16 that float32 takes elsewhere: how far",
        ]
    ]
    prefill_divergence: NotRequired[
        Annotated[
            NotNegative,
            "of a language model whose plan was searched: as that of `perplexity`, of all tokens "
            "of a prefill",
        ]
    ]
    frontier: NotRequired[
        Annotated[
            list[FrontierEntry],
            "of `--frontier`: plans from the fastest to the most accurate, the host alone last",
        ]
    ]


class PlanEntry(ProgramEntry):
    """A model's plan, which a dry run gives without writing a bundle."""

    model: Annotated[ModelEntry, "the source"]
    target: Annotated[TargetEntry, "the device"]


class Manifest(PlanEntry):
    """The whole of manifest.json."""

    manifest_version: Annotated[
        int, Limits(const=MANIFEST_VERSION), "which version of this page holds"
    ]
    tools: Annotated[
        dict[str, str], "versions of what made the bundle: our own, and those of packages"
    ]
    quality: Annotated[QualityEntry, "calibration, and what verification measured"]
    tokenizer: NotRequired[Annotated[FileEntry, "of an encoder built with `--tokenizer`"]]
    vision: NotRequired[Annotated[VisionEntry, "of models that take pictures"]]
    state: NotRequired[
        Annotated[
            list[StateEntry],
            Limits(least=1),
            "of models with state; a runtime carries it from step to step",
        ]
    ]
    language: NotRequired[
        Annotated[
            LanguageEntry, "of language models only; the program of the manifest is its prefill"
        ]
    ]


def fixed_shape(tensor: TensorEntry) -> tuple[int, ...]:
    """The shape of a tensor that does not depend on data, as no input's of a program does and no
    language model's logits' last axis; axes that do count as 0."""
    return tuple(size or 0 for size in tensor["shape"] or ())


def version_complaint(manifest: object) -> str | None:
    """Why a manifest is of a version that this program does not read, and what to do; None where
    it is of ours.

    The policy: a program reads the version that it writes and no other. The version rises with
    every new field, as unknown ones are refused, and with every change of a field's meaning; only
    `tools` takes new names at any time. A newer manifest says in `tools` which program wrote it: a
    program as new has to read it. An older one is built again, which takes nothing but its source.
    """
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if version == MANIFEST_VERSION and type(version) is int:
        return None
    if type(version) is not int or version < 1:
        return f"manifest version {version!r} is none of {WRITER}'s: build the bundle again"
    if version < MANIFEST_VERSION:
        return (
            f"manifest version {version} is of an older {WRITER}, this one reads "
            f"{MANIFEST_VERSION}: build the bundle again"
        )
    return (
        f"manifest version {version} was written by {_writer(manifest)}, this {WRITER} reads "
        f"{MANIFEST_VERSION}: update it"
    )


def _writer(manifest: Any) -> str:
    """Which program wrote a manifest of a newer version, as far as it says so."""
    tools = manifest.get("tools")
    version = tools.get(WRITER) if isinstance(tools, dict) else None
    if not isinstance(version, str) or not version.isprintable():
        return f"a newer {WRITER}"
    return f"{WRITER} {version[:40]}"
