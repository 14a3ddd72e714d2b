"""The search for a plan that reaches a quality goal, on models that the plan without it breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import compiler
from compiler.cli import parse
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import OptionError
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.manifest import Manifest
from tests.conftest import save

TOKENS, WIDTH, CLASSES = 32, 128, 32


class Graph:
    """Writes a graph node by node; constants are given as arrays."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op_type: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = []
        for value in inputs:
            if isinstance(value, str):
                names.append(value)
                continue
            names.append(f"constant{len(self.constants)}")
            self.constants.append(numpy_helper.from_array(value, names[-1]))
        output = f"{op_type}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, names, [output], name=output, **attributes))
        return output

    def model(self, output: str, taken: tuple[int, ...], given: tuple[int, ...]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = output
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", 1, taken)],
            [helper.make_tensor_value_info(output, 1, given)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def f32(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32)


@pytest.fixture
def norm(tmp_path: Path) -> tuple[Path, Path]:
    """(model, samples): a norm with the variance as E[x^2] - E[x]^2, of tokens that differ in size.
    An int8 variance is 0 for small tokens."""
    rng = np.random.default_rng(0)
    graph = Graph()
    last = np.array([-1])
    weights = f32(rng.normal(size=(WIDTH, WIDTH)) / 8)
    x = graph.add("Relu", graph.add("MatMul", "x", weights))
    # Of a sample rather than of all tokens, so that no rule recognises the norm.
    total = graph.add("ReduceSum", graph.add("Mul", x, x), last, keepdims=1)
    squares = graph.add("Mul", total, f32(1 / (WIDTH - 1)))
    mean = graph.add("ReduceMean", x, last, keepdims=1)
    spread = graph.add("Sub", squares, graph.add("Mul", mean, mean))
    variance = graph.add("Max", f32(0), spread)
    scale = graph.add("Reciprocal", graph.add("Sqrt", graph.add("Add", variance, f32(1e-6))))
    y = graph.add("Mul", graph.add("Sub", x, mean), scale)
    graph.add("MatMul", y, f32(rng.normal(size=(WIDTH, CLASSES)) / 11))
    path = save(
        tmp_path / "m.onnx", graph.model("logits", (1, TOKENS, WIDTH), (1, TOKENS, CLASSES))
    )
    samples = rng.normal(size=(16, 1, TOKENS, WIDTH)) * np.exp(rng.normal(size=(16, 1, TOKENS, 1)))
    np.savez(tmp_path / "c.npz", x=f32(samples))
    return path, tmp_path / "c.npz"


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, Path]:
    """(model, samples): a classifier that standardises raw features of sizes far apart."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** np.linspace(-2, 4, 8)
    graph = Graph()
    x = graph.add("Div", graph.add("Sub", "x", f32(3 * sizes)), f32(sizes))
    for inputs, outputs in ((8, 256), (256, 128), (128, 4)):
        weights = f32(rng.normal(size=(inputs, outputs)) * np.sqrt(2 / inputs))
        x = graph.add("Gemm", x, weights, f32(np.zeros(outputs)))
        if outputs > 4:
            x = graph.add("Relu", x)
    graph.add("Softmax", x)
    path = save(tmp_path / "m.onnx", graph.model("probabilities", (1, 8), (1, 4)))
    samples = (rng.normal(size=(400, 1, 8)) + 3) * sizes
    np.savez(tmp_path / "c.npz", x=f32(samples))
    return path, tmp_path / "c.npz"


@pytest.fixture
def blocks(tmp_path: Path) -> tuple[Path, Path]:
    """(model, samples): four feed-forward blocks of an encoder, which may be fused."""
    rng = np.random.default_rng(0)
    graph = Graph()
    x = "x"
    for _ in range(4):
        normed = graph.add("LayerNormalization", x, f32(np.ones(WIDTH)), f32(np.zeros(WIDTH)))
        weights = f32(rng.normal(size=(WIDTH, 4 * WIDTH)) / 11)
        wide = graph.add("Add", graph.add("MatMul", normed, weights), f32(np.zeros(4 * WIDTH)))
        error = graph.add("Erf", graph.add("Div", wide, f32(np.sqrt(2))))
        gate = graph.add("Mul", wide, graph.add("Add", error, f32(1)))
        gated = graph.add("Mul", gate, f32(0.5))
        weights = f32(rng.normal(size=(4 * WIDTH, WIDTH)) / 22)
        x = graph.add("Add", x, graph.add("MatMul", gated, weights))
    shape = (1, TOKENS, WIDTH)
    path = save(tmp_path / "m.onnx", graph.model("y", shape, shape))
    np.savez(tmp_path / "c.npz", x=f32(rng.normal(size=(16, *shape))))
    return path, tmp_path / "c.npz"


def built(case: tuple[Path, Path], **options: Any) -> Manifest:
    path, samples = case
    folder = path.with_suffix(".bundle")
    return building.build(path, folder, BuildOptions(calibration=samples, force=True, **options))


def agreement(case: tuple[Path, Path]) -> float:
    """How often the largest score is the same as that of the user's file, on all samples."""
    path, samples = case
    pipeline = Pipeline(Bundle.open(path.with_suffix(".bundle")))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    same = []
    for sample in np.load(samples)["x"]:
        (want,) = session.run(None, {"x": sample})
        (got,) = pipeline.run({"x": sample}).values()
        same.append((got.argmax(-1) == want.argmax(-1)).mean())
    return float(np.mean(same))


def on_tpu(manifest: Manifest) -> list[str]:
    found = []
    for segment in manifest["segments"]:
        if segment["device"] == "tpu":
            found += [operator["node"] for operator in segment["operators"]]
    return found


def test_a_norm_that_int8_breaks_is_kept_in_float(norm: tuple[Path, Path]) -> None:
    manifest = built(norm, partitioning=PartitionOptions(place="tpu"))
    (goal,) = manifest["quality"]["goals"]
    assert goal["figure"] == "top1"
    assert manifest["quality"]["outputs"]["logits"]["sqnr_db"] > 30
    # Weights are drawn, so that some classes are nearly equal.
    assert agreement(norm) >= 0.96
    # The first layer is normalised, as both of its neighbours are on the host now.
    assert "MatMul0" in on_tpu(manifest)


def test_features_of_all_sizes_are_standardised_in_float(table: tuple[Path, Path]) -> None:
    broken = built(table, quality=None)
    assert broken["quality"]["outputs"]["probabilities"]["sqnr_db"] < 10
    assert "goals" not in broken["quality"]
    manifest = built(table)
    assert manifest["quality"]["outputs"]["probabilities"]["sqnr_db"] > 20
    assert agreement(table) >= 0.985
    assert "Gemm4" in on_tpu(manifest)


def test_the_same_plan_is_found_each_time(table: tuple[Path, Path]) -> None:
    assert built(table) == built(table)


def test_what_cannot_be_reached_is_said(table: tuple[Path, Path]) -> None:
    manifest = built(table, quality={"sqnr": 150})
    (goal,) = manifest["quality"]["goals"]
    assert not goal["met"] and "--place host" in goal["note"]
    assert "float32 itself may not reach sqnr=150" in goal["note"]
    alone = manifest["prediction"]["host_float_ms"]
    assert f"{alone:.3g} ms" in goal["note"]
    # The nearest plan is no worse than the one by default.
    assert manifest["quality"]["outputs"]["probabilities"]["sqnr_db"] > 20


@pytest.fixture
def slow_host(tmp_path: Path) -> PartitionOptions:
    """A host that takes a millisecond for each operator, so that plans for an Edge TPU are ahead of
    it."""
    host = tmp_path / "slow.toml"
    host.write_text(
        'name = "slow"\ndescription = "slow"\nmacs = 1e9\nbytes = 1e9\noperator = 1e-3\n'
    )
    return PartitionOptions(host=str(host))


def test_a_frontier_goes_from_fast_to_accurate(
    table: tuple[Path, Path], slow_host: PartitionOptions
) -> None:
    path, samples = table
    options = BuildOptions(calibration=samples, partitioning=slow_host)
    plans = compiler.frontier(path, options)
    assert len(plans) >= 3 and plans[-1]["place"] == "host"
    times = [plan["ms"] for plan in plans]
    levels = [plan["sqnr_db"] for plan in plans[:-1]]
    assert times == sorted(times) and levels == sorted(levels)
    assert levels[0] < 10
    assert levels[-1] > 20
    picked = built(table, pick=1, partitioning=slow_host)
    assert picked["quality"]["outputs"]["probabilities"]["sqnr_db"] < 10
    assert plans[-1]["ms"] == picked["prediction"]["host_float_ms"]
    assert picked["quality"]["frontier"] == plans
    accurate = built(table, pick=len(plans) - 1, partitioning=slow_host)
    measured = accurate["quality"]["outputs"]["probabilities"]["sqnr_db"]
    assert measured > 20
    with pytest.raises(OptionError, match=f"there are {len(plans)} plans"):
        built(table, pick=len(plans) + 1, partitioning=slow_host)


def test_no_plan_that_the_host_beats_is_listed(table: tuple[Path, Path]) -> None:
    """A few small layers are slower on an Edge TPU; they are built for one all the same."""
    plain, listed = built(table), built(table, frontier=True)
    (host,) = listed["quality"].pop("frontier")
    assert host["place"] == "host" and host["ms"] == plain["prediction"]["host_float_ms"]
    assert host["ms"] < plain["prediction"]["latency_ms"]
    assert listed == plain


def plan_of(manifest: Manifest) -> list[tuple[str, list[str]]]:
    found = []
    for segment in manifest["segments"]:
        found.append((segment["device"], [operator["node"] for operator in segment["operators"]]))
    return found


def test_fused_blocks_are_listed_and_picked(
    blocks: tuple[Path, Path], slow_host: PartitionOptions
) -> None:
    plain = built(blocks, partitioning=slow_host)
    listed = built(blocks, partitioning=slow_host, frontier=True)
    # A list changes nothing of what is built.
    plans = listed["quality"]["frontier"]
    assert plan_of(listed) == plan_of(plain)
    assert [plan.get("fused", 0) for plan in plans] == [4, 2, 0]
    times = [plan["ms"] for plan in plans]
    assert times == sorted(times) and plans[-1]["place"] == "host"
    picked = built(blocks, partitioning=slow_host, pick=2)
    assert picked["prediction"]["latency_ms"] == plans[1]["ms"] and on_tpu(picked)
    assert picked["quality"]["outputs"]["y"]["sqnr_db"] == pytest.approx(plans[1]["sqnr_db"], abs=1)


def test_as_many_blocks_are_fused_as_a_goal_allows(
    blocks: tuple[Path, Path], slow_host: PartitionOptions
) -> None:
    every = built(blocks, partitioning=slow_host, quality={"sqnr": 30})
    some = built(blocks, partitioning=slow_host, quality={"sqnr": 36})
    for manifest in (every, some):
        assert manifest["quality"]["goals"][0]["met"]
    fastest, slower = every["prediction"], some["prediction"]
    assert fastest["latency_ms"] < slower["latency_ms"] < slower["host_float_ms"]


def test_lists_say_what_they_are_of(
    table: tuple[Path, Path], run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    path, samples = table
    given = ("plan", str(path), "--calibration", str(samples), "--frontier")
    code, out, _ = run_cli(*given, "--tpus", "2")
    said = " ".join(out.split())
    assert code == 0 and "Plans for throughput on 2 Edge TPUs" in said
    assert "--objective throughput and --pick N" in said and "kept in float" in said
    code, _, err = run_cli(*given, "--tpus", "1,4")
    assert code == 2 and "--tpus 1,4: a frontier is of one number" in err
    code, _, err = run_cli("plan", str(path), "--quality", "sqnr=30")
    assert code == 2 and "--quality sqnr=30: predictions know no errors" in err


def test_options_that_contradict_are_refused(table: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match="psnr"):
        BuildOptions(quality={"psnr": 30})
    with pytest.raises(OptionError, match="one of the two"):
        BuildOptions(quality={"sqnr": 30}, keep_float=10)
    with pytest.raises(OptionError, match="compared by a figure"):
        BuildOptions(quality=None, frontier=True)
    with pytest.raises(OptionError, match="samples"):
        compiler.frontier(table[0])
    for options in ({"frontier": True}, {"pick": 1}, {"quality": {"sqnr": 30.0}}):
        with pytest.raises(OptionError, match="samples"):
            building.build(table[0], table[0].with_suffix(".bundle"), BuildOptions(**options))
    with pytest.raises(OptionError, match="nothing to choose"):
        built(table, frontier=True, partitioning=PartitionOptions(place="host"))
    assert not table[0].with_suffix(".bundle").exists()


@pytest.mark.parametrize(
    "text",
    ["top1=2", "cosine=-1", "iou=0", "cer=-1", "cer=1", "kl=-1", "kl=0", "sqnr=nan", "sqnr=inf"],
)
def test_goals_that_no_result_can_miss_or_reach_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=text):
        BuildOptions(quality=parse.quality([text]))


def test_a_goal_is_given_once() -> None:
    with pytest.raises(OptionError, match="sqnr is named twice"):
        parse.quality(["sqnr=20,cosine=0.9", "sqnr=25"])


def test_a_figure_that_results_do_not_have_is_refused(table: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match=r"ap50=0.5: cannot be measured.*: sqnr, cosine.* can"):
        built(table, quality={"ap50": 0.5})
    assert not table[0].with_suffix(".bundle").exists()


def test_goals_are_judged_on_the_host_too(table: tuple[Path, Path]) -> None:
    on_host = PartitionOptions(place="host")
    manifest = built(table, quality={"sqnr": 60, "iou": 0.9}, partitioning=on_host)
    reached, unknown = manifest["quality"]["goals"]
    assert reached["met"] and reached["measured"] > 60
    assert not unknown["met"] and "no such figure" in unknown["note"]
