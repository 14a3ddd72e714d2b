"""Which arrays a segment may write in place: those of a language model's own cache, and nothing of
a caller's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compiler.driver import build as building
from compiler.driver import language
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Pipeline, Runner, RuntimeBundleError
from compiler.runtime.onnx_segment import Cache, HostSegment
from compiler.runtime.pipeline import SegmentError

WIDTH = 8
LANGUAGE = Path(__file__).parent.parent / "fixtures" / "language.gguf"


def cached_model(folder: Path, width: int | str = WIDTH) -> Path:
    """y = x + 1 and present.a = erf(cache.a): the names of a decoder, but a user's model."""
    kind = onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Erf", ["cache.a"], ["present.a"]),
        helper.make_node("Add", ["x", "x"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, [1, width]) for name in ("cache.a", "x")]
    outputs = [helper.make_tensor_value_info(name, kind, [1, width]) for name in ("present.a", "y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    path = folder / "cached.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path
    )
    return path


def arrays() -> dict[str, np.ndarray]:
    line = np.linspace(-2, 2, 2 * WIDTH, dtype=np.float32)[None]
    fixed = line[:, :WIDTH].copy()
    fixed.flags.writeable = False
    return {
        "contiguous": line[:, :WIDTH].copy(),
        "every second": line[:, ::2],
        "reversed": line[:, WIDTH - 1 :: -1],
        "broadcast": np.broadcast_to(np.float32(0.5), (1, WIDTH)),
        "read-only": fixed,
        "a cache of the user": line[:, :WIDTH].copy().view(Cache),
        "a strided cache of the user": line.view(Cache)[:, ::2],
    }


@pytest.fixture(scope="module")
def user_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cached")
    model = cached_model(folder)
    building.build(model, folder / "b", BuildOptions())
    return model, folder / "b"


@pytest.mark.parametrize("name", arrays())
def test_a_users_arrays_are_read_only(user_bundle: tuple[Path, Path], name: str) -> None:
    model, path = user_bundle
    given, x = arrays()[name], np.zeros((1, WIDTH), np.float32)
    before = given.copy()
    session = onnxruntime.InferenceSession(model)
    (want,) = session.run(["present.a"], {"cache.a": np.asarray(before), "x": x})
    with Runner(Bundle.open(path), "cpu") as runner:
        got = runner.run({"cache.a": given, "x": x})["present.a"]
        kept = next(iter(runner.stream([{"cache.a": given, "x": x}])))["present.a"]
    assert np.array_equal(given, before)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(kept, got)


def test_an_array_that_has_far_less_memory_than_its_shape_says(tmp_path: Path) -> None:
    pair = {"present.a": "cache.a"}
    segment = HostSegment(cached_model(tmp_path, 1 << 22), 1, in_place=pair)
    big, x = np.broadcast_to(np.float32(0.5), (1, 1 << 22)), np.zeros((1, 1 << 22), np.float32)
    present, _ = segment.run([big, x])
    assert present[0, -1] == pytest.approx(0.5204999)


def test_only_whole_arrays_are_lent(tmp_path: Path) -> None:
    segment = HostSegment(cached_model(tmp_path), 1, in_place={"present.a": "cache.a"})
    x = np.zeros((1, WIDTH), np.float32)
    own = Cache.zeros((3, WIDTH))
    own[:] = 0.5
    present, _ = segment.run([own[1:2], x])
    assert np.shares_memory(present, own)
    np.testing.assert_allclose(own[:, 0], [0.5, 0.5204999, 0.5], atol=1e-6)
    wide = Cache.zeros((1, 2 * WIDTH))
    for wrong in (
        wide[:, ::2],
        wide,
        own[:, :1],
        wide[:, :WIDTH].astype(np.float64),
        own[::2][:1, ::-1],
    ):
        with pytest.raises(ValueError, match=r"cache\.a"):
            segment.run([wrong, x])


def test_files_that_do_not_fit_what_their_manifest_says(tmp_path: Path) -> None:
    for width, pair in (
        (WIDTH, {"y": "nothing"}),
        (WIDTH, {"nothing": "x"}),
        ("N", {"present.a": "cache.a"}),
    ):
        with pytest.raises(ValueError, match="where input"):
            HostSegment(cached_model(tmp_path, width), 1, in_place=pair)


def test_a_manifest_cannot_make_a_users_model_write_in_place(
    user_bundle: tuple[Path, Path],
) -> None:
    _, path = user_bundle
    original = (path / "manifest.json").read_text("utf-8")
    manifest = json.loads(original)
    assert all("in_place" not in s for s in manifest["segments"])
    manifest["segments"][0]["in_place"] = {"present.a": "cache.a"}
    try:
        (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        with pytest.raises(RuntimeBundleError, match="in place"):
            Bundle.open(path)
    finally:
        (path / "manifest.json").write_text(original, "utf-8")


def test_a_decoders_programs_leave_a_callers_cache_alone(tmp_path: Path) -> None:
    settings = LanguageOptions(context=16, chunk=4, slots=1)
    language.build(
        LANGUAGE,
        tmp_path / "b",
        BuildOptions(partitioning=PartitionOptions(place="host"), language=settings),
    )
    bundle = Bundle.open(tmp_path / "b")
    pipeline = Pipeline(bundle)
    feeds = {
        "tokens": np.array([[5, 6, 7, 8]]),
        "lengths": np.array([3], np.int32),
        "total": np.array([4], np.int32),
        "last": np.array([3]),
    }
    shapes = {t["name"]: t["shape"] for t in pipeline.inputs if t["name"] not in feeds}
    plain = pipeline.run(
        {**feeds, **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}
    )
    zero = np.zeros((), np.float32)
    got = pipeline.run(
        {**feeds, **{name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}}
    )
    assert zero == 0
    for name, array in plain.items():
        np.testing.assert_array_equal(got[name], array)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text("utf-8"))
    for spoilt, word in (
        ({"present.0.key": "tokens"}, "present.0.key"),
        ({"present.0.key": "cache.0.key", "present.1.key": "cache.0.key"}, "same place"),
        ({"logits": "cache.0.key"}, "logits"),
    ):
        manifest["segments"][0]["in_place"] = spoilt
        (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        with pytest.raises(RuntimeBundleError, match=word):
            Bundle.open(tmp_path / "b")


def test_memory_that_does_not_fit_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """What a segment says of a cache comes as a SegmentError, like any other failure of a run."""
    settings = LanguageOptions(context=16, chunk=4, slots=1)
    language.build(
        LANGUAGE,
        tmp_path / "b",
        BuildOptions(partitioning=PartitionOptions(place="host"), language=settings),
    )
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    values: dict[str, np.ndarray] = {t["name"]: Cache.zeros((1, 1)) for t in pipeline.inputs}
    with pytest.raises(SegmentError, match="cache"):
        pipeline.run_segment(0, values)
