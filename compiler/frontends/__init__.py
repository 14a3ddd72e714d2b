"""Language models as one description of a decoder: GGUF files, Hugging Face folders, exported ONNX
decoders."""

from __future__ import annotations

from pathlib import Path

from compiler.errors import ModelError
from compiler.frontends import gguf, huggingface, onnx_export
from compiler.frontends.architecture import Architecture, Source


def recognises(path: Path) -> bool:
    """Whether `path` is a language model for `open_source`."""
    known = ("config.json", onnx_export.GENAI)
    return (
        path.suffix == ".gguf"
        or any((path / name).is_file() for name in known)
        or onnx_export.recognises(path)
    )


def open_source(path: Path) -> Source:
    """The language model in a GGUF file, a folder, or an exported ONNX file. Raises ModelError."""
    if path.is_dir():
        exported = sorted(path.glob("*.onnx"))
        if exported and not any(path.glob("*.safetensors")):
            if len(exported) > 1:
                names = ", ".join(p.name for p in exported)
                raise ModelError(f"{path}: holds several ONNX files ({names}): give one of them")
            return onnx_export.read(exported[0])
        return huggingface.read(path)
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file; give an .onnx or .gguf file, or a folder with config.json"
        )
    return onnx_export.read(path) if path.suffix == ".onnx" else gguf.read(path)


__all__ = ["Architecture", "Source", "open_source", "recognises"]
