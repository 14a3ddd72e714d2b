"""The documentation says what the code does: commands, options, manifest fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer.main

from compiler import cli
from compiler.cli import document as cli_document
from compiler.driver import document as api_document
from compiler.runtime.schema import SCHEMA

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
    """`python -m compiler.driver.document > docs/api.md` writes it."""
    assert (ROOT / "docs" / "api.md").read_text() == api_document.page()


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in README.splitlines():
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile


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


def test_every_pass_and_stage_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in [
        *(ROOT / "passes").glob("*.py"),
        *(ROOT / "compiler").glob("*.py"),
        *(ROOT / "compiler/runtime").glob("*.py"),
    ]:
        if path.stem not in ("__init__", "__main__"):
            assert path.stem in text, path
