"""The passes, in order: each changes a valid model, in place, into a valid one that computes the
same in float.

PASSES prepare the float model; SAMPLE_PASSES follow once it is cut into segments, and look at
calibration samples. Each record says which passes must come before it, and why.
"""

from __future__ import annotations

from compiler.graph import OPSET
from passes import (
    balance,
    cache_constants,
    cancel_reshapes,
    cancel_transposes,
    correct_biases,
    divide_reshapes,
    equalise,
    fold_affine,
    fold_constants,
    fold_flatten,
    fold_pixels,
    fuse_blocks,
    join_heads,
    join_phases,
    keep_chosen,
    keep_gates,
    keep_scales,
    keep_spectra,
    keep_states,
    keep_tails,
    lower,
    normalise_linears,
    observe,
    recognise_attention,
    recognise_gelu,
    recognise_hard_swish,
    recognise_norms,
    recognise_rotary,
    rotate_outputs,
    rotate_rows,
    second_row,
    separate,
    shuffle_channels,
    split_gates,
    split_joins,
    split_means,
    tile_matmul,
    unfuse,
)
from passes.context import PassContext, SampleContext
from passes.record import Pass, Steps, in_order, named

__all__ = [
    "ACCURACY",
    "BALANCE",
    "OPTIONAL",
    "PASSES",
    "SAMPLE_PASSES",
    "Pass",
    "PassContext",
    "SampleContext",
    "Steps",
    "in_order",
]

PASSES: tuple[Pass[PassContext], ...] = in_order(
    # What the exporter wrote, in the operators that it meant.
    Pass("fold_constants", fold_constants.run, lowest_opset=0),
    Pass(
        "unfuse",
        unfuse.run,
        lowest_opset=OPSET,
        after={"fold_constants": "masks and positions must have static shapes"},
    ),
    Pass(
        "keep_scales",
        keep_scales.run,
        after={"fold_constants": "scales and zero points must be constants"},
    ),
    Pass(
        "recognise_gelu",
        recognise_gelu.run,
        lowest_opset=OPSET,
        after={"fold_constants": "the factors that it looks for must be constants"},
    ),
    Pass(
        "recognise_hard_swish",
        recognise_hard_swish.run,
        lowest_opset=OPSET,
        after={"fold_constants": "the factors that it looks for must be constants"},
    ),
    Pass(
        "recognise_norms",
        recognise_norms.run,
        lowest_opset=OPSET,
        after={"fold_constants": "axes, epsilon and gain must be constants"},
    ),
    Pass(
        "recognise_rotary",
        recognise_rotary.run,
        lowest_opset=OPSET,
        after={"fold_constants": "tables of cosines and sines are computed from positions"},
    ),
    Pass(
        "recognise_attention",
        recognise_attention.run,
        lowest_opset=OPSET,
        after={
            "fold_constants": "scales must be constants, and shapes known",
            "recognise_norms": "it starts from a Softmax, which exporters decompose",
        },
    ),
    # What stays on the host for its accuracy, decided while the operators are those of the source.
    Pass(
        "keep_chosen",
        keep_chosen.run,
        after={
            "unfuse": "what was chosen are operators that are apart",
            "recognise_norms": "a norm is chosen as a whole",
        },
    ),
    Pass(
        "keep_gates",
        keep_gates.run,
        for_tpu=True,
        kind="accuracy",
        after={
            "unfuse": "fused gates and products of linear layers must be apart",
            "recognise_gelu": "a Gelu behind a linear layer is a gate",
        },
    ),
    Pass(
        "keep_spectra",
        keep_spectra.run,
        for_tpu=True,
        kind="accuracy",
        after={"recognise_norms": "the square root of a decomposed norm is no spectrum's"},
    ),
    Pass(
        "keep_states",
        keep_states.run,
        kind="accuracy",
        after={"recognise_norms": "a norm on the way is no arithmetic that carries a state"},
    ),
    # What weights can take up, and what has a form that the Edge TPU can run.
    Pass(
        "fold_affine",
        fold_affine.run,
        after={
            "keep_scales": "weights are constants once they are dequantized",
            "recognise_gelu": "it would fold the Gelu's factors into the layer in front",
            "recognise_hard_swish": "it would fold the HardSwish's factors",
            "recognise_norms": "Keras writes LayerNormalization with a BatchNormalization",
            "recognise_attention": "it would fold the scale of the scores",
        },
    ),
    Pass(
        "join_phases",
        join_phases.run,
        for_tpu=True,
        after={"fold_constants": "the bounds of slices must be constants"},
    ),
    Pass(
        "fold_pixels",
        fold_pixels.run,
        after={
            "fold_affine": "a normalisation of the model's own joins that of the pixels",
            "join_phases": "the convolution must read the image, not its phases",
        },
    ),
    Pass(
        "cache_constants",
        cache_constants.run,
        for_tpu=True,
        kind="accuracy",
        after={
            "fold_affine": "constants that a layer takes up need no layer of their own",
            "fold_pixels": "the normalisation of pixels goes into the convolution that reads them",
        },
    ),
    Pass(
        "shuffle_channels",
        shuffle_channels.run,
        for_tpu=True,
        after={"fold_constants": "the shapes of both Reshapes must be known"},
    ),
    Pass(
        "split_gates",
        split_gates.run,
        for_tpu=True,
        kind="accuracy",
        after={
            "keep_gates": "a gate on the host has no int8 scale to improve",
            "fold_affine": "a convolution's norm must be part of it, so that the gate reads it",
        },
    ),
    Pass(
        "lower",
        lower.run,
        for_tpu=True,
        after={
            "keep_chosen": "what stays on the host stays in ONNX",
            "keep_gates": "what stays on the host stays in ONNX",
            "keep_spectra": "what stays on the host stays in ONNX",
            "keep_states": "what stays on the host stays in ONNX",
            "fold_affine": "weights are rearranged here, so they must be final",
            "join_phases": "the layer that it changes is a Conv of ONNX",
            "fold_pixels": "weights are rearranged here, so they must be final",
            "cache_constants": "the layer that it writes is a Conv of ONNX",
            "shuffle_channels": "there is no rule for a Transpose of five dimensions",
            "split_gates": "the layer that it inserts is a Conv of ONNX",
        },
    ),
    # The dialect's graph: joins, layout changes and shapes that nobody needs go.
    Pass(
        "split_joins",
        split_joins.run,
        for_tpu=True,
        kind="accuracy",
        after={"lower": "it cuts layers of the dialect"},
    ),
    Pass(
        "cancel_transposes",
        cancel_transposes.run,
        after={
            "lower": "each lowered operator stands between two Transposes",
            "split_joins": "it repeats layout changes for each part, which may then cancel",
        },
    ),
    Pass(
        "join_heads",
        join_heads.run,
        lowest_opset=OPSET,
        after={
            "recognise_attention": "it works on an Attention",
            "cancel_transposes": "keys are transposed twice, until that is one Transpose",
        },
    ),
    Pass(
        "fold_flatten",
        fold_flatten.run,
        for_tpu=True,
        after={"cancel_transposes": "only a Transpose that is left over is worth new weights"},
    ),
    Pass(
        "cancel_reshapes",
        cancel_reshapes.run,
        after={
            "cancel_transposes": "a Transpose that moves nothing becomes a Reshape",
            "fold_flatten": "it looks for a Reshape right behind a Transpose",
        },
    ),
    Pass(
        "split_means",
        split_means.run,
        for_tpu=True,
        after={"cancel_transposes": "it takes means over the axes of images in NHWC"},
    ),
    # Matrix products between host operators, as in transformers.
    Pass(
        "fuse_blocks",
        fuse_blocks.run,
        for_tpu=True,
        kind="optional",
        after={
            "keep_gates": "it takes gates back that are kept on the host",
            "lower": "only then it is known what the host runs around a block",
        },
    ),
    Pass(
        "rotate_rows",
        rotate_rows.run,
        for_tpu=True,
        kind="accuracy",
        after={
            "lower": "only then it is known what the host runs around a product",
            "fuse_blocks": "the first product of a block has rows of its own",
        },
    ),
    Pass(
        "rotate_outputs",
        rotate_outputs.run,
        for_tpu=True,
        kind="optional",
        after={"lower": "only then it is known what the host runs around a product"},
    ),
    Pass(
        "normalise_linears",
        normalise_linears.run,
        for_tpu=True,
        kind="accuracy",
        after={
            "rotate_rows": "rotated rows leave [-1, 1] again",
            "rotate_outputs": "the rotation is of the outputs, not of what they are scaled from",
        },
    ),
    Pass(
        "second_row",
        second_row.run,
        for_tpu=True,
        kind="optional",
        after={"normalise_linears": "it doubles the rows of normalised products"},
    ),
    # What fits, and what leaves.
    Pass(
        "tile_matmul",
        tile_matmul.run,
        for_tpu=True,
        after={
            "fold_flatten": "it reorders whole rows of weights",
            "normalise_linears": "products of the same rows become one, which is larger",
            "second_row": "it replaces the product that would have been cut",
        },
    ),
    Pass(
        "keep_tails",
        keep_tails.run,
        for_tpu=True,
        kind="accuracy",
        after={"tile_matmul": "the join of a layer's tiles stays with its layer"},
    ),
    Pass(
        "divide_reshapes",
        divide_reshapes.run,
        for_tpu=True,
        after={
            "cancel_reshapes": "a Reshape that is not needed is not worth parts",
            "keep_tails": "a line that the host joins is made there",
        },
    ),
    Pass(
        "separate",
        separate.run,
        for_tpu=True,
        lowest_opset=0,
        after={"keep_tails": "only what may run on the Edge TPU has scales to share"},
    ),
)

# By itself too: the programs of a language model are balanced as one.
BALANCE: Pass[SampleContext] = Pass(
    "balance",
    balance.run,
    kind="accuracy",
    lowest_opset=0,
    after={
        "normalise_linears": "it leaves the factors and offsets that are chosen here",
        "second_row": "outputs that are read from two rows need half of the range",
    },
)

SAMPLE_PASSES: tuple[Pass[SampleContext], ...] = in_order(
    BALANCE,
    Pass(
        "observe",
        observe.run,
        lowest_opset=0,
        after={"balance": "it changes what activations show"},
        reads_only=True,
    ),
    Pass(
        "equalise",
        equalise.run,
        kind="accuracy",
        lowest_opset=0,
        after={
            "split_gates": "the layer in front of a gate takes the factors of its channels",
            "observe": "factors are chosen by what channels show",
        },
    ),
    Pass(
        "correct_biases",
        correct_biases.run,
        kind="accuracy",
        lowest_opset=0,
        after={"equalise": "means change with the factors of their channels"},
        reads_only=True,
    ),
    earlier=[record.name for record in PASSES],
)

# The steps that a user may leave out, and those to ask for. One of the latter is no pass
# over a graph: the residual stream is rotated where a decoder's weights are read.
ACCURACY = (*named(PASSES, "accuracy"), *named(SAMPLE_PASSES, "accuracy"))
OPTIONAL = (*named(PASSES, "optional"), *named(SAMPLE_PASSES, "optional"), "rotate_stream")
