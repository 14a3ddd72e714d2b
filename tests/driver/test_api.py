"""What `import compiler` offers: names, options that check themselves, results."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
import passes
from compiler.cli import flag_of
from compiler.driver import options as declared
from compiler.vendor import edgetpu_compiler
from docs import api as document
from tests.conftest import Cli, save, small_network

ROOT = Path(__file__).parents[2]


def loaded_by(code: str) -> set[str]:
    """The top-level modules that Python has loaded after some code."""
    report = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(json.loads(ran.stdout.splitlines()[-1]))


HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "ortools", "pandas", "sympy"}


def test_import_is_light() -> None:
    assert not loaded_by("import compiler") & {*HEAVY, "rich", "typer"}


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from compiler import cli
sys.argv = ["coral-bundle", *{arguments}]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
"""
    assert not loaded_by(code) & {*HEAVY, "jinja2", "tokenizers", "starlette", "uvicorn"}


# What modules of the command line may import of this project: the face, and what is light.
CLI_MAY_IMPORT = (
    "compiler",
    "compiler.cli",
    "compiler.driver.options",
    "compiler.errors",
    "compiler.runtime",
    "compiler.validation",
    "compiler.view",
)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "compiler" / "cli").glob("*.py")), ids=lambda path: path.name
)
def test_the_command_line_uses_the_face(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("compiler"):
            allowed = [f"{name}." for name in CLI_MAY_IMPORT[1:]]
            assert node.module in CLI_MAY_IMPORT or str(node.module).startswith(tuple(allowed))


def test_every_name_is_there_and_documented() -> None:
    for name in compiler.__all__:
        assert getattr(compiler, name).__doc__
    assert sorted(document.documented()) == sorted(compiler.__all__)
    assert set(compiler.__all__) <= set(dir(compiler))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compiler.nothing  # noqa: B018


BAD_BUILD_OPTIONS: list[tuple[str, Any]] = [
    ("dims", {"batch": 0}),
    ("dims", {"": 1}),
    ("shapes", {"x": (1, -3)}),
    ("target", "gpu"),
    ("min_sqnr", math.nan),
    ("min_sqnr", math.inf),
    ("accuracy", "x"),
    ("keep_float", 4000),
    ("keep_float", -1),
    ("keep_float", "much"),
    ("without", {"nonsense"}),
    ("without", "balance"),
    ("also", {"x"}),
    ("seed", -1),
    ("lowering", ("foo",)),
    ("lowering", ("direct", "onnx-tf")),
]


@pytest.mark.parametrize(("name", "value"), BAD_BUILD_OPTIONS)
def test_bad_build_options(name: str, value: object) -> None:
    with pytest.raises(compiler.OptionError) as caught:
        compiler.BuildOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.option == name and str(caught.value).startswith(f"{name} ")


BAD_PARTITION_OPTIONS: list[tuple[str, Any]] = [
    ("tpus", 0),
    ("tpus", 65),
    ("tpus", 1.5),
    ("objective", "speed"),
    ("place", "gpu"),
    ("pins", {"a": "gpu"}),
    ("host", "pi9"),
    ("host_bytes", 0),
    ("seconds", math.nan),
]


@pytest.mark.parametrize(("name", "value"), BAD_PARTITION_OPTIONS)
def test_bad_partition_options(name: str, value: object) -> None:
    with pytest.raises(compiler.OptionError) as caught:
        compiler.PartitionOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.option == name


@pytest.mark.parametrize(
    ("name", "value"), [("context", 1), ("chunk", 1), ("slots", 0), ("slots", 65), ("max_ram", 0)]
)
def test_bad_language_options(name: str, value: int) -> None:
    with pytest.raises(compiler.OptionError) as caught:
        compiler.LanguageOptions(**{name: value})
    assert caught.value.option == name


def test_bad_observers() -> None:
    with pytest.raises(compiler.OptionError) as caught:
        compiler.BuildOptions(observers=compiler.Observers("average"))
    assert caught.value.option == "observers"


def test_steps_for_the_edge_tpu_need_layers_there() -> None:
    on_host = compiler.PartitionOptions(place="host")
    with pytest.raises(compiler.OptionError, match="second_row: is for layers on the Edge TPU"):
        compiler.BuildOptions(also=frozenset({"second_row"}), partitioning=on_host)


OPTION_CLASSES = (
    compiler.BuildOptions,
    compiler.PartitionOptions,
    compiler.LanguageOptions,
    compiler.ImageOptions,
)


def test_every_option_says_which_models_it_is_for() -> None:
    names = set()
    for cls in OPTION_CLASSES:
        names |= {field.name for field in dataclasses.fields(cls)}
    nested = {"partitioning", "language", "image"}
    assert names - nested == set(declared.SCOPES)


def test_options_of_the_other_kind_of_model_are_refused() -> None:
    model = Path("m")
    for options, kind, name in (
        (compiler.BuildOptions(seed=1), "language", "seed"),
        (compiler.BuildOptions(image=compiler.ImageOptions(size=(1, 1))), "language", "size"),
        (
            compiler.BuildOptions(partitioning=compiler.PartitionOptions(cuts=("a",))),
            "language",
            "cuts",
        ),
        (compiler.BuildOptions(language=compiler.LanguageOptions(slots=2)), "onnx", "slots"),
        (compiler.BuildOptions(also=frozenset({"rotate_stream"})), "onnx", "also"),
    ):
        with pytest.raises(compiler.OptionError, match="is for") as caught:
            options.suited_to(kind, model)  # type: ignore[arg-type]
        assert caught.value.option == name


def test_where_nobody_says_where_prediction_does() -> None:
    options = compiler.BuildOptions()
    assert options.suited_to("language", Path("m")).partitioning.place == "auto"
    assert options.suited_to("onnx", Path("m")).partitioning.place == "auto"
    on_host = compiler.BuildOptions(partitioning=compiler.PartitionOptions(place="host"))
    assert on_host.suited_to("language", Path("m")).partitioning.place == "host"


def test_flags_of_options() -> None:
    assert flag_of("keep_float") == "--keep-float"
    assert [flag_of(name) for name in ("dims", "pins", "also", "observers")] == [
        "--dim",
        "--pin",
        "--with",
        "--observer",
    ]


def test_steps_that_options_name_are_those_of_the_passes() -> None:
    """The names stand in a module of their own, as --help shows them and must not import passes."""
    assert declared.ACCURACY == passes.ACCURACY
    assert declared.OPTIONAL == passes.OPTIONAL


def test_timings_logs_and_dumps(tmp_path: Path, small_model: Path, run_cli: Cli) -> None:
    dump = tmp_path / "dump"
    options = ("--timings", "--verbose", "--dump-passes", dump)
    code, _, err = run_cli("build", small_model, *options)
    lines = [line.split() for line in err.splitlines()]
    assert code == 0
    assert ["fold_constants:", "no", "match"] in lines
    assert any(line[:1] == ["verifying"] for line in lines)
    rows = [line for line in lines if line[:1] == ["lower"]]
    assert len(rows) == 1 and float(rows[0][1]) > 0 and int(rows[0][2]) > 0
    assert (dump / "01-fold_constants.onnx").is_file()
    code, _, err = run_cli("build", small_model, "--force", *options)
    assert code == 2 and "is not empty" in err


def test_the_default_timeout_is_the_tools() -> None:
    from compiler.cli.options import TIMEOUT

    assert edgetpu_compiler.TIMEOUT == TIMEOUT


def test_build_check_inspect_plan_and_run(tmp_path: Path) -> None:
    model = save(tmp_path / "small.onnx", small_network())
    np.savez(tmp_path / "c.npz", x=np.ones((8, 3, 16, 16), np.float32))
    on_tpu = compiler.PartitionOptions(place="tpu")
    options = compiler.BuildOptions(calibration=str(tmp_path / "c.npz"), partitioning=on_tpu)
    bundle = compiler.build(str(model), options)
    assert bundle.path == tmp_path / "small.bundle"
    assert bundle.manifest["quality"]["outputs"].keys() == {"y"}
    with compiler.Runner(bundle) as runner:
        assert runner.run({"x": np.zeros((1, 3, 16, 16), np.float32)})["y"].shape == (1, 10)

    plain = compiler.BuildOptions(partitioning=on_tpu)
    planned, built = compiler.inspect(model, plain), compiler.inspect(str(bundle.path))
    segments = planned.plan["segments"]
    assert [segment["device"] for segment in segments] == ["host", "tpu", "host", "tpu", "host"]
    assert built.program is None and built.plan == bundle.manifest
    assert [segment["operators"] for segment in built.plan["segments"]] == [
        segment["operators"] for segment in segments
    ]
    compiler.save_graph(planned, tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx").is_file()
    with pytest.raises(compiler.OptionError):
        compiler.save_graph(built, tmp_path / "other.onnx")
    with pytest.raises(compiler.OptionError, match="planned already"):
        compiler.inspect(bundle.path, compiler.BuildOptions(dims={"n": 1}))

    rows = compiler.plan(model, tpus=[1, 2])
    assert [(row.tpus, row.objective) for row in rows] == [(1, "throughput"), (2, "throughput")]
    assert rows[0].latency_ms >= rows[0].interval_ms > 0

    operators = compiler.check(bundle.path / "segments" / "01.tflite")
    assert operators and all(operator.reason is None for operator in operators)


def test_version_and_completion(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("--version")[1] == f"coral-bundle {compiler.__version__}\n"
    code = "import sys; from compiler.cli import main; sys.argv = ['coral-bundle']; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PATH": "/usr/bin:/bin",
            "_CORAL_BUNDLE_COMPLETE": "complete_bash",
            "COMP_WORDS": "coral-bundle bui",
            "COMP_CWORD": "1",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == ["build"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep-float", "4000"), "--keep-float 4000.0: give a number from 0 to 100"),
        (("--seed", "-1"), "--seed -1: give a whole number"),
        (("--min-sqnr", "nan"), "--min-sqnr nan: give a finite number"),
        (("--without", "nonsense"), "--without nonsense: choose from keep_gates"),
        (("--with", "x"), "--with x: choose from fuse_blocks, rotate_outputs"),
        (("--accuracy", "x"), "--accuracy x: choose from report"),
        (("--lowering", "foo"), "--lowering foo: choose from direct"),
        (("--slots", "0"), "--slots 0: give a whole number from 1 to 64"),
        (("--slots", "2"), "--slots does not apply to"),
        (("--dim", "batch=0"), "--dim 0: give a whole number"),
    ],
)
def test_the_command_line_names_the_flag(
    options: tuple[str, str], words: str, small_model: Path, run_cli: Cli
) -> None:
    code, out, err = run_cli("build", small_model, *options)
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 2 and len(lines) == 1 and words in lines[0] and out == ""
