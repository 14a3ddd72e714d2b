"""A script that runs exported files with pycoral.

Sources: pycoral.utils.edgetpu.make_interpreter and
pycoral.pipeline.pipelined_model_runner.PipelinedModelRunner of pycoral 2.0
(coral.ai/docs/reference/py): each file's inputs are those of the first one or outputs of earlier
ones, found by name; `push` takes arrays by name, and `pop` gives the outputs of the last file.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.runtime.manifest import TensorEntry, fixed_shape

SCRIPT = "run_pycoral.py"


def script(files: Sequence[str], inputs: Sequence[TensorEntry]) -> str:
    """A program that runs the files on an Edge TPU each, on zeros that its user replaces."""
    arrays = []
    for tensor in inputs:
        shape = fixed_shape(tensor)
        arrays.append(f"    {tensor['name']!r}: np.zeros({shape}, np.{tensor['dtype']}),\n")
    return f"""import numpy as np
from pycoral.pipeline.pipelined_model_runner import PipelinedModelRunner
from pycoral.utils.edgetpu import make_interpreter

FILES = {list(files)!r}
inputs = {{
{"".join(arrays)}}}
interpreters = [make_interpreter(file, f":{{i}}") for i, file in enumerate(FILES)]
for interpreter in interpreters:
    interpreter.allocate_tensors()
runner = PipelinedModelRunner(interpreters)
runner.push(inputs)
for name, array in runner.pop().items():
    print(name, array.shape, array.dtype)
"""
