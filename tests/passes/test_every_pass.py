"""Every pass has a test file of its own here."""

from __future__ import annotations

from pathlib import Path

import passes

HERE = Path(__file__).parent


def test_every_pass_has_its_goldens() -> None:
    modules = {path.stem for path in Path(passes.__file__).parent.glob("*.py")} - {"__init__"}
    missing = [name for name in sorted(modules) if not (HERE / f"test_{name}.py").is_file()]
    assert not missing, f"passes without a test file: {missing}"
