"""A bundle over several nodes of a Ray cluster on this machine, one of which goes away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.runtime import Bundle, Pipeline, Runner
from compiler.runtime.devices import DeviceChoiceError
from compiler.runtime.fleet import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.cluster_utils import Cluster

    try:
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    except Exception as error:  # without shared memory or an address of its own, for one
        pytest.skip(f"Ray does not start on this machine: {error}")
    yield made
    ray.shutdown()
    made.shutdown()


def inputs(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


@pytest.mark.slow
def test_same_results_over_nodes_and_after_one_is_lost(cluster: Any, small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    pipeline = Pipeline(bundle)
    want = [pipeline.run(sample)["y"] for sample in inputs(12)]
    with pytest.raises(DeviceChoiceError, match="no node has the resource edgetpu"):
        parse(f"ray:{cluster.address}")
    cluster.add_node(num_cpus=1, resources={"edgetpu": 1})
    lost = cluster.add_node(num_cpus=1, resources={"edgetpu": 1})
    with Runner(bundle, f"ray:{cluster.address}") as runner:
        assert [runner.pipeline.device(i).name for i in (1, 3)] == ["ray:0", "ray:1"]
        got = []
        for number, result in enumerate(runner.stream(inputs(12))):
            got.append(result["y"])
            if number == 4:
                cluster.remove_node(lost)
        assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
        assert any("is lost" in notice for notice in runner.notices)
