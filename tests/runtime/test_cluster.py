"""A bundle over several nodes of a Ray cluster on this machine, some of which go away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Pipeline, Runner
from compiler.runtime.devices import DeviceChoiceError
from compiler.runtime.fleet import parse
from tests.runtime.test_replicas import with_replicas

ROOT = Path(__file__).parents[2]
SIZE = 96  # a tensor between segments has 16 x 96 x 96 bytes, more than Ray sends with a call

# Ray counts on a node that went away until it has missed some of these.
NOTICES_SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        from ray.cluster_utils import Cluster

        try:
            head = {"num_cpus": 1, "_system_config": NOTICES_SOON}
            made = Cluster(initialize_head=True, head_node_args=head)
        except Exception as error:  # without shared memory or an address of its own, for one
            pytest.skip(f"Ray does not start on this machine: {error}")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> list[Any]:
    """Three nodes with an Edge TPU each. Those that a test before removed are added again, once Ray
    has noticed."""
    import ray

    while ray.is_initialized() and alive(ray.nodes()) > 1 + len(cluster.worker_nodes):
        time.sleep(0.2)
    while len(cluster.worker_nodes) < 3:
        cluster.add_node(num_cpus=1, resources={"edgetpu": 1})
    return sorted(cluster.worker_nodes, key=lambda node: str(node.node_id))


def alive(nodes: list[dict[str, Any]]) -> int:
    return sum(node["Alive"] for node in nodes)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three convolutions, each a segment on an Edge TPU of its own; the host does not come between.
    The first and the last are held twice."""
    rng = np.random.default_rng(2)
    value = helper.make_tensor_value_info
    nodes, weights = [], []
    names = ["x", "a", "b", "y"]
    for number, (channels, maps) in enumerate([(3, 16), (16, 16), (16, 4)]):
        weight = rng.standard_normal((maps, channels, 3, 3)).astype(np.float32) / 8
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        reads, gives = [names[number], f"w{number}"], [names[number + 1]]
        nodes.append(helper.make_node("Conv", reads, gives, name=f"conv{number}", pads=[1] * 4))
    graph = helper.make_graph(
        nodes,
        "chain",
        [value("x", onnx.TensorProto.FLOAT, (1, 3, SIZE, SIZE))],
        [value("y", onnx.TensorProto.FLOAT, (1, 4, SIZE, SIZE))],
        weights,
    )
    folder = tmp_path_factory.mktemp("chain")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "chain.onnx")
    options = PartitionOptions(tpus=3, cuts=["conv0", "conv1"])
    building.build(folder / "chain.onnx", folder / "b", BuildOptions(partitioning=options))
    return folder / "b"


def inputs(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    shape = (1, 3, SIZE, SIZE)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@pytest.mark.slow
def test_without_nodes_there_are_no_devices(cluster: Any) -> None:
    with pytest.raises(DeviceChoiceError, match="no node has the resource edgetpu"):
        parse(f"ray:{cluster.address}")


@pytest.mark.slow
def test_tensors_go_from_node_to_node(
    cluster: Any, nodes: list[Any], chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    import ray.experimental

    from compiler.runtime.cluster import HeldTensor

    bundle = Bundle.open(chain)
    pipeline = Pipeline(bundle)
    want = [pipeline.run(sample)["y"] for sample in inputs(4)]
    fetched = []
    fetch = HeldTensor.fetch

    def noted(tensor: HeldTensor) -> np.ndarray:
        array = fetch(tensor)
        fetched.append(array.shape)
        return array

    monkeypatch.setattr(HeldTensor, "fetch", noted)
    with Runner(bundle, f"ray:{cluster.address}") as runner:
        got = [result["y"] for result in runner.stream(inputs(4))]
        assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
        # Only what the host reads came here.
        assert fetched == [(1, SIZE, SIZE, 4)] * 4
        # A tensor between the nodes lies on the one that made it, and where it was read.
        values: dict[str, Any] = {**runner.pipeline.check_inputs(inputs(1)[0])}
        for index in range(2):
            values.update(runner.pipeline.execute(index, values))
        (name,) = (tensor["name"] for tensor in runner.pipeline.segments[1]["outputs"])
        (place,) = ray.experimental.get_object_locations([values[name].reference]).values()
        assert len(place["node_ids"]) == 1
        assert ray.get_runtime_context().get_node_id() not in place["node_ids"]


@pytest.mark.slow
def test_nothing_is_lost_with_a_node_and_what_it_holds(
    cluster: Any, nodes: list[Any], chain: Path, tmp_path: Path
) -> None:
    """The first segment is on two nodes in turn; the node that is lost holds tensors of requests on
    their way."""

    def replicate(segment: dict[str, Any]) -> None:
        if segment["tpu"] == 0:
            segment["replicas"] = [1]

    bundle = Bundle.open(with_replicas(chain, tmp_path / "replicas.bundle", replicate))
    pipeline = Pipeline(bundle)
    want = [pipeline.run(sample)["y"] for sample in inputs(12)]
    with Runner(bundle, f"ray:{cluster.address}") as runner:
        got = []
        for number, result in enumerate(runner.stream(inputs(12))):
            got.append(result["y"])
            if number == 3:
                cluster.remove_node(nodes[0], allow_graceful=False)
        assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
        assert any("is lost" in notice for notice in runner.notices)


@pytest.mark.slow
def test_a_lost_tensor_is_made_again(cluster: Any, nodes: list[Any], chain: Path) -> None:
    """The node that made it goes away before the next one has read it."""
    bundle = Bundle.open(chain)
    sample = inputs(1)[0]
    want = Pipeline(bundle).run(sample)["y"]
    with Runner(bundle, f"ray:{cluster.address}") as runner:
        execute = runner.pipeline.execute
        removed = []

        def lose(index: int, values: Any, request: int = 0) -> Any:
            results = execute(index, values, request)
            if index == 1 and not removed:
                holder = results[runner.pipeline.segments[1]["outputs"][0]["name"]]
                removed.append(node_of(holder.reference, nodes))
                cluster.remove_node(removed[0], allow_graceful=False)
            return results

        runner.pipeline.execute = lose  # type: ignore[method-assign]
        assert np.array_equal(runner.run(sample)["y"], want)
        assert np.array_equal(runner.submit(sample).result(60)["y"], want)


def node_of(reference: Any, nodes: list[Any]) -> Any:
    """The node that holds an object."""
    import ray.experimental

    (place,) = ray.experimental.get_object_locations([reference]).values()
    return next(node for node in nodes if node.node_id in place["node_ids"])
