"""Language models as one description of a decoder: GGUF files, Hugging Face folders, exported ONNX
decoders.

families.py says which families there are; architecture.py what is known of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.errors import ModelError, no_file
from compiler.frontends import gguf, huggingface, onnx_export
from compiler.frontends.architecture import Architecture, Source


def recognises(path: Path) -> bool:
    """Whether `path` is a language model for `open_source`."""
    if path.suffix == ".gguf" or onnx_export.recognises(path):
        return True
    return (path / "config.json").is_file() or (path / onnx_export.GENAI).is_file()


def open_source(path: Path, adapters: Sequence[Path] = ()) -> Source:
    """The language model in a GGUF file, a folder, or an exported ONNX file, with LoRA adapters
    merged. Raises ModelError."""
    if path.is_dir():
        return _open_folder(path, adapters)
    if not path.is_file():
        raise ModelError(
            f"{path}: {no_file(path)}; give an .onnx or .gguf file, or a folder with config.json"
        )
    if path.suffix == ".onnx":
        return _read_export(path, adapters)
    return gguf.read(path, adapters)


def _read_export(path: Path, adapters: Sequence[Path]) -> Source:
    if adapters:
        raise ModelError(f"{path}: adapters are merged into GGUF files and Hugging Face folders")
    return onnx_export.read(path)


def _open_folder(folder: Path, adapters: Sequence[Path]) -> Source:
    exported = sorted(folder.glob("*.onnx"))
    # Beside safetensors, ONNX files are copies of the same model.
    if not exported or any(folder.glob("*.safetensors")):
        return huggingface.read(folder, adapters)
    if len(exported) > 1:
        names = ", ".join(file.name for file in exported)
        raise ModelError(f"{folder}: holds several ONNX files ({names}): give one of them")
    return _read_export(exported[0], adapters)


__all__ = ["Architecture", "Source", "open_source", "recognises"]
