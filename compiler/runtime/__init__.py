"""Loads and runs a bundle. Needs numpy, one TFLite interpreter and onnxruntime; nothing else of this project."""

from compiler.runtime.bundle import Bundle, RuntimeBundleError
from compiler.runtime.pipeline import Pipeline

__all__ = ["Bundle", "Pipeline", "RuntimeBundleError"]
