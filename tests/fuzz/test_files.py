"""Files of strangers: whatever is in them, reading one ends soon with a result or one of our own
errors."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler import importer
from compiler.device import legality
from compiler.errors import CompilerError
from compiler.frontends import open_source
from compiler.runtime import Bundle, RuntimeBundleError
from compiler.targets import Target
from compiler.vendor import darwinn
from compiler.vendor.audit import audit
from tests.conftest import small_network

ROOT = Path(__file__).parent.parent.parent
LIMITS = {"max_examples": 150, "deadline": None, "derandomize": True}
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


def spoilt(data: st.DataObject, content: bytes, head: int) -> bytes:
    """Some bytes of the file's beginning replaced, numbers of 4 or 8 bytes made extreme, or an end
    that is missing."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(found), head) - 1))
        match data.draw(st.sampled_from(["byte", "number", "wide", "cut", "repeat"])):
            case "byte":
                found[at] = data.draw(st.integers(0, 255))
            case "number":
                found[at : at + 4] = struct.pack(
                    "<I", data.draw(st.sampled_from(EXTREMES)) & 0xFFFFFFFF
                )
            case "wide":
                found[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(EXTREMES)))
            case "cut" if at:
                del found[at:]
            case "repeat":
                found[at:at] = found[at : at + 16]
    return bytes(found)


def read_onnx(path: Path) -> None:
    importer.check_weights(importer.load(path).graph)


def read_tflite(path: Path) -> None:
    legality.check(path, Target.load())


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    onnx.save(small_network(), folder / "m.onnx")
    tflite = next((small_bundle / "segments").glob("*.tflite")).read_bytes()
    return {
        "onnx": (folder / "m.onnx").read_bytes(),
        "gguf": (ROOT / "fixtures" / "language.gguf").read_bytes(),
        "tflite": tflite,
    }


READERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "onnx": (read_onnx, 4096),
    "gguf": (open_source, 100_000),
    "tflite": (read_tflite, 20_000),
    "darwinn": (darwinn.read, 20_000),
}


@pytest.mark.parametrize("kind", sorted(READERS))
@settings(**LIMITS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_spoilt_files(
    kind: str, originals: dict[str, bytes], compiled_segment: bytes, data: st.DataObject
) -> None:
    read, head = READERS[kind]
    content = compiled_segment if kind == "darwinn" else originals[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{'tflite' if kind == 'darwinn' else kind}"
        path.write_bytes(spoilt(data, content, head))
        try:
            read(path)
        except CompilerError as error:
            assert error.exit_code == 2 and "\n" not in str(error), repr(error)


@pytest.mark.parametrize("spoils_plain", [True, False])
@settings(**LIMITS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_spoilt_pairs(
    spoils_plain: bool, originals: dict[str, bytes], compiled_segment: bytes, data: st.DataObject
) -> None:
    """A compiled file and its plain one, either of them spoilt."""
    contents = {"plain": originals["tflite"], "compiled": compiled_segment}
    name = "plain" if spoils_plain else "compiled"
    contents[name] = spoilt(data, contents[name], 20_000)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, content in contents.items():
            paths[name] = Path(folder) / f"{name}.tflite"
            paths[name].write_bytes(content)
        try:
            audit(paths["compiled"], paths["plain"])
        except CompilerError as error:
            assert error.exit_code == 2 and "\n" not in str(error), repr(error)


@pytest.mark.slow
@settings(**LIMITS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_spoilt_manifests(small_bundle: Path, data: st.DataObject) -> None:
    content = (small_bundle / "manifest.json").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        shutil.copytree(small_bundle, path)
        (path / "manifest.json").write_bytes(spoilt(data, content, len(content)))
        try:
            Bundle.open(path)
        except RuntimeBundleError as error:
            assert "\n" not in str(error)


ESCAPES = (
    "../outside.tflite",
    "/etc/passwd",
    "segments/../../outside.tflite",
    "segments/link.tflite",
)


@pytest.mark.parametrize("name", ESCAPES)
def test_files_outside_a_bundle_are_not_opened(
    name: str, small_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    (tmp_path / "outside.tflite").write_bytes((path / "segments" / "01.tflite").read_bytes())
    (path / "segments" / "link.tflite").symlink_to(tmp_path / "outside.tflite")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["segments"][1]["files"][0]["path"] = name
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RuntimeBundleError, match="outside the bundle"):
        Bundle.open(path)
