"""Files that claim more than they hold: one line each, and nothing allocated or looped over by what
they claim."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from gguf import GGUFReader, dequantize
from onnx import TensorProto, helper
from PIL import Image

from compiler import importer
from compiler.device import tflite_file
from compiler.driver import corpus
from compiler.errors import CalibrationError, ModelError
from compiler.frontends import (
    architecture,
    gguf,
    open_source,
    textfile,
    tokenizer,
)
from compiler.frontends import gguf_file as gguf_format
from compiler.importer import untrusted
from compiler.quantize import samples
from compiler.runtime import (
    Bundle,
    RuntimeBundleError,
    arrays,
    bundle,
    child,
    confined,
    consistency,
    pictures,
)
from tests.conftest import Cli

FIXTURE = Path(__file__).parent.parent / "fixtures" / "language.gguf"


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        importer.load(path)
    assert "\n" not in str(caught.value)


# ONNX: functions


def laughs(depth: int, again: bool = False) -> onnx.ModelProto:
    """Functions each of which calls the one before twice; with `again` the first calls the last."""
    functions = []
    for level in range(depth):
        domain, callee = ("my", f"f{level - 1}") if level else ("", "Relu")
        if again and not level:
            domain, callee = "my", f"f{depth - 1}"
        nodes = [
            helper.make_node(callee, [a], [b], domain=domain) for a, b in (("x", "t"), ("t", "y"))
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my", 1)]
        functions.append(helper.make_function("my", f"f{level}", ["x"], ["y"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="my")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


def test_functions_that_call_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(laughs(40), path)
    refused(path, f"{2**40} nodes of .* MiB; 200000 of 1024 MiB are the most")
    onnx.save(laughs(200), path)
    refused(path, "more than 100 deep")
    onnx.save(laughs(3, again=True), path)
    refused(path, "calls itself")
    onnx.save(laughs(4), path)
    assert len(importer.load(path).graph) == 16
    monkeypatch.setattr(untrusted, "MOST_NODES", 15)
    refused(path, "16 nodes")


# ONNX: external data


def with_external(folder: Path, dims: list[int], **entries: object) -> Path:
    """x * w, w outside; beside it 64 ones in w.bin."""
    (folder / "w.bin").write_bytes(np.ones(64, np.float32).tobytes())
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL
    )
    for key, value in entries.items():
        weight.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


EXTERNAL: list[tuple[list[int], dict[str, object], str]] = [
    ([1, 64], {"location": "a\0b"}, "no name of a file"),
    # Sizes that a float does not hold.
    ([2**62] * 20, {"location": "w.bin"}, "end behind the end"),
    ([1, 64], {"location": "a" * 5000}, "no name of a file"),
    ([1, 64], {"location": "a" * 300}, "cannot be read"),
    ([1, 64], {"location": ""}, "no name of a file"),
    ([1, 64], {}, "no name of a file"),
    ([1, 64], {"location": "."}, "does not exist"),
    ([1, 64], {"location": "a\nb"}, "does not exist"),
    ([1, 64], {"location": "/dev/zero"}, "outside"),
    ([1, 64], {"location": "../w.bin"}, "outside"),
    ([1, 64], {"location": "fifo"}, "does not exist"),
    ([1, 64], {"location": "w.bin", "offset": -4}, "negative"),
    ([1, 64], {"location": "w.bin", "length": -256}, "negative"),
    ([1, 64], {"location": "w.bin", "offset": 2**70}, "shorter"),
    ([1, 64], {"location": "w.bin", "offset": "abc"}, "cannot be read"),
    ([-1], {"location": "w.bin"}, "negative"),
    ([2**33, 2**33], {"location": "w.bin"}, "shorter"),
    ([2**62], {"location": "w.bin"}, "shorter"),
]


@pytest.mark.parametrize(("dims", "entries", "message"), EXTERNAL)
def test_external_data(
    dims: list[int], entries: dict[str, object], message: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(with_external(tmp_path, dims, **entries), message)


def test_external_data_with_detours(tmp_path: Path) -> None:
    model = importer.load(with_external(tmp_path, [1, 64], location="./x/../w.bin"))
    (weight,) = (v for v in model.graph.initializers.values() if v.name == "w")
    assert weight.const_value is not None and (weight.const_value.numpy() == 1).all()


def test_external_data_of_constants_in_functions(tmp_path: Path) -> None:
    model = laughs(2)
    constant = helper.make_node("Constant", [], ["unused"])
    attribute = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(
        TensorProto(name="c", data_type=1, dims=[9000], data_location=TensorProto.EXTERNAL)
    )
    attribute.t.external_data.add(key="location", value="../secret")
    model.functions[0].node.insert(0, constant)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "outside")


# Arrays and images


def npy(shape: str, dtype: str = "<f4", data: bytes = b"\0" * 16) -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = header.ljust(-(-(len(header) + 11) // 64) * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + data


def npz(content: bytes, flipped: bytes = b"", offset: int = 0) -> bytes:
    """An archive; a byte behind a mark in it is spoilt."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    data = bytearray(file.getvalue())
    if flipped:
        data[data.index(flipped) + offset] ^= 0xFF
    return bytes(data)


GOOD = npy("(1,4)")
ARRAYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no .npy or .npz"),
    "pickle": (b"\x80\x04.", "no .npy or .npz"),
    "truncated": (npz(GOOD)[:60], "no .npy or .npz"),
    "checksum": (npz(GOOD, b"PK\x01\x02", 16), "Bad CRC-32"),
    "deflate": (npz(GOOD, b"x.npy", 5), "no .npy or .npz|cannot be read"),
    "huge": (npy("(1000000000000,3)"), "16 bytes of data follow"),
    "huge in npz": (npz(npy("(1000000000000,3)")), "'x' claims"),
    "overflow": (npy("(4611686018427387904,4)"), "16 bytes of data follow"),
    "negative": (npy("(-1,-4)"), "16 bytes of data follow"),
    "nothing each": (npy("(1000000000000,)", "|V0", b""), "of type"),
    "objects": (npy("(1,)", "|O"), "of type object"),
    "nested": (npy("(" * 3000 + ")" * 3000), "cannot be read"),
    "version": (b"\x93NUMPY\x09\x00" + GOOD[8:], "cannot be read|version"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_hostile_arrays(kind: str, tmp_path: Path) -> None:
    content, message = ARRAYS[kind]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(arrays.ArrayError, match=message) as caught:
        arrays.read(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_bombs_and_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000), np.float32))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(arrays, "LARGEST", 1 << 20)
    with pytest.raises(arrays.ArrayError, match="holds 3 MiB of arrays; 1 MiB are the most"):
        arrays.read(path)
    np.savez(tmp_path / "b.npz", x=np.zeros((50, 3, 16, 16), np.float32))
    np.savez(tmp_path / "c.npz", x=np.zeros((300, 3, 16, 16), np.float32))
    inputs = [
        ir.Value(name="x", shape=ir.Shape((1, 3, 16, 16)), type=ir.TensorType(ir.DataType.FLOAT))
    ]
    assert len(samples.load(tmp_path / "c.npz", inputs)) == 300
    path.unlink()
    with pytest.raises(CalibrationError, match=r"c\.npz: holds"):
        samples.load(tmp_path, inputs)
    os.mkfifo(tmp_path / "fifo.npy")
    for special in (tmp_path / "fifo.npy", Path("/dev/zero"), tmp_path):
        with pytest.raises(arrays.ArrayError, match="regular file"):
            arrays.read(special)


def test_special_files_as_models(tmp_path: Path, run_cli: Cli) -> None:
    for name in ("m.tflite", "m_edgetpu.tflite", "m.onnx", "m.gguf"):
        os.mkfifo(tmp_path / name)
        for command in ("inspect", "check") if name == "m.tflite" else ("inspect",):
            code, _, err = run_cli(command, tmp_path / name)
            assert code == 2 and "Traceback" not in err, name


def test_arrays_are_what_numpy_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = {
        "c": rng.standard_normal((3, 4, 5)),
        "fortran": np.asfortranarray(rng.standard_normal((3, 4)).astype(np.float32)),
        "scalar": np.array(3, np.int64),
        "none": np.zeros((0, 3), np.uint8),
        "big": np.arange(5, dtype=">i2"),
        "flags": rng.random(9) > 0.5,
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **kept)
        found, wanted = arrays.read(tmp_path / "a.npz"), np.load(tmp_path / "a.npz")
        assert isinstance(found, dict) and set(found) == set(wanted.files)
        for name, array in found.items():
            assert array.dtype == wanted[name].dtype and np.array_equal(array, wanted[name])
    np.save(tmp_path / "b.npy", kept["fortran"])
    assert np.array_equal(arrays.read(tmp_path / "b.npy"), kept["fortran"])


def png(width: int, height: int) -> bytes:
    """The beginning of an image that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", png(13000, 13000), "13000 x 13000 pixels"),
        ("a.png", png(2**31 - 1, 2**31 - 1), "more than 64,000,000 pixels"),
        ("a.png", png(0, 0), "not an image"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image"),
        ("a.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8 " + b"\xff" * 100, "not an image"),
    ],
)
def test_hostile_images(
    name: str, content: bytes, message: str, small_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes(content)
    code, _, err = run_cli(
        "build", small_model, "-o", tmp_path / "b", "--calibration", tmp_path / "images"
    )
    assert code == 2 and "E-CALIBRATION" in err and message in err and "Traceback" not in err
    assert not (tmp_path / "b").exists()


def test_numbers_of_options(small_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    build = ("build", small_model, "-o", tmp_path / "b", "--calibration", tmp_path / "images")
    for options, message in (
        (("--size", "60000,60000"), f"more than {pictures.MOST_PIXELS:,} pixels"),
        (("--std", "nan"), "finite"),
        (("--mean", "inf"), "finite"),
        (("--std", "0"), "divided by 0"),
        (("--min-sqnr", "nan"), "--min-sqnr nan"),
        (("--keep-float", "nan"), "--keep-float"),
        (("--seed", "-1"), "--seed"),
    ):
        code, _, err = run_cli(*build, *options)
        assert code == 2 and message in err and "Traceback" not in err, options
    os.mkfifo(tmp_path / "fifo.npz")
    for special in (tmp_path / "fifo.npz", Path("/dev/zero")):
        code, _, err = run_cli("build", small_model, "-o", tmp_path / "b", "--calibration", special)
        assert code == 2 and "neither a file nor a folder" in err


def test_inputs_of_run(small_bundle: Path, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "x.npz").write_bytes(npz(npy("(1000000000000,3,16,16)")))
    np.save(tmp_path / "nan.npy", np.full((1, 3, 16, 16), np.nan, np.float32))
    os.mkfifo(tmp_path / "fifo")
    for source, message in (
        ("x.npz", "claims"),
        ("fifo", "regular file"),
        ("nan.npy", "holds NaN"),
        ("no", "No such"),
    ):
        code, _, err = run_cli(
            "run", small_bundle, "-i", tmp_path / source, "-o", tmp_path / "y.npz"
        )
        assert code == 2 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "y.npz").exists()


# GGUF


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def number(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", 4, value)


def string(name: str, value: str) -> bytes:
    return text(name) + struct.pack("<I", 8) + text(value)


def array(name: str, kind: int, count: int, data: bytes = b"") -> bytes:
    return text(name) + struct.pack("<IIQ", 9, kind, count) + data


def gguf_file(
    fields: list[bytes], tensors: list[bytes] | None = None, count: int | None = None
) -> bytes:
    tensors = tensors or []
    head = struct.pack("<IQQ", 3, len(tensors), len(fields) if count is None else count)
    return b"GGUF" + head + b"".join([*fields, *tensors]) + b"\0" * 4096


PIECES = ["a", "b", "a" * 1000]
BASE = [
    string("general.architecture", "llama"),
    number("llama.embedding_length", 64),
    number("llama.block_count", 1),
    number("llama.attention.head_count", 4),
    number("llama.feed_forward_length", 64),
    number("llama.context_length", 256),
    text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5),
]
SENTENCEPIECE = [
    string("tokenizer.ggml.model", "llama"),
    array("tokenizer.ggml.tokens", 8, 3, b"".join(map(text, PIECES))),
    array("tokenizer.ggml.scores", 6, 3, struct.pack("<3f", 0, 0, 0)),
]


def tensor(dims: list[int], kind: int, offset: int) -> bytes:
    return text("w") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


GGUF: dict[str, tuple[bytes, str]] = {
    "numbers": (gguf_file([array("a", 0, 2**33)]), "array of 8589934592 numbers"),
    "fits no file": (gguf_file([array("a", 0, 2**24)]), "the file ends before"),
    "strings": (gguf_file([array("a", 8, 2**40)]), "array of 1099511627776 strings"),
    "nested": (
        gguf_file([text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000]),
        "type 9",
    ),
    "string": (gguf_file([text("a") + struct.pack("<IQ", 8, 2**62)]), "the file ends before"),
    "key": (gguf_file([struct.pack("<Q", 2**63)]), "the file ends before"),
    "fields": (gguf_file([], count=2**60), "at most 65536"),
    "twice": (gguf_file([BASE[0], BASE[0]]), "twice"),
    "alignment": (gguf_file([number("general.alignment", 3)]), "power of two"),
    "long token": (gguf_file([*BASE, *SENTENCEPIECE]), "a token of 1000 characters"),
    "layers": (
        gguf_file([*BASE[:2], number("llama.block_count", 2**31), *BASE[3:], *SENTENCEPIECE]),
        "layers is",
    ),
    "tensor type": (gguf_file(BASE, [tensor([64, 4], 999, 0)]), "type 999"),
    "tensor that cannot be dequantized": (gguf_file(BASE, [tensor([64, 4], 27, 0)]), "type 27"),
    "tensor outside": (gguf_file(BASE, [tensor([64, 4], 0, 2**63)]), "do not fit"),
    "tensor of 2^126": (gguf_file(BASE, [tensor([2**63, 2**63], 0, 0)]), "do not fit"),
    "tensor of nothing": (gguf_file(BASE, [tensor([0, 4], 0, 0)]), "do not fit"),
    "tensor of odd rows": (gguf_file(BASE, [tensor([33, 4], 2, 0)]), "do not fit"),
    "dimensions": (
        gguf_file(BASE, [text("w") + struct.pack("<I", 2**31)]),
        "2147483648 dimensions",
    ),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("kind", GGUF)
def test_hostile_gguf(kind: str, tmp_path: Path) -> None:
    content, message = GGUF[kind]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        open_source(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


def test_all_of_a_vocabulary_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "LONGEST_PIECE", 1000)
    monkeypatch.setattr(tokenizer, "MOST_CHARACTERS", 1001)
    (tmp_path / "m.gguf").write_bytes(gguf_file([*BASE, *SENTENCEPIECE]))
    with pytest.raises(ModelError, match="1002 in all"):
        open_source(tmp_path / "m.gguf")


def test_gguf_is_read_as_its_own_library_reads_it() -> None:
    reader = GGUFReader(FIXTURE)
    source = gguf.read(FIXTURE)
    wanted = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    assert set(source.weights) == set(wanted)
    for name, weight in source.weights.items():
        assert weight.shape == wanted[name].shape and np.array_equal(weight.array(), wanted[name])
        assert np.array_equal(weight.rows(slice(3, 7)), wanted[name][3:7])
    data = np.memmap(FIXTURE, np.uint8, "r")
    fields, _ = gguf_format.read_metadata(data)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            assert fields[name] == field.contents(), name


# Hugging Face folders

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 4,
}


def safetensors(header: object) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + b"\0" * 64


def entry(**fields: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **fields}}


CONFIGS: list[tuple[dict[str, Any] | str, str]] = [
    ({"num_hidden_layers": 10**9}, "layers is 1000000000"),
    ({"num_hidden_layers": float("inf")}, "cannot be understood"),
    ({"num_attention_heads": 0}, "heads is 0"),
    ({"hidden_size": 10**18}, "width is"),
    ({"head_dim": 10**12, "rope_scaling": {"rope_type": "llama3", "factor": 1}}, "head is"),
    ({"vocab_size": 10**9}, "vocabulary is"),
    ({"max_position_embeddings": 10**12}, "context is"),
    ({"layer_types": ["x", "y"]}, "2 kinds of layers for 1"),
    ({"rope_scaling": "x"}, "cannot be understood"),
    ({"rope_theta": float("nan")}, "must be positive"),
    ({"rms_norm_eps": float("inf")}, "must be positive"),
    ({"eos_token_id": "x"}, "is no number of a token"),
    ({"eos_token_id": -5}, "token -5"),
    ({"bos_token_id": 10**9}, "token 1000000000"),
    ('{"a":' + "[" * 100000, "cannot be read as JSON"),
    ("[]", "not a JSON object"),
]


def folder_of(place: Path, config: dict[str, Any] | str, weights: bytes) -> Path:
    found = config if isinstance(config, str) else json.dumps(CONFIG | config)
    (place / "config.json").write_text(found)
    (place / "tokenizer.json").write_text("{}")
    (place / "m.safetensors").write_bytes(weights)
    return place


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_hostile_configurations(config: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        open_source(folder_of(tmp_path, config, safetensors(entry())))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 100000,
        [],
        b'{"\xff":1}',
        entry(shape=[-4, -4]),
        entry(shape=[4.0, 4.0]),
        entry(shape=None),
        entry(shape=[1] * 70, data_offsets=[0, 4]),
        entry(shape=[0], data_offsets=[0, 0]),
        entry(data_offsets=["0", "64"]),
        entry(data_offsets=[0, 1, 2]),
        entry(data_offsets=[-64, 0]),
        entry(data_offsets=[64, 0]),
        entry(dtype=["F32"]),
        entry(shape=[2**40, 2**40]),
    ],
)
def test_hostile_safetensors(header: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.safetensors") as caught:
        open_source(folder_of(tmp_path, {}, safetensors(header)))
    assert "\n" not in str(caught.value)


# Manifests

MANIFESTS: list[tuple[tuple[str | int, ...], object, str]] = [
    (("inputs", 0, "dtype"), "object", "not numbers"),
    (("inputs", 0, "dtype"), "V100000000000", "not numbers"),
    (("inputs", 0, "dtype"), "x", "not numbers"),
    (("inputs", 0, "shape"), None, "fixed shape"),
    (("inputs", 0, "shape"), [1, None], "fixed shape"),
    (("inputs", 0, "shape"), [2**40, 2**40], "out of range"),
    (("inputs", 0, "shape"), [2**30, 2**30], "MiB"),
    (("inputs", 0, "shape"), [-1], "out of range"),
    (("inputs", 0, "shape"), [1] * 70, "at most 64"),
    (("inputs", 0, "shape"), [1.0, 3.0], "integer"),
    (("segments", 1, "macs"), 10**400, "out of range"),
    (("quality", "samples"), 10**400, "out of range"),
    (("quality", "segments", "1", "sqnr_db"), 10**400, "out of range"),
    (("segments", 1, "predicted_ms", "in"), 1e308, "out of range"),
    (("segments", 1, "outputs", 0, "scale"), 1e-320, "out of range"),
    (("segments", 1, "files", 0, "path"), "a\0b", "match"),
    (("segments", 1, "files", 0, "path"), "\ud800", "match"),
    (("segments", 1, "files", 0, "path"), "a" * 1000, "cannot be read"),
    (("segments", 1, "files", 0, "path"), "segments", "missing"),
    (("segments", 1, "files", 0, "bytes"), 2**50, "changed"),
    (("segments", 1, "inputs", 0, "name"), "\ud800", "match"),
    (("segments", 1, "outputs", 0, "name"), "x", "segment 1 makes 'x', which is there already"),
]


@pytest.mark.parametrize(("place", "value", "message"), MANIFESTS)
def test_hostile_manifests(
    place: tuple[str | int, ...], value: object, message: str, small_bundle: Path
) -> None:
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    inner = manifest
    for key in place[:-1]:
        inner = inner[key]
    assert place[-1] in inner or isinstance(inner, list)
    inner[place[-1]] = value
    copy = small_bundle.parent / "hostile.bundle"
    copy.mkdir(exist_ok=True)
    if not (copy / "segments").exists():
        (copy / "segments").mkdir()
        for file in (small_bundle / "segments").iterdir():
            (copy / "segments" / file.name).write_bytes(file.read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RuntimeBundleError, match=message) as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)


def broken(program: Any, settings: Any) -> str:
    return next(consistency.language_complaints(program, settings), "")


def test_a_language_model_needs_its_logits_and_tokens() -> None:
    settings: dict[str, Any] = {
        "slots": 2,
        "programs": {},
        "tokenizer": {"begin": None, "ends": [7]},
    }
    manifest: dict[str, Any] = {"outputs": [{"shape": None}]}
    assert "no program" in broken(manifest, settings)
    settings["slots"] = 1
    assert "logits" in broken(manifest, settings)
    manifest["outputs"][0]["shape"] = [1, 1, 7]
    assert "token 7 is none of 7" in broken(manifest, settings)
    manifest["outputs"][0]["shape"] = [1, 1, 8]
    assert broken(manifest, settings) == ""


def test_documented_limits() -> None:
    found = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    limits = {
        f"{untrusted.MOST_NODES:,} nodes and {untrusted.MOST_NODE_BYTES >> 30} GiB",
        f"subgraphs {untrusted.MOST_DEPTH} deep",
        f"{gguf_format.MOST_FIELDS:,} fields",
        f"{gguf_format.MOST_STRINGS:,} strings or {gguf_format.LARGEST_ARRAY:,} numbers",
        f"{tokenizer.LONGEST_PIECE} characters, {tokenizer.MOST_CHARACTERS:,} in all",
        f"{architecture.MOST_LAYERS} layers; other sizes of {architecture.LARGEST_SIZE:,}",
        f"{textfile.LARGEST_TEXT >> 20} MiB of config.json",
        f"{confined.MOST_DEFINITION >> 20} MiB of tokenizer.json",
        f"{corpus.LARGEST_TEXT >> 20} MiB of text to calibrate on",
        f"{confined.TOKENIZER_SECONDS:g} seconds, {confined.TOKENIZER_BYTES >> 30} GiB, "
        f"{child.MOST_TOKENS_PER_BYTE} tokens for a byte",
        f"{confined.TEMPLATE_SECONDS:g} seconds, {confined.TEMPLATE_BYTES >> 20} MiB, "
        f"{confined.MOST_ANSWER >> 20} MiB of text",
        f"{arrays.LARGEST >> 30} GiB of arrays",
        f"images of {pictures.MOST_PIXELS:,} pixels",
        f"| TFLite | {tflite_file.LARGEST >> 30} GiB |",
        f"| manifests | {bundle.MANIFEST_BYTES >> 20} MiB; 64 dimensions of {2**31 - 1:,}; "
        f"inputs of {consistency.INPUT_BYTES >> 30} GiB |",
    }
    assert not [limit for limit in limits if limit not in found]
