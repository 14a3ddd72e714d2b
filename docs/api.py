"""Writes docs/api.md from the docstrings: `python -m docs.api > docs/api.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import compiler

_HEAD = """# Python API

Generated from the docstrings by `python -m docs.api`; a test keeps it current.

```python
import compiler

bundle = compiler.build("model.onnx", compiler.BuildOptions(calibration="samples.npz"))
print(bundle.manifest["quality"]["outputs"])

with compiler.Runner(bundle) as runner:
    outputs = runner.run({"x": image})  # numpy arrays by name
```

`import compiler` loads nothing heavy: names are loaded when they are first used, and `Bundle` and
`Runner` need the device side only. All names are typed. Errors that a caller can mend are
`CompilerError`; those of running a bundle stand with the runtime.
"""
_SECTIONS = {
    "Building": (
        "build",
        "BuildOptions",
        "PartitionOptions",
        "LanguageOptions",
        "ImageOptions",
        "Observers",
        "Timings",
    ),
    "Predicting": ("plan", "Forecast", "LanguageForecast", "frontier", "check", "CheckedOperator"),
    "Inspecting": (
        "kind_of",
        "inspect",
        "Inspection",
        "report_page",
        "save_graph",
        "inspect_compiled",
        "audit",
        "Audit",
        "CompiledFile",
    ),
    "Running": ("Bundle", "Runner", "HostThreads", "Prediction"),
    "Exporting": ("export_bundle", "Export"),
    "Tools": ("find_edgetpu_compiler", "compile_bundle", "install_onnx_tf", "measure_host"),
    "Errors": ("CompilerError", "OptionError"),
}


def documented() -> list[str]:
    """The names on the page."""
    names: list[str] = []
    for members in _SECTIONS.values():
        names += members
    return names


def page() -> str:
    """The whole page as Markdown."""
    lines = [_HEAD]
    for title, names in _SECTIONS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += _entry(name, getattr(compiler, name))
    return "\n".join(lines)


def _entry(name: str, found: Any) -> Iterator[str]:
    yield f"### `compiler.{name}`"
    yield ""
    yield "```python"
    if inspect.isclass(found) and issubclass(found, Exception):
        yield f"class {name}({found.__mro__[1].__name__})"
    else:
        yield _signature(name, found)
    yield "```"
    yield ""
    yield from _text(found)
    if inspect.isclass(found):
        yield from _methods(found)


def _methods(cls: type) -> Iterator[str]:
    """The public methods and properties that a class defines itself."""
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)  # of a class method
        if name.startswith("_") or not (inspect.isfunction(function) or _is_property(member)):
            continue
        if inspect.getdoc(member) is None:
            continue
        heading = name if _is_property(member) else _signature(name, getattr(cls, name))
        yield f"```python\n{heading}\n```"
        yield ""
        yield from _text(member)


def _is_property(member: object) -> bool:
    return isinstance(member, property)


def _signature(name: str, found: Any) -> str:
    """A function's or a class's parameters, one to a line where they do not fit one line."""
    signature = inspect.signature(found)
    given = [_parameter(parameter) for parameter in signature.parameters.values()]
    marked = _with_marker(list(signature.parameters.values()), given)
    result = signature.return_annotation
    ending = "" if result is inspect.Signature.empty or inspect.isclass(found) else f" -> {result}"
    line = f"{name}({', '.join(marked)}){ending}"
    if len(line) <= 100:
        return line
    inner = "".join(f"    {text},\n" for text in marked)
    return f"{name}(\n{inner}){ending}"


def _with_marker(parameters: list[inspect.Parameter], texts: list[str]) -> list[str]:
    """The texts, with a star in front of the first parameter that is given by name only."""
    for index, parameter in enumerate(parameters):
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            return [*texts[:index], "*", *texts[index:]]
    return texts


def _parameter(parameter: inspect.Parameter) -> str:
    text = parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is inspect.Parameter.empty:
        return text
    default = parameter.default
    shown = default.__name__ if callable(default) else repr(default)
    # Defaults that are made anew for each object have no text of their own.
    return f"{text} = {'...' if 'factory' in shown else shown}"


def _annotation(annotation: str) -> str:
    return annotation.replace("AnyPath", "str | Path")


def _text(found: object) -> Iterator[str]:
    """A docstring; lists of fields, whose columns matter, as they are written."""
    for paragraph in (inspect.getdoc(found) or "").split("\n\n"):
        yield f"```text\n{paragraph}\n```" if _is_list(paragraph) else paragraph
        yield ""


def _is_list(paragraph: str) -> bool:
    """Whether a paragraph begins with `name: meaning`."""
    name, colon, _ = paragraph.partition(":")
    return bool(colon) and name.isidentifier()


if __name__ == "__main__":
    sys.stdout.write(page())
