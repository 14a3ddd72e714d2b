"""The order of the folders, and how little the device side needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

from docs.modules import ORDER, ROOT, module_name, room, source_files

# What a bundle needs to run, and what files and folders for text, servers and clusters need.
RUNTIME = ROOT / "compiler" / "runtime"
RUNTIME_MAY_IMPORT = {"numpy", "onnxruntime", "compiler"}
MAY_ALSO_IMPORT = {
    "child.py": {"tokenizers", "jinja2"},
    "cluster.py": {"ray"},
    "drawing.py": {"PIL"},
    "frigate.py": {"PIL", "zmq"},
    "grammar.py": {"llguidance"},
    "pictures.py": {"PIL"},
    "server": {"prometheus_client", "starlette"},
    "server/forms.py": {"python_multipart"},
    "server/protocol.py": {"h11", "uvicorn"},
}
MODULES = {module_name(path): path for path in source_files()}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside functions.

    `from compiler.graph import walk` counts as compiler.graph.walk where that is a module.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in MODULES else module)
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_folder_imports_only_those_below_it(name: str) -> None:
    below = ORDER[: ORDER.index(room(name)) + 1]
    for used in imports(MODULES[name]):
        if used.split(".")[0] in ("compiler", "passes"):
            assert room(used) in below, f"{name} imports {used}; the order is in docs/modules.py"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = networkx.DiGraph()
    for name, path in MODULES.items():
        graph.add_edges_from((name, used) for used in imports(path) & MODULES.keys())
    circles = [c for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles


def test_every_folder_has_its_place_in_the_order() -> None:
    assert {room(name) for name in MODULES} == set(ORDER)


@pytest.mark.parametrize(
    "path", sorted(RUNTIME.rglob("*.py")), ids=lambda path: path.relative_to(RUNTIME).as_posix()
)
def test_the_runtime_imports_little(path: Path) -> None:
    allowed = sys.stdlib_module_names | RUNTIME_MAY_IMPORT
    for place in (path, path.parent):
        allowed |= MAY_ALSO_IMPORT.get(place.relative_to(RUNTIME).as_posix(), set())
    for name in imports(path):
        assert name.split(".")[0] in allowed, name


def test_the_runtime_loads_without_the_compiler() -> None:
    code = "import sys, compiler.runtime; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for name in ("onnx", "onnx_ir", "onnxscript", "networkx", "rich", "typer", "jsonschema"):
        assert f"'{name}'" not in loaded
