"""Our reading of the manifest's schema agrees with the jsonschema package, on manifests that were
spoilt."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.runtime.schema import complaint, manifest_schema

VALUES = st.sampled_from(
    [None, True, -1, 0, 1.5, 3, "", "tpu", [], {}, ["x"], {"path": "x"}, 10**9, "0" * 64]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    found = []
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        found += [(value, key), *places(inner)]
    return found


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_agrees_with_jsonschema(small_bundle: Path, data: st.DataObject) -> None:
    manifest = copy.deepcopy(json.loads((small_bundle / "manifest.json").read_text()))
    container, key = data.draw(st.sampled_from(places(manifest)))
    match data.draw(st.sampled_from(["replace", "delete", "add"])):
        case "replace":
            container[key] = data.draw(VALUES)
        case "delete":
            del container[key]
        case "add" if isinstance(container, dict):
            container["unknown"] = data.draw(VALUES)
    valid = jsonschema.Draft202012Validator(manifest_schema()).is_valid(manifest)
    assert (complaint(manifest) is None) == valid, complaint(manifest)


def test_a_complaint_names_the_place(small_bundle: Path) -> None:
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    assert complaint(manifest) is None
    manifest["segments"][2]["outputs"][0]["shape"] = ["x"]
    assert (
        complaint(manifest)
        == "manifest.segments[2].outputs[0].shape[0] is 'x', not integer or null"
    )


def test_an_output_has_figures_or_a_share(small_bundle: Path) -> None:
    """All figures of numbers, or the share alone."""
    validator = jsonschema.Draft202012Validator(manifest_schema())
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    for entry, is_valid in [
        ({"equal": 0.5}, True),
        ({}, False),
        ({"equal": 1.0, "cosine": 1.0}, False),
    ]:
        manifest["quality"]["outputs"]["y"] = entry
        assert validator.is_valid(manifest) == is_valid
        assert (complaint(manifest) is None) == is_valid
