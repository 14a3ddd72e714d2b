"""Compiles ONNX models into bundles of int8 segments for Coral Edge TPUs, and runs them.

    import compiler

    bundle = compiler.build("model.onnx", compiler.BuildOptions(calibration="samples.npz"))
    print(bundle.manifest["quality"]["outputs"])
    with compiler.Runner(bundle) as runner:
        outputs = runner.run({"x": image})

Names are loaded when they are first used, so that a machine that only runs bundles needs none of
the compiler's packages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.driver.api import (
        CheckedOperator,
        audit,
        build,
        check,
        compile_bundle,
        export_bundle,
        find_edgetpu_compiler,
        frontier,
        inspect,
        inspect_compiled,
        install_onnx_tf,
        kind_of,
        measure_host,
        plan,
        report_page,
        save_graph,
    )
    from compiler.driver.inspect import CompiledFile, Inspection
    from compiler.driver.options import BuildOptions, ImageOptions, LanguageOptions
    from compiler.driver.plan import Forecast, LanguageForecast
    from compiler.driver.stages import Timings
    from compiler.errors import CompilerError, OptionError
    from compiler.export.forms import Export
    from compiler.partition.options import PartitionOptions
    from compiler.quantize.calibrate import Observers
    from compiler.runtime import Bundle, HostThreads, Runner
    from compiler.runtime.vision import Prediction
    from compiler.vendor.audit import Audit

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "BuildOptions",
    "Bundle",
    "CheckedOperator",
    "CompiledFile",
    "CompilerError",
    "Export",
    "Forecast",
    "HostThreads",
    "ImageOptions",
    "Inspection",
    "LanguageForecast",
    "LanguageOptions",
    "Observers",
    "OptionError",
    "PartitionOptions",
    "Prediction",
    "Runner",
    "Timings",
    "audit",
    "build",
    "check",
    "compile_bundle",
    "export_bundle",
    "find_edgetpu_compiler",
    "frontier",
    "inspect",
    "inspect_compiled",
    "install_onnx_tf",
    "kind_of",
    "measure_host",
    "plan",
    "report_page",
    "save_graph",
]

# The modules that define them.
_DEFINED_IN = {
    "Audit": "compiler.vendor.audit",
    "BuildOptions": "compiler.driver.options",
    "Bundle": "compiler.runtime",
    "CompiledFile": "compiler.driver.inspect",
    "CompilerError": "compiler.errors",
    "Export": "compiler.export.forms",
    "Forecast": "compiler.driver.plan",
    "HostThreads": "compiler.runtime",
    "ImageOptions": "compiler.driver.options",
    "Inspection": "compiler.driver.inspect",
    "LanguageForecast": "compiler.driver.plan",
    "LanguageOptions": "compiler.driver.options",
    "Observers": "compiler.quantize.calibrate",
    "OptionError": "compiler.errors",
    "PartitionOptions": "compiler.partition.options",
    "Prediction": "compiler.runtime.vision",
    "Runner": "compiler.runtime",
    "Timings": "compiler.driver.stages",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'compiler' has no attribute '{name}'")
    module = importlib.import_module(_DEFINED_IN.get(name, "compiler.driver.api"))
    found = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
