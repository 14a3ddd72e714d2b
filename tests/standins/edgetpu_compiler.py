"""Stands for edgetpu_compiler 16: its command line, its log, its exit codes and its ways to fail.

It replaces the operators of a model by one edgetpu-custom-op with a package that says how much is
cached and streamed. STANDIN_COMPILER says what goes wrong: "crash:CONV_2D" aborts on models that
have this operator, "timeout:OP" never ends, "large:OP" fails for its activations, "cpu:OP" leaves
these operators on the CPU, "together" refuses several at once, "stream" caches nothing, "silent"
dies without a word, "swap" exchanges what it made of the first two, "flip:N" changes byte N of the
parameters, "once" stores equal layers once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from layout import blob  # beside this program

VERSION = "16.0.384591198"
NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgetpu_compiler")
    parser.add_argument(
        "-v", "--version", action="version", version=f"Edge TPU Compiler version {VERSION}"
    )
    parser.add_argument("-o", "--out_dir", type=Path, default=Path())
    parser.add_argument("-s", "--show_operations", action="store_true")
    parser.add_argument("-m", "--min_runtime_version", type=int, default=14)
    parser.add_argument("-t", "--timeout_sec", type=int, default=180)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    trouble = os.environ.get("STANDIN_COMPILER", "")
    kind, _, operator = trouble.partition(":")
    calls = os.environ.get("STANDIN_CALLS")
    if calls:
        with Path(calls).open("a") as file:
            file.write(f"{len(options.models)}\n")
    if kind == "silent":
        os.kill(os.getpid(), 11)
    print(f"Edge TPU Compiler version {VERSION}")
    print(f"Started a compilation timeout timer of {options.timeout_sec} seconds.", flush=True)
    models = [
        schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
        for path in options.models
    ]
    hit = any(operator in names(model) for model in models)
    if (kind == "crash" and hit) or (kind == "together" and len(models) > 1):
        print("Internal compiler error. Aborting! ", file=sys.stderr)
        return 1
    if kind == "timeout" and hit:
        time.sleep(1e6)
    if kind == "large" and hit:
        print(
            "ERROR: Restored original execution plan after delegate application failure.",
            file=sys.stderr,
        )
        print(
            "Compilation failed: Compilation failed due to large activation tensors in model.",
            file=sys.stderr,
        )
        print("Compilation child process completed within timeout period.\nCompilation failed! ")
        return 1
    print(f"\nModel{'s' if len(models) > 1 else ''} compiled successfully in 12 ms.\n")
    token = zlib.crc32(b"".join(path.read_bytes() for path in options.models))
    for path, model in zip(options.models, models, strict=True):
        compiled(path, model, options.out_dir, trouble, token)
    if kind == "swap":
        swap([options.out_dir / f"{path.stem}_edgetpu.tflite" for path in options.models[:2]])
    print("Compilation child process completed within timeout period.\nCompilation succeeded! ")
    return 0


def swap(files: list[Path]) -> None:
    if len(files) == 2:
        aside = files[0].with_suffix(".aside")
        shutil.move(files[0], aside)
        shutil.move(files[1], files[0])
        shutil.move(aside, files[1])


def names(model: schema.ModelT) -> list[str]:
    codes = [NAMES[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in model.operatorCodes]
    return [codes[o.opcodeIndex] for o in model.subgraphs[0].operators]


def compiled(path: Path, model: schema.ModelT, out: Path, trouble: str, token: int) -> None:
    """Write X_edgetpu.tflite and X_edgetpu.log, and say so."""
    kept, streams = trouble.partition("cpu:")[2], trouble == "stream"
    graph, found = model.subgraphs[0], names(model)
    behind = found.index(kept) if kept in found else len(found)
    mapped, left = graph.operators[:behind], graph.operators[behind:]
    parameters = bytearray(blob(model, mapped, trouble == "once"))
    flipped = trouble.partition("flip:")[2]
    if flipped and int(flipped) < len(parameters):
        parameters[int(flipped)] ^= 1
    size = len(parameters)
    if mapped:
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        made = [int(t) for o in mapped for t in o.outputs]
        later = {int(t) for o in left for t in o.inputs} | {int(t) for t in graph.outputs}
        operator.inputs = [int(t) for t in graph.inputs]
        operator.outputs = [t for t in made if t in later]
        operator.customOptions = list(package(bytes(parameters), streams, token))
        graph.operators = [operator, *left]
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode, code.version = b"edgetpu-custom-op", 1
        model.operatorCodes.append(code)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    result = out / f"{path.stem}_edgetpu.tflite"
    result.write_bytes(builder.Output())
    rows = Counter((n, "Mapped to Edge TPU") for n in found[:behind])
    rows += Counter((n, "More than one subgraph is not supported") for n in found[behind:])
    table = "\n".join(f"{n:<31}{count:<11}{status}" for (n, status), count in rows.items())
    header = f"Edge TPU Compiler version {VERSION}\nInput: {path.name}\nOutput: {result.name}\n\n"
    result.with_suffix(".log").write_text(
        f"{header}{'Operator':<31}{'Count':<11}Status\n\n{table}\n"
    )
    print(f"Input model: {path}")
    print(f"Input size: {path.stat().st_size / 1024:.2f}KiB")
    print(f"Output model: {result.name}")
    print(
        f"On-chip memory used for caching model parameters: {0 if streams else size / 1024:.2f}KiB"
    )
    print("On-chip memory remaining for caching model parameters: 7.00MiB")
    streamed = size / 1024 if streams else 0
    print(f"Off-chip memory used for streaming uncached model parameters: {streamed:.2f}KiB")
    print(
        f"Number of Edge TPU subgraphs: {int(behind > 0)}\nTotal number of operations: {len(found)}"
    )
    print(f"Operation log: {result.stem}.log")
    if left:
        print("\nModel successfully compiled but not all operations are supported by the Edge TPU.")
        print(f"Number of operations that will run on Edge TPU: {behind}")
        print(f"Number of operations that will run on CPU: {len(left)}")


def package(parameters: bytes, streams: bool, token: int) -> bytes:
    """A DarwiNN package with one executable that caches its parameters and one that runs
    (executable.fbs)."""
    kinds = [2] if streams else [1, 2]  # PARAMETER_CACHING, EXECUTION_ONLY
    executables = []
    for kind in kinds:
        executables.append(executable(kind, parameters if kind == kinds[0] else b"", token))
    builder = flatbuffers.Builder()
    offsets = [builder.CreateByteVector(data) for data in executables]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    multi = bytes(builder.Output())
    builder = flatbuffers.Builder()
    inner, version = builder.CreateByteVector(multi), builder.CreateString(VERSION)
    builder.StartObject(5)
    builder.PrependInt32Slot(0, 14, 0)
    builder.PrependUOffsetTRelativeSlot(1, inner, 0)
    builder.PrependUOffsetTRelativeSlot(4, version, 0)
    builder.Finish(builder.EndObject(), b"DWN1")
    return bytes(builder.Output())


def executable(kind: int, content: bytes, token: int) -> bytes:
    builder = flatbuffers.Builder()
    parameters = builder.CreateByteVector(content)
    builder.StartObject(15)
    builder.PrependUOffsetTRelativeSlot(6, parameters, 0)
    builder.PrependInt16Slot(13, kind, 0)
    builder.PrependUint64Slot(14, token, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


if __name__ == "__main__":
    sys.exit(main())
