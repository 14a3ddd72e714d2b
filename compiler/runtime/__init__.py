"""Loads and runs a bundle. Needs numpy, one TFLite interpreter and onnxruntime; nothing else of
this project.

Bundle.open    a bundle on disk, every file compared with its digest
Runner         runs it on Edge TPUs and the CPU: run, stream, run_async, stream_async
Pipeline       its segments, one by one
LanguageModel  in compiler.runtime.language: prefill, decode, generate
"""

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.devices import Device, DeviceError, EdgeTpu, Simulated, edge_tpus
from compiler.runtime.pipeline import Pipeline, SegmentError
from compiler.runtime.runner import Runner

__all__ = [
    "Bundle",
    "Device",
    "DeviceError",
    "EdgeTpu",
    "Pipeline",
    "Runner",
    "RuntimeBundleError",
    "SegmentError",
    "Simulated",
    "edge_tpus",
]
