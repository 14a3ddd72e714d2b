"""The commands that make sense of a bundle once it is built."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from compiler.errors import OptionError
from compiler.export import frigate
from compiler.export.chain import chain

if TYPE_CHECKING:
    from compiler.runtime import Bundle

_PROGRAM = "coral-bundle"


def show_next(console: Console, bundle: Bundle) -> None:
    """The next commands for this very bundle, each with what it does."""
    path = shlex.quote(str(bundle.path))
    rows = list(_commands(path, bundle))
    width = max(len(command) for command, _ in rows)
    console.print("Next:", highlight=False)
    for command, purpose in rows:
        line = f"  {_PROGRAM} {command:<{width}}  {purpose}"
        console.print(escape(line), highlight=False, soft_wrap=True)


def _commands(path: str, bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
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
    if not on_tpu:
        return
    vision = manifest.get("vision")
    if vision is not None:
        yield f"serve {path}", "answer with what is in pictures"
    form = _form(bundle)
    if form is not None:
        yield f"export {path} --for {form} -o exported", "for other software"
    if form != "frigate" and vision is not None and vision["task"] == "detect":
        yield f"serve {path} --zmq ipc:///tmp/cache/detector", "be Frigate's detector"


def _form(bundle: Bundle) -> str | None:
    """What a bundle can be exported for; None where nothing takes it."""
    try:
        found = chain(bundle)
    except OptionError:
        return None
    # Whether pixels go in as they are shows when the files are run; `export` does that.
    if frigate.refusal(found, bundle.manifest.get("vision"), takes_pixels=True) is None:
        return "frigate"
    return "tflite" if len(found.segments) == 1 else "pycoral"
