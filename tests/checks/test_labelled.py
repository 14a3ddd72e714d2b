"""Folders of labelled pictures: what is read from them, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compiler.checks import labelled
from compiler.errors import OptionError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_folders_are_called_as_classes_or_by_their_numbers(tmp_path: Path) -> None:
    """A name of two classes is none; digits may be a name."""
    labels = ["7", "crane", "crane"]
    for name in ("7", "1", "2", "3"):
        picture(tmp_path / name / "a.png")
    (tmp_path / "empty").mkdir()
    found = labelled.of_classes(tmp_path, labels, 8)
    assert {one.path.parent.name: list(one.classes) for one in found} == {
        "7": [0],
        "1": [1],
        "2": [2],
        "3": [3],
    }


def test_the_closest_names_are_listed(tmp_path: Path) -> None:
    picture(tmp_path / "tabby_cat" / "a.png")
    with pytest.raises(OptionError, match=r"no class .*tabby_cat.; the closest are tabby cat"):
        labelled.of_classes(tmp_path, ["dog", "tabby cat"], 2)
    picture(tmp_path / "crane" / "a.png")
    with pytest.raises(OptionError, match="no class is called 'crane'"):
        labelled.of_classes(tmp_path, ["crane", "crane"], 2)


def test_boxes_by_their_corners(tmp_path: Path) -> None:
    """A picture without a label file shows nothing; other texts are no label files."""
    picture(tmp_path / "a.png").with_suffix(".txt").write_text("1 0.5 0.25 0.5 0.5\n\n0 1 1 0 0.1")
    with pytest.raises(OptionError, match=r"a\.txt: line 3: '1 1 0 0.1': is no box"):
        labelled.of_objects(tmp_path, 2)
    (tmp_path / "a.txt").write_text("1 0.5 0.25 0.5 0.5\n\n0 0.75 0.75 0.5 0.25\n")
    picture(tmp_path / "b.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    first, second = labelled.of_objects(tmp_path, 2)
    assert list(first.classes) == [1, 0] and not len(second.classes)
    assert first.boxes is not None and second.boxes is not None
    np.testing.assert_allclose(first.boxes, [[0.25, 0, 0.75, 0.5], [0.5, 0.625, 1, 0.875]])
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 0.5 0.5 0.2", "4 words: a label is 'class x_centre"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "7 words"),
        ("cat 0.5 0.5 0.2 0.2", "five numbers"),
        ("2 0.5 0.5 0.2 0.2", "class 2: the model has 2, from 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", "whole numbers from 0"),
        ("0.5 0.5 0.5 0.2 0.2", "whole numbers from 0"),
        ("inf 0.5 0.5 0.2 0.2", "whole numbers from 0"),
        ("0 nan 0.5 0.2 0.2", "whole numbers from 0"),
        ("0 120 80 40 40", "is no box in the picture"),
        ("0 0.9 0.5 0.4 0.2", "is no box in the picture"),
    ],
)
def test_bad_label_files_are_named_with_the_line(line: str, complaint: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_text(f"{line}\n")
    with pytest.raises(OptionError) as caught:
        labelled.of_objects(tmp_path, 2)
    text = str(caught.value)
    assert text.startswith(f"labelled {tmp_path / 'a.txt'}: line 1: ") and complaint in text


def test_folders_without_pictures_or_labels(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        labelled.require_folder(tmp_path / "missing")
    with pytest.raises(OptionError, match="holds no sub-folders of pictures: "):
        labelled.of_classes(tmp_path, ["cat"], 1)
    with pytest.raises(OptionError, match="holds no pictures"):
        labelled.of_objects(tmp_path, 1)
    picture(tmp_path / "a.png")
    with pytest.raises(OptionError, match="only pictures of no class"):
        labelled.of_classes(tmp_path, ["cat"], 1)
    with pytest.raises(OptionError, match=r"a detector needs a\.txt"):
        labelled.of_objects(tmp_path, 1)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(OptionError, match="cannot be read as UTF-8 text"):
        labelled.of_objects(tmp_path, 1)
