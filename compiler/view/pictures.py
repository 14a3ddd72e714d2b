"""How pictures go into a model, as one sentence."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from compiler.runtime.manifest import PictureEntry, TensorEntry

_NORMALISED = {
    "scale": "its scale is that of the pixels",
    "convolution": "the first convolution holds their mean and std",
    "layer": "a layer in front takes their mean and std, as what reads it cannot",
}


def show_picture(console: Console, picture: PictureEntry, inputs: list[TensorEntry]) -> None:
    """What of a picture goes in, and how it is fitted and normalised."""
    (tensor,) = (tensor for tensor in inputs if tensor["name"] == picture["input"])
    height, width = picture["size"]
    text = (
        f"Pictures go into '{escape(picture['input'])}' as {tensor['dtype']} {picture['layout']}, "
        f"{height} x {width} {picture['colours']}, {picture['fit']}"
    )
    if "resize" in picture:
        tall, wide = picture["resize"]
        text += f", the middle of {tall} x {wide}"
    if "normalised" in picture:
        text += f"; {_NORMALISED[picture['normalised']]}"
    else:
        text += f", less {_numbers(picture['mean'])}, over {_numbers(picture['std'])}"
    console.print(f"{text}.", highlight=False)


def _numbers(numbers: list[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
