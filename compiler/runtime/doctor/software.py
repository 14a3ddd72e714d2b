"""Python, the libraries that run segments, libedgetpu and edgetpu_compiler."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator

from compiler.runtime.devices import edge_tpus, library_name
from compiler.runtime.doctor.machine import Finding, Machine
from compiler.runtime.tflite_segment import interpreter_module

_OLDEST_RUNTIME = 14  # of libedgetpu, that runs what edgetpu_compiler 16 writes


def python(_: Machine) -> Iterator[Finding]:
    yield Finding("Python", "ok", platform.python_version())


def interpreter(_: Machine) -> Iterator[Finding]:
    name = "TFLite interpreter"
    try:
        module = interpreter_module()
    except ImportError as error:
        yield Finding(name, "fail", str(error), "pip install ai-edge-litert")
        return
    package = module.__name__.split(".")[0]
    version = _package_version(package.replace("_", "-"))
    yield Finding(name, "ok", f"{package} {version}")


def _package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def onnxruntime(_: Machine) -> Iterator[Finding]:
    try:
        import onnxruntime as package
    except ImportError as error:
        yield Finding("onnxruntime", "fail", str(error), "pip install onnxruntime")
        return
    yield Finding("onnxruntime", "ok", package.__version__)


def library(machine: Machine) -> Iterator[Finding]:
    """libedgetpu, and what it finds: the same library that runs segments."""
    name = machine.library or library_name()
    try:
        loaded = ctypes.CDLL(name)
    except OSError as error:
        yield _library_not_loaded(str(error))
        return
    yield _library_version(loaded, name)
    yield _edge_tpus(machine)


def _library_not_loaded(error: str) -> Finding:
    # What the dynamic linkers of Linux and macOS say where there is no such file. Any other words
    # are of a file for another processor or C library.
    missing = "cannot open shared object" in error or "image not found" in error
    if missing:
        fix = "install libedgetpu1-std (github.com/feranick/libedgetpu has builds for newer TFLite)"
    else:
        fix = "install the build for this system and architecture"
    return Finding("libedgetpu", "fail", error, fix)


def _library_version(loaded: ctypes.CDLL, name: str) -> Finding:
    loaded.edgetpu_version.restype = ctypes.c_char_p
    text = (loaded.edgetpu_version() or b"").decode("utf-8", "replace")
    # Some builds of others do not name a version, which is no reason to warn.
    runtime = re.search(r"RuntimeVersion\((\d+)\)", text)
    if runtime is not None and int(runtime.group(1)) < _OLDEST_RUNTIME:
        fix = f"runtime {_OLDEST_RUNTIME} or newer runs what edgetpu_compiler 16 writes"
        return Finding("libedgetpu", "warn", text, fix)
    return Finding("libedgetpu", "ok", text or name)


def _edge_tpus(machine: Machine) -> Finding:
    try:
        devices = edge_tpus(machine.library)
    except (OSError, AttributeError) as error:
        return Finding("Edge TPUs", "fail", str(error), "install another build of libedgetpu")
    if not devices:
        fix = "see the lines on USB and PCIe"
        return Finding("Edge TPUs", "fail", "libedgetpu finds none", fix)
    names = ", ".join(device.name for device in devices)
    return Finding("Edge TPUs", "ok", names)


def edgetpu_compiler(machine: Machine) -> Iterator[Finding]:
    """Nobody needs it to run a bundle, so that it is missing is no warning."""
    command = os.environ.get("EDGETPU_COMPILER") or "edgetpu_compiler"
    path = shutil.which(command)
    if path is not None:
        yield Finding("edgetpu_compiler", "ok", path)
    elif machine.machine in ("x86_64", "AMD64"):
        fix = (
            "install edgetpu-compiler from Coral's Debian packages, "
            "or name a Docker image that has it"
        )
        yield Finding("edgetpu_compiler", "none", "not here; segments stay uncompiled", fix)
    else:
        # Google publishes it for x86-64 only.
        fix = "copy the bundle to an x86-64 PC, run `compile` there, and copy it back"
        yield Finding("edgetpu_compiler", "none", f"there is none for {machine.machine}", fix)
