"""Language models that are not ONNX: GGUF files and Hugging Face folders, as one description of a decoder."""

from __future__ import annotations

from pathlib import Path

from compiler.errors import ModelError
from compiler.frontends import gguf, huggingface
from compiler.frontends.architecture import Architecture, Source


def recognises(path: Path) -> bool:
    """Whether `path` is a language model for `open_source`."""
    return path.suffix == ".gguf" or (path / "config.json").is_file()


def open_source(path: Path) -> Source:
    """The language model in a GGUF file or a Hugging Face folder. Raises ModelError."""
    if path.is_dir():
        return huggingface.read(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give an .onnx or .gguf file, or a folder with config.json")
    return gguf.read(path)


__all__ = ["Architecture", "Source", "open_source", "recognises"]
