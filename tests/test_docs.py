"""The documentation says what the code does: commands run, links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import typer.main
import uvicorn
from PIL import Image

from compiler import cli
from compiler.cli import document as cli_document
from compiler.runtime.schema import SCHEMA
from docs import api as api_document
from docs import modules
from passes import PASSES, SAMPLE_PASSES
from tests import eyes
from tests.conftest import Cli, save, small_network

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Pages that are made from the source, and the modules whose `page()` they are.
GENERATED = (
    ("modules.md", "docs.modules"),
    ("passes.md", "docs.passes"),
    ("supported-ops.md", "compiler.ops.document"),
    ("cli.md", "compiler.cli.document"),
    ("api.md", "docs.api"),
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_readme_is_short() -> None:
    assert len(README.encode()) <= 6 * 1024


def test_make_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\S+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    for command in commands:
        assert f"\n{command}:" in makefile


def anchors(page: Path) -> set[str]:
    """Fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if fragment:
            assert fragment in anchors(target), link


def image_model(path: Path) -> Path:
    """The small network with an input that is called `image`, as in the README's Python."""
    proto = small_network()
    proto.graph.input[0].name = "image"
    proto.graph.node[0].input[0] = "image"
    return save(path, proto)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files under the names that the README uses."""
    rng = np.random.default_rng(0)
    image_model(tmp_path / "model.onnx")
    (tmp_path / "photos").mkdir()
    for index in range(8):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    np.savez(tmp_path / "x.npz", image=rng.random((2, 3, 16, 16), np.float32))

    shutil.copy(ROOT / "fixtures/exports/ultralytics/yolov8.onnx", tmp_path / "yolov8n.onnx")
    eyes.street().save(tmp_path / "photo.jpg")

    shutil.copy(ROOT / "fixtures" / "language.gguf", tmp_path / "smollm2.gguf")
    reader = gguf.GGUFReader(tmp_path / "smollm2.gguf", "r+")
    context = reader.get_field("llama.context_length")
    assert context is not None
    context.parts[-1][0] = 2048  # as SmolLM2 has it: the default of --context must fit
    reader.data.flush()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
def test_commands_of_the_readme_run(
    desk: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server would not end by itself: it opens its port, and that is all.
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: None)
    commands = re.findall(r"^coral-bundle (.*)$", README, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        arguments = shlex.split(command)
        if arguments[0] == "serve":
            arguments += ["--port", "0"]
        code, _, err = run_cli(*arguments)
        assert code == 0, f"{command}: {err}"
    outputs = np.load(desk / "y.npz")
    assert outputs["y"].shape == (2, 10)


@pytest.mark.slow
def test_python_of_the_readme_runs(desk: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    image = np.load(desk / "x.npz")["image"][:1]
    names: dict[str, Any] = {"image": image, "camera": [image, image + 1]}
    exec(code, names)  # the README is ours
    assert names["outputs"]["y"].shape == (1, 10)


@pytest.mark.parametrize(("page", "module"), GENERATED)
def test_generated_page_is_current(page: str, module: str) -> None:
    want = importlib.import_module(module).page()
    assert (ROOT / "docs" / page).read_text() == want, "run: make docs"


def test_make_writes_every_generated_page() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page, module in GENERATED:
        assert f"-m {module} > docs/{page}\n" in makefile


def commands() -> dict[str, Any]:
    return dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_is_in_the_page_of_commands(name: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    section = text.split(f"## `coral-bundle {name}")[1].split("\n## ")[0]
    for parameter in commands()[name].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert f"`{option}`" in section, option


def test_the_page_of_commands_is_current() -> None:
    """`python -m compiler.cli.document > docs/cli.md` writes it."""
    assert (ROOT / "docs" / "cli.md").read_text() == cli_document.page()


def test_the_page_of_the_api_is_current() -> None:
    """`python -m docs.api > docs/api.md` writes it."""
    assert (ROOT / "docs" / "api.md").read_text() == api_document.page()


@pytest.mark.parametrize("path", modules.source_files(), ids=modules.module_name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert modules.first_sentence(path).endswith((".", ":"))


def test_architecture_has_every_folder_in_its_order() -> None:
    table = ARCHITECTURE.split("## Folders")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    names = {"compiler/__init__.py": "__init__", "compiler/__main__.py": "__main__"}
    found = [names.get(row) or Path(row).stem for row in rows]
    assert found == list(modules.ORDER)


def test_architecture_has_every_pass_in_its_order() -> None:
    table = ARCHITECTURE.split("## Passes")[1].split("\n### ")[0]
    steps = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")]
    found = re.findall(r"`(\w+)`", "".join(steps))
    assert found == [record.name for record in (*PASSES, *SAMPLE_PASSES)]


def test_files_that_the_documentation_names_exist() -> None:
    folders = "compiler|passes|tests|fixtures|docs|benchmarks"
    name = re.compile(rf"\b(?:{folders})/[\w/.-]*\w")
    module = re.compile(r"python -m ((?:benchmarks|compiler|docs)\.[\w.]*\w)")
    missing = []
    for page in PAGES:
        text = page.read_text().replace("\\", "")
        paths = [ROOT / path for path in name.findall(text)]
        paths += [ROOT / f"{dotted.replace('.', '/')}.py" for dotted in module.findall(text)]
        # NAME and FAMILY stand for the reader's own.
        real = [path for path in paths if not re.search("NAME|FAMILY", path.name)]
        missing += [f"{page.name}: {path}" for path in real if not path.exists()]
    assert not missing


def fields(schema: dict) -> set[str]:  # type: ignore[type-arg]
    found = set()
    for name, inner in schema.get("properties", {}).items():
        found |= {name} | fields(inner)
    for inner in schema.get("$defs", {}).values():
        found |= fields(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found |= fields(schema[key])
    return found


def test_every_manifest_field_is_documented() -> None:
    text = (ROOT / "docs" / "manifest.md").read_text()
    for name in fields(json.loads(SCHEMA.read_text())):
        assert f"`{name}`" in text, name
