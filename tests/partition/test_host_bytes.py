"""Weights of the host in parts of a given size that begin at norms: against all groupings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import onnx_ir as ir
import pytest

from compiler.partition import PartitionOptions, Plan, partition
from compiler.targets import Target
from tests.partition.graphs import check_borders, model_of
from tests.passes.golden import weight

TARGET = Target.load()
WIDTH = 8


def blocks(counts: Sequence[int], front: bool = False) -> ir.Model:
    """Blocks of a norm and so many products of 8 x 8; in `front`, a product before them."""
    lines, weights, name, number = [], {"gain": weight(WIDTH)}, "x", 0

    def product() -> None:
        nonlocal name, number
        weights[f"w{number}"] = weight(WIDTH, WIDTH) + number
        lines.append(f"p{number} = MatMul ({name}, w{number})")
        name, number = f"p{number}", number + 1

    if front:
        product()
    for index, count in enumerate(counts):
        lines.append(f"n{index} = RMSNormalization ({name}, gain)")
        name = f"n{index}"
        for _ in range(count):
            product()
    lines.append(f"y = Erf ({name})")
    return model_of(
        f"g (float[2,{WIDTH}] x) => (float[2,{WIDTH}] y) {{ {' '.join(lines)} }}", weights
    )


# Bytes of float weights in a product, and of a norm's gain.
PRODUCT, GAIN = 4 * WIDTH * WIDTH, 4 * WIDTH


def fewest(sizes: Sequence[int], room: int) -> int:
    """The least number of parts, runs of blocks; only a single block may be larger than `room`."""
    best = len(sizes)
    for ends in itertools.product((False, True), repeat=len(sizes) - 1):
        cuts = [0, *(i + 1 for i, end in enumerate(ends) if end), len(sizes)]
        parts = [sizes[a:b] for a, b in itertools.pairwise(cuts)]
        if all(len(part) == 1 or sum(part) <= room for part in parts):
            best = min(best, len(parts))
    return best


def parts_of(plan: Plan) -> list[list[str]]:
    return [[node.op_type for node in segment.nodes] for segment in plan.segments]


@pytest.mark.parametrize("seed", range(12))
def test_as_few_parts_as_any_grouping_has(seed: int) -> None:
    rng = random.Random(seed)
    counts = [rng.randint(0, 4) for _ in range(rng.randint(2, 7))]
    room = rng.randint(1, 6) * (PRODUCT + GAIN)
    model = blocks(counts)
    plan = partition(model, TARGET, PartitionOptions(place="host", host_bytes=room))
    check_borders(plan, model.graph)
    assert [node for segment in plan.segments for node in segment.nodes] == list(model.graph)
    sizes = [GAIN + PRODUCT * count for count in counts]
    assert len(plan.segments) == fewest(sizes, room)
    for kinds, segment in zip(parts_of(plan), plan.segments, strict=True):
        assert kinds[0] == "RMSNormalization"
        assert kinds.count("RMSNormalization") == 1 or segment.parameter_bytes <= room
        assert segment.device == "host"


def test_what_stands_before_the_first_norm_is_a_block_too() -> None:
    model = blocks([1, 1], front=True)
    plan = partition(model, TARGET, PartitionOptions(place="host", host_bytes=PRODUCT))
    assert parts_of(plan) == [
        ["MatMul"],
        ["RMSNormalization", "MatMul"],
        ["RMSNormalization", "MatMul", "Erf"],
    ]


@pytest.mark.parametrize(
    ("room", "parts"), [(2 * (PRODUCT + GAIN) - 1, 4), (2 * (PRODUCT + GAIN), 2)]
)
def test_the_room_is_used_to_the_byte(room: int, parts: int) -> None:
    plan = partition(blocks([1, 1, 1, 1]), TARGET, PartitionOptions(place="host", host_bytes=room))
    assert len(plan.segments) == parts


def test_without_a_size_the_host_has_one_segment() -> None:
    assert len(partition(blocks([1, 1, 1]), TARGET, PartitionOptions(place="host")).segments) == 1


@pytest.mark.parametrize(("int8", "parts"), [(False, 2), (True, 1)])
def test_normalised_products_of_the_host_have_a_byte_for_each_weight(
    int8: bool, parts: int
) -> None:
    """Biases and gains stay floats."""
    weights = {
        "w": weight(WIDTH, WIDTH),
        "v": weight(WIDTH, WIDTH) + 1,
        "b": weight(WIDTH),
        "gain": weight(WIDTH) + 1,
    }
    model = model_of(
        f"""
    g (float[2,{WIDTH}] x) => (float[2,{WIDTH}] y) {{
        n = RMSNormalization (x, gain)
        p = edgetpu.FullyConnected (n, w, b)
        m = RMSNormalization (p, gain)
        y = edgetpu.FullyConnected (m, v, b)
    }}""",
        weights,
    )
    room = 2 * (WIDTH * WIDTH + 2 * 4 * WIDTH)
    plan = partition(model, TARGET, PartitionOptions(place="host", host_bytes=room, host_int8=int8))
    assert len(plan.segments) == parts
    each = WIDTH * WIDTH * (1 if int8 else 4) + 2 * 4 * WIDTH
    # A constant that several nodes of a segment read is there once.
    whole = [each, each] if parts == 2 else [2 * each - 2 * 4 * WIDTH]
    assert [segment.parameter_bytes for segment in plan.segments] == whole
