"""Stands for the sidecar with onnx-tf: takes its files and gives its answers, by our own writer
with other scales.

STANDIN_ONNX_TF: "fail" ends as a converter's error does, "hang" never ends, "float" answers with
float tensors.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx

from compiler.emit import tflite
from compiler.graph import all_activations
from compiler.quantize.calibrate import Observers, calibrate, observe
from compiler.quantize.scales import assign
from compiler.runtime.tflite_segment import interpreter_module
from tests.harness import lowered


def main(folder: Path) -> None:
    trouble = os.environ.get("STANDIN_ONNX_TF", "")
    if trouble == "hang":
        time.sleep(1e6)
    proto = onnx.load(folder / "model.onnx")
    if trouble == "fail":
        raise RuntimeError(f"{proto.graph.node[-1].op_type} is not implemented")
    _, model = lowered(proto, folder)
    names = [value.name for value in proto.graph.input]
    stacks = np.load(folder / "samples.npz")
    feeds = [{name: 1.3 * stacks[name][i] for name in names} for i in range(len(stacks[names[0]]))]
    values = list(all_activations(model.graph))
    shown = observe(model, values, feeds)
    quants = assign(list(model.graph), values, calibrate(model, values, shown, feeds, Observers()))
    path = folder / "model.tflite"
    path.write_bytes(
        tflite.write(list(model.graph), model.graph.inputs, model.graph.outputs, quants)
    )
    interpreter = interpreter_module().Interpreter(str(path))
    found = {
        kind: [
            {
                "name": value.name,
                "scale": float(detail["quantization"][0]),
                "zero_point": int(detail["quantization"][1]),
                "dtype": "float32" if trouble == "float" else np.dtype(detail["dtype"]).name,
            }
            for value, detail in zip(values, details, strict=True)
        ]
        for kind, values, details in (
            ("inputs", proto.graph.input, interpreter.get_input_details()),
            ("outputs", proto.graph.output, interpreter.get_output_details()),
        )
    }
    (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
