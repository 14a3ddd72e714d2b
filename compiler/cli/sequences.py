"""`run` on sequences of a model with state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from compiler.runtime import Runner
    from compiler.runtime.state import Steps

Arrays = Mapping[str, "np.ndarray"]


def read(source: Path, runner: Runner) -> list[Steps]:
    """The sequences in a file of arrays. Raises InputError."""
    import numpy as np

    from compiler.runtime import arrays
    from compiler.runtime.manifest import fixed_shape
    from compiler.runtime.state import State, sequences

    manifest = runner.bundle.manifest
    state = State.of(manifest)
    shapes = {tensor["name"]: fixed_shape(tensor) for tensor in manifest["inputs"]}
    free = [name for name in shapes if name not in state.inputs]
    try:
        loaded = arrays.read(source)
        if isinstance(loaded, np.ndarray):
            loaded = {free[0]: loaded}
        found = sequences(loaded, shapes, state.inputs)
        # What does not fit is said before anything runs.
        for steps in found:
            for index in range(len(steps)):
                given = state.with_state(steps.step(index) | dict(steps.first))
                runner.pipeline.check_inputs(given)
    except (arrays.ArrayError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error
    if not all(map(len, found)):
        raise InputError(f"{source}: holds no steps")
    return found


def run(runner: Runner, found: Sequence[Steps], done: Callable[[], None]) -> dict[str, np.ndarray]:
    """What each step gives as [T, ...], and the state behind the last one; of several sequences,
    both stacked along a first axis of their own."""
    import numpy as np

    states = {entry["output"] for entry in runner.bundle.manifest["state"]}
    results = [_run(runner, steps, states, done) for steps in found]
    if len(results) == 1:
        return results[0]
    return {name: np.stack([result[name] for result in results]) for name in results[0]}


def _run(
    runner: Runner, steps: Steps, states: set[str], done: Callable[[], None]
) -> dict[str, np.ndarray]:
    outputs: dict[str, list[np.ndarray]] = {}
    with runner.session() as session:
        for index in range(len(steps)):
            given = steps.step(index)
            if index == 0:
                given |= steps.first
            for name, array in session.run(given).items():
                kept = outputs.setdefault(name, [])
                if name in states:
                    kept.clear()
                kept.append(array)
            done()
    return {name: a[0] if name in states else stack(a) for name, a in outputs.items()}


def stack(results: Sequence[np.ndarray]) -> np.ndarray:
    """Results of one shape as one array: side by side where they have an axis for samples, of
    length 1."""
    import numpy as np

    first = results[0]
    if len(results) == 1:
        return first
    if first.ndim and len(first) == 1:
        return np.concatenate(results)
    return np.stack(results)
