"""Loads and runs bundles. Needs numpy, one TFLite interpreter and onnxruntime, and nothing else of
this project.

    from compiler import Bundle, Runner

    with Runner(Bundle.open("model.bundle")) as runner:
        outputs = runner.run({"images": image})

Bundle         a bundle on disk, its files compared with their digests
Runner         runs a bundle on Edge TPUs and the CPU: run, stream, run_async, stream_async; on
               pictures: look, watch
Pipeline       runs a bundle segment by segment
Device         what segments run on: EdgeTpu, Simulated, or one of your own
HostThreads    how segments share the CPU
Prediction     in compiler.runtime.vision: a class of a picture, or an object in it
LanguageModel  in compiler.runtime.language: prefill, decode, generate

RuntimeBundleError  the bundle is damaged, edited, of another version, or was replaced while in use
SegmentError        a segment failed and no other device may run it
DeviceError         raised by devices; the runner tries again, or moves the segment elsewhere
"""

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.devices import Device, DeviceError, EdgeTpu, Simulated, edge_tpus
from compiler.runtime.fleet import HostThreads
from compiler.runtime.pipeline import Pipeline, SegmentError
from compiler.runtime.runner import Runner

__all__ = [
    "Bundle",
    "Device",
    "DeviceError",
    "EdgeTpu",
    "HostThreads",
    "Pipeline",
    "Runner",
    "RuntimeBundleError",
    "SegmentError",
    "Simulated",
    "edge_tpus",
]
