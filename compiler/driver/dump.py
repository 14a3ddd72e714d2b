"""Writes a model as ONNX after each pass: `--dump-passes`.

    DIR/01-fold_constants.onnx, DIR/02-unfuse.onnx, ...     for Netron, onnx.checker and onnxruntime
    DIR/weights.data                                        what is too large to stand in each

Larger tensors are in one file beside the models, and those that several models have in common are
there once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from compiler.errors import OutputError

# Tensors of more bytes go to the file of weights, where onnxruntime maps pages of them into memory.
INLINE_BYTES = 16 << 10
PAGE_BYTES = 4096
WEIGHTS = "weights.data"


@dataclass
class GraphDump:
    """A folder that gets the model after each pass, numbered in order. It must be new or empty, so
    that no file of another run is taken for one of this."""

    folder: Path
    _count: int = 0
    _size: int = 0
    _places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = any(self.folder.iterdir())
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot be written: {error.strerror or error}"
            ) from error
        if taken:
            raise OutputError(f"{self.folder}: is not empty: name a new folder for the dump")

    def write(self, name: str, model: ir.Model) -> Path:
        """Write the model as it is after pass `name`. Raises OutputError."""
        self._count += 1
        path = self.folder / f"{self._count:02}-{name}.onnx"
        initializers = list(model.graph.initializers.values())
        kept = {value: value.const_value for value in initializers}
        try:
            for value in initializers:
                tensor = value.const_value
                if tensor is not None and _is_large(tensor):
                    value.const_value = self._outside(tensor)
            path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
        except OSError as error:
            why = error.strerror or str(error)
            raise OutputError(f"{path}: cannot be written: {why}") from error
        finally:
            for value, tensor in kept.items():
                value.const_value = tensor
        return path

    def _outside(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """The tensor as a reference into the file of weights, to which new content is added.

        It is told by its content: lazy tensors are computed afresh, and may have changed.
        """
        content = tensor.tobytes()
        key = hashlib.sha256(content).hexdigest()
        if key not in self._places:
            self._places[key] = self._append(content)
        return ir.ExternalTensor(
            WEIGHTS,
            self._places[key],
            len(content),
            tensor.dtype,
            shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
            name=tensor.name or "",
            base_dir=self.folder,
        )

    def _append(self, content: bytes) -> int:
        """Where the content begins in the file of weights, now that it is there."""
        begin = -(-self._size // PAGE_BYTES) * PAGE_BYTES
        with (self.folder / WEIGHTS).open("ab") as file:
            file.write(bytes(begin - self._size))
            file.write(content)
        self._size = begin + len(content)
        return begin


def _is_large(tensor: ir.TensorProtocol) -> bool:
    # Strings have no bytes of their own.
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > INLINE_BYTES
