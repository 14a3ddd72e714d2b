"""Small models with state for tests, and the closed loop of their files on onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

# A gated recurrent unit over frames of 16 values, and how likely the last one is speech.
GRU = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,16] frame, float[1,24] h) => (float[1,1] speech, float[1,24] hn) {
        features = Gemm (frame, w_f, b_f)
        loud = Relu (features)
        joined = Concat <axis = 1> (loud, h)
        z_in = Gemm (joined, w_z, b_z)
        z = Sigmoid (z_in)
        n_in = Gemm (joined, w_n, b_n)
        n = Tanh (n_in)
        kept = Mul (z, h)
        rest = Sub (one, z)
        new = Mul (rest, n)
        hn = Add (kept, new)
        logit = Gemm (hn, w_p, b_p)
        speech = Sigmoid (logit)
    }"""

# Two causal convolutions, each behind a cache of the frames before this one.
ENCODER = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[1,8,1,4] x, float[1,8,1,2] cache_in, float[1,8,1,2] deep_cache_in)
        => (float[1,8,1,4] y, float[1,8,1,2] cache_out, float[1,8,1,2] deep_cache_out) {
        first = Concat <axis = 3> (cache_in, x)
        cache_out = Slice (first, begin, end, last)
        c = Conv (first, w_c, b_c)
        r = Relu (c)
        second = Concat <axis = 3> (deep_cache_in, r)
        deep_cache_out = Slice (second, begin, end, last)
        y = Conv (second, w_d, b_d)
    }"""


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    found = {}
    for name, shape in shapes.items():
        spread = np.sqrt(max(1, int(np.prod(shape[1:] or (25,)))))
        found[name] = (rng.standard_normal(shape) / spread).astype(np.float32)
    return found


def _model(path: Path, text: str, weights: Mapping[str, np.ndarray]) -> Path:
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def gru(path: Path, text: str = GRU) -> Path:
    """A detector with a long memory: gates that keep nine tenths of the state."""
    weights = _weights(
        {
            "w_f": (16, 24), "b_f": (24,), "w_z": (48, 24), "b_z": (24,),
            "w_n": (48, 24), "b_n": (24,), "w_p": (24, 1), "b_p": (1,),
        }
    )  # fmt: skip
    weights["b_z"] += 2
    weights["w_p"] *= 3
    weights["b_p"] += 4
    weights["one"] = np.ones(1, np.float32)
    return _model(path, text, weights)


def encoder(path: Path) -> Path:
    weights = _weights({"w_c": (8, 8, 1, 3), "b_c": (8,), "w_d": (8, 8, 1, 3), "b_d": (8,)})
    for name, value in {"begin": -2, "end": 1 << 31, "last": 3}.items():
        weights[name] = np.array([value], np.int64)
    return _model(path, ENCODER, weights)


def recording(steps: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Frames [steps, *shape] whose level swells and fades."""
    rng = np.random.default_rng(seed)
    swell = np.abs(np.sin(np.arange(steps) / 9 + rng.uniform(0, 6)))
    frames = rng.standard_normal((steps, *shape)) * swell.reshape(-1, *(1 for _ in shape))
    return frames.astype(np.float32)


def recordings(folder: Path, name: str, shape: tuple[int, ...], steps: int = 60) -> Path:
    """A folder with eight recordings, a file for each."""
    folder.mkdir()
    for number in range(8):
        np.savez(folder / f"{number}.npz", **{name: recording(steps, shape, number)})
    return folder


def closed_loop(
    path: Path, frames: Mapping[str, np.ndarray], pairs: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """What onnxruntime gives for the file at each step, its outputs fed back, zeros at first."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    state = {}
    for value in session.get_inputs():
        if value.name in pairs.values():
            state[value.name] = np.zeros(value.shape, np.float32)
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for index in range(len(next(iter(frames.values())))):
        step = {name: array[index] for name, array in frames.items()}
        results = dict(zip(names, session.run(names, {**step, **state}), strict=True))
        state = {name: results[output] for output, name in pairs.items()}
        for name, array in results.items():
            outputs[name].append(array)
    return {name: np.stack(arrays) for name, arrays in outputs.items()}
