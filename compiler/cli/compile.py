"""The command `compile`."""

from __future__ import annotations

import compiler
from compiler.cli import options as shared
from compiler.cli.common import out, progress_bars, wrote
from compiler.errors import ToolchainError


def compile_(
    path: shared.BundlePath,
    edgetpu_compiler: shared.Tool = None,
    docker: shared.Docker = None,
    timeout: shared.Timeout = shared.TIMEOUT,
    trust_compiler: shared.TrustCompiler = False,
) -> None:
    """Run edgetpu_compiler on the segments of a bundle that was built without it.

    So one can build on a Raspberry Pi, where it does not run, and compile on a PC.
    """
    from compiler.view.compiled import show_compilation

    tool = compiler.find_edgetpu_compiler(edgetpu_compiler, docker, timeout, trust_compiler)
    if tool is None:
        raise ToolchainError(
            "edgetpu_compiler is not on PATH: set $EDGETPU_COMPILER, or give --edgetpu-compiler or "
            "--docker IMAGE; it runs on x86-64 Linux"
        )
    with progress_bars() as progress:
        bundle = compiler.compile_bundle(path, tool, progress=progress)
    show_compilation(out, bundle.manifest)
    wrote(path)
