"""The commands that make sense of a bundle once it is built."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from compiler.runtime.manifest import Manifest

if TYPE_CHECKING:
    from compiler.runtime import Bundle

_PROGRAM = "coral-bundle"


def show_next(console: Console, bundle: Bundle) -> None:
    """The next commands for this very bundle, each with what it does."""
    path = shlex.quote(str(bundle.path))
    rows = list(_commands(path, bundle.manifest))
    width = max(len(command) for command, _ in rows)
    console.print("Next:", highlight=False)
    for command, purpose in rows:
        line = f"  {_PROGRAM} {command:<{width}}  {purpose}"
        console.print(escape(line), highlight=False, soft_wrap=True)


def _commands(path: str, manifest: Manifest) -> Iterator[tuple[str, str]]:
    segments = list(manifest["segments"])
    language = manifest.get("language")
    if language is not None:
        for program in language["programs"].values():
            segments += program["segments"]
    on_tpu = [segment for segment in segments if segment["device"] == "tpu"]
    if any(segment["compiled"] is None for segment in on_tpu):
        yield f"compile {path}", "for the Edge TPU, on a PC with edgetpu_compiler"
    if language is not None:
        yield f'generate {path} "Once upon a time"', "continue a text"
        yield f"serve {path}", "answer as OpenAI's API does"
        return
    if "vision" in manifest:
        yield f"run {path} PICTURE", "what is in a picture"
    else:
        yield f"run {path} --input x.npz --output y.npz", "run it on arrays"
    yield f"bench {path}", "measure its speed here"
    if "tokenizer" in manifest:
        yield f"serve {path}", "answer with embeddings"
    if on_tpu:
        form = "frigate" if _is_detector(manifest) else "tflite"
        yield f"export {path} --for {form} -o exported", "for other software"


def _is_detector(manifest: Manifest) -> bool:
    vision = manifest.get("vision")
    return vision is not None and vision["task"] == "detect"
