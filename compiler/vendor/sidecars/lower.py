"""Runs in the sidecar environment, not in ours: one float ONNX file to int8 TFLite through onnx-tf
and TensorFlow.

    python lower.py FOLDER

FOLDER has model.onnx and samples.npz with arrays [samples, *shape] for each input; model.tflite and
result.json are written there: names, scales and zero points of inputs and outputs in the order of
the file.
"""

import json
import sys
import warnings
from pathlib import Path


def main(folder):
    """Convert the model in `folder`."""
    warnings.simplefilter("ignore")
    import numpy as np
    import onnx
    import tensorflow as tf
    from onnx_tf.backend import prepare

    model = onnx.load(folder / "model.onnx")
    samples = np.load(folder / "samples.npz", allow_pickle=False)
    names = [value.name for value in model.graph.input]
    prepare(model).export_graph(str(folder / "saved"))

    def representative():
        for index in range(len(samples[names[0]])):
            yield {name: samples[name][index] for name in names}

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "model.tflite").write_bytes(converter.convert())

    interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
    runner = interpreter.get_signature_runner()
    found = {
        "inputs": tensors(runner.get_input_details(), interpreter.get_input_details()),
        "outputs": tensors(runner.get_output_details(), interpreter.get_output_details()),
    }
    (folder / "result.json").write_text(json.dumps(found))


def tensors(named, ordered):
    """Name, scale, zero point and type of each tensor. The signature knows the names, the
    interpreter the order of the file."""
    import numpy as np

    names = {detail["index"]: name for name, detail in named.items()}
    found = []
    for detail in ordered:
        scale, zero_point = detail["quantization"]
        entry = {
            "name": names[detail["index"]],
            "scale": float(scale),
            "zero_point": int(zero_point),
            "dtype": np.dtype(detail["dtype"]).name,
        }
        found.append(entry)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
