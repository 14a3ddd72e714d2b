"""Runs passes: skips those that nobody wants, times and checks the others, and shows their work.

    driver = PassDriver(checker=Checker(model, seed), dump=GraphDump(folder))
    driver.run(passes.PASSES, model, PassContext(target))

The logger of this module gets a line for each pass: how often it matched, and where it nearly did.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import onnx_ir as ir

from compiler.checks.pass_checks import Checker
from compiler.driver.dump import GraphDump
from compiler.driver.options import BuildOptions
from compiler.driver.stages import stage
from passes.context import NearMiss, PassContext, SampleContext, Trace
from passes.record import Pass, Steps

logger = logging.getLogger(__name__)

ContextT = TypeVar("ContextT", bound=PassContext)

# Names of nodes that a line of the log shows at most.
SHOWN = 3


@dataclass(frozen=True)
class PassRun:
    """What one pass did: how long it took, how many rewrites it made, its best near miss, and the
    nodes that it rewrote."""

    name: str
    seconds: float
    rewrites: int
    nearest: NearMiss | None
    matches: tuple[str, ...] = ()


@dataclass
class PassDriver:
    """Runs passes over models, and remembers in `runs` what each did.

    `steps` say which passes run, and where. The `checker` runs the model after each pass, the
    `dump` writes it as ONNX.
    """

    steps: Steps = field(default_factory=Steps)
    checker: Checker | None = None
    dump: GraphDump | None = None
    runs: list[PassRun] = field(default_factory=list)

    def run(
        self,
        records: Iterable[Pass[ContextT]],
        model: ir.Model,
        context: ContextT,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Run passes in order over a model, in place; `step` is called after each.

        Raises InternalError that names the pass, where one fails or the checker finds a difference.
        """
        for record in records:
            if self.steps.want(record) and record.accepts(model):
                self.apply(record, model, context)
            step()

    def rewrites(self, name: str) -> int:
        """How many rewrites a pass made."""
        return sum(run.rewrites for run in self.runs if run.name == name)

    def matches(self, name: str) -> list[str]:
        """The nodes that a pass rewrote."""
        return [node for run in self.runs if run.name == name for node in run.matches]

    def apply(self, record: Pass[ContextT], model: ir.Model, context: ContextT) -> None:
        """Run one pass, whether or not it is wanted."""
        context.trace = Trace()
        context.takes = partial(self.steps.takes, record)
        start = time.perf_counter()
        with stage(record.name):
            record.run(model, context)
        seconds = time.perf_counter() - start
        matches = tuple(context.trace.matches)
        nearest = context.trace.nearest()
        self.runs.append(PassRun(record.name, seconds, len(matches), nearest, matches))
        if record.reads_only:
            logger.info("%s: %.1f s, the graph stays as it is", record.name, seconds)
            return
        _log(record.name, context.trace)
        self._look_at(record.name, model, context)

    def _look_at(self, name: str, model: ir.Model, context: PassContext) -> None:
        # First the dump, so that it shows the model that the checker complains of.
        if self.dump is not None:
            self.dump.write(name, model)
        if self.checker is not None:
            rescaled = context.rescaled if isinstance(context, SampleContext) else ()
            with stage(name):
                self.checker.check(name, model, rescaled)


def steps_of(options: BuildOptions) -> Steps:
    """The passes that run. Where all is on the host in float, those for an Edge TPU do not; int8
    products need them there too."""
    partitioning = options.partitioning
    on_host = partitioning.place == "host" and not partitioning.host_int8
    return Steps(options.without, options.also, on_host=on_host)


def _log(name: str, trace: Trace) -> None:
    if not trace.matches:
        line = f"{name}: no match"
    else:
        nodes = Counter(trace.matches)
        more = ", ..." if len(nodes) > SHOWN else ""
        line = f"{name}: {len(trace.matches)} matched: {', '.join(list(nodes)[:SHOWN])}{more}"
    nearest = trace.nearest()
    if nearest is not None:
        line += f"; nearly '{nearest.node}': {nearest.reason}"
        others = len(trace.misses) - 1
        line += f" (and {others} more)" if others else ""
    logger.info(line)
