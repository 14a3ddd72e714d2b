"""The manifest's types, what is made of them, and what is said of other versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compiler.emit import document
from compiler.emit import manifest as manifests
from compiler.errors import InternalError
from compiler.runtime import Bundle, RuntimeBundleError, schema
from compiler.runtime.manifest import MANIFEST_VERSION, Manifest, version_complaint


def read(bundle: Path) -> Manifest:
    return Bundle.open(bundle).manifest


def test_the_schema_for_other_tools_is_current(small_bundle: Path) -> None:
    assert schema.SCHEMA.read_text("utf-8") == document.schema_text(), document.__doc__
    validator = jsonschema.Draft202012Validator(json.loads(document.schema_text()))
    validator.check_schema(validator.schema)
    assert validator.is_valid(read(small_bundle))


def test_the_tables_of_the_page_are_current_and_all_there() -> None:
    page = document.PAGE.read_text("utf-8")
    assert document.page_text(page) == page, document.__doc__
    assert document.documented(page) == document.entries()


def test_every_field_says_what_it_means() -> None:
    for name in document.entries():
        for field, entry in schema.fields(document.entry_type(name)).items():
            assert entry.text, f"{name}.{field}"


VERSIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"manifest_version": MANIFEST_VERSION - 1},
        "of an older coral-bundle.*build the bundle again",
    ),
    (
        {"manifest_version": MANIFEST_VERSION + 1, "tools": {"coral-bundle": "9.1"}},
        f"written by coral-bundle 9.1, .*reads {MANIFEST_VERSION}: update",
    ),
    ({"manifest_version": MANIFEST_VERSION + 1, "tools": 3}, "by a newer coral-bundle.*update"),
    ({"manifest_version": True}, "True is none of coral-bundle's"),
    ({"manifest_version": str(MANIFEST_VERSION)}, "is none of coral-bundle's"),
    ({"manifest_version": 0}, "0 is none of coral-bundle's"),
]


@pytest.mark.parametrize(("change", "message"), VERSIONS)
def test_other_versions_are_refused_in_one_line(
    change: dict[str, Any], message: str, small_bundle: Path, tmp_path: Path
) -> None:
    manifest: dict[str, Any] = {**read(small_bundle), **change}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RuntimeBundleError, match=message) as caught:
        Bundle.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_newer_writer_cannot_command_the_terminal() -> None:
    tools = {"coral-bundle": "9\x1b[31m"}
    found = version_complaint({"manifest_version": MANIFEST_VERSION + 1, "tools": tools})
    assert found is not None and found.isprintable()


def test_a_manifest_names_the_program_that_wrote_it(small_bundle: Path) -> None:
    assert read(small_bundle)["tools"]["coral-bundle"] == manifests.tool_versions()["coral-bundle"]


def test_a_manifest_that_does_not_hold_is_not_written(small_bundle: Path, tmp_path: Path) -> None:
    manifest = read(small_bundle)
    del manifest["segments"][0]["files"]  # type: ignore[misc]
    with pytest.raises(InternalError, match="has no 'files'"):
        manifests.write(tmp_path, manifest)
    assert list(tmp_path.iterdir()) == []


def test_the_types_need_the_standard_library_only() -> None:
    """The file itself; the package around it needs numpy."""
    file = Path(document.ROOT, "compiler", "runtime", "manifest.py")
    script = f"import runpy; runpy.run_path({str(file)!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)
