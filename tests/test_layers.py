"""The shape of the code: which package may import which, and how small the device side is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNTIME_MAY_IMPORT = {"numpy", "onnxruntime", "compiler"}
RUNTIME = ROOT / "compiler" / "runtime"
# Files and folders of the runtime that may import more.
MAY_ALSO_IMPORT = {
    "child.py": {"tokenizers", "jinja2"},
    "cluster.py": {"ray"},
    "server": {"starlette"},
    "server/protocol.py": {"h11", "uvicorn"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize(
    "path", sorted(RUNTIME.rglob("*.py")), ids=lambda p: p.relative_to(RUNTIME).as_posix()
)
def test_runtime_imports_little(path: Path) -> None:
    allowed = sys.stdlib_module_names | RUNTIME_MAY_IMPORT
    for place in (path, path.parent):
        allowed |= MAY_ALSO_IMPORT.get(place.relative_to(RUNTIME).as_posix(), set())
    for name in imports(path):
        top = name.split(".")[0]
        assert top in allowed, name
        # errors.py needs nothing but Python itself.
        assert top != "compiler" or name.startswith(("compiler.runtime", "compiler.errors")), name


def test_runtime_loads_without_the_compiler() -> None:
    code = "import sys, compiler.runtime; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for name in ("onnx", "onnx_ir", "onnxscript", "networkx", "rich", "typer", "jsonschema"):
        assert f"'{name}'" not in loaded


@pytest.mark.parametrize("folder", ["ops", "targets", "emit", "quantize"])
def test_lower_layers_do_not_import_passes(folder: str) -> None:
    for path in (ROOT / "compiler" / folder).glob("*.py"):
        assert not any(name.split(".")[0] == "passes" for name in imports(path)), path


def test_operators_do_not_import_what_uses_them() -> None:
    above = {
        "compiler.driver.build",
        "compiler.partition.partition",
        "compiler.emit.bundle",
        "compiler.cli",
        "compiler.checks.verify",
    }
    for path in (ROOT / "compiler" / "ops").glob("*.py"):
        assert not imports(path) & above, path
