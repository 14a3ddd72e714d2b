"""Files of other programs that people give in an ONNX file's place, and what to do with them."""

from __future__ import annotations

from pathlib import Path

_EXPORT = "export it to ONNX first"
# By what a file begins with, at a byte.
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (
        4,
        b"TFL3",
        "a TFLite file: `check` says what of it an Edge TPU takes and edgetpu_compiler compiles "
        "it; `build` starts from ONNX, which tf2onnx makes of a float one",
    ),
    (0, b"\x89HDF", f"a Keras file: {_EXPORT}, with tf2onnx or Keras' own model.export"),
)
# By suffix, where what a file holds does not tell: a PyTorch file is a zip archive or a pickle.
_PYTORCH = (
    f"a PyTorch file: {_EXPORT}, with torch.onnx.export, or `yolo export format=onnx` for "
    "Ultralytics' models"
)
_SUFFIXES = {
    ".pt": _PYTORCH,
    ".pth": _PYTORCH,
    ".ckpt": _PYTORCH,
    ".keras": f"a Keras file: {_EXPORT}, with Keras' own model.export or tf2onnx",
    ".h5": f"a Keras file: {_EXPORT}, with tf2onnx",
    ".pb": f"a TensorFlow graph: {_EXPORT}, with tf2onnx",
    ".engine": "a TensorRT engine, for one GPU only: take the ONNX file that it was made from",
    ".xml": "a file of OpenVINO: take the ONNX file that it was made from",
}


def kind(path: Path) -> str | None:
    """What a file is that is no ONNX file, and what to do with it; None where that is unknown."""
    with path.open("rb") as file:
        start = file.read(8)
    for offset, mark, text in _MARKS:
        if start[offset:].startswith(mark):
            return text
    return _SUFFIXES.get(path.suffix.lower())
