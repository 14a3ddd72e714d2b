"""Time and peak memory of `build` for BERT-base and ViT-B/16, beside the model's size.

python benchmarks/encoder_build.py FOLDER     as export_encoders.py wrote it
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from build_time import measure


def main(folder: Path) -> None:
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    for path in sorted(folder.glob("*.onnx")):
        with tempfile.TemporaryDirectory() as made:
            build = [
                sys.executable,
                "-m",
                "compiler",
                "build",
                str(path.resolve()),
                "-o",
                "encoder.bundle",
            ]
            seconds, memory, code = measure(build, Path(made))
            if code:
                sys.exit((Path(made) / "log.txt").read_text())
        size = path.stat().st_size / 2**20
        print(
            f"{path.stem:10} {size:4.0f} MB  {seconds:5.1f} s  "
            f"{memory:5.0f} MB, {memory / size:.2f} times the model"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
